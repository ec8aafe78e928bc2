"""First layer, GELU and attention pooling of a context in one pass over its transitions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mg2l.ops.results import EncodedContext


def encode_context(
    context: Tensor,
    weight: Tensor,
    bias: Tensor,
    query: Tensor,
    *,
    index: Tensor | None = None,
    approximate: str = "none",
    return_weights: bool = False,
) -> EncodedContext:
    """Hidden features of every transition, pooled by attention to one learned query.

    ``h_t = gelu(W c_t + b)``, ``w_t = softmax_t(q . h_t)`` and ``y = sum_t w_t h_t`` (Zhao et al.,
    2025, section III). Since the weights sum to 1 and all that follows up to the pooled vector is
    linear, the layers after ``h_t`` (the transition encoder's output, ``W_v``, ``W_o``) are applied
    to ``y``, once per context, and ``W_k`` and the query of the attention head fold into ``q``:
    :meth:`mg2l.encoder.aggregators.PIAHead.pool`.

    Nothing of the size of ``h`` is stored: the forward pass is an online softmax, the backward pass
    recomputes. Memory beyond arguments, results and gradients does not depend on T.

    Args:
        context: ``[B, T, A, F]`` float32, float64 or bfloat16, transitions of every context; or,
            with ``index``, rows ``[R, A, F]`` that contexts are gathered from.
        weight: ``[H, F]`` shared by the agents, or ``[A, H, F]``, one layer per agent; like
            ``context``, as are ``bias`` and ``query``.
        bias: ``[H]`` or ``[A, H]``.
        query: ``[H]`` or ``[A, H]``, scaled already.
        index: ``[B, T]`` int64 in ``[0, R)``.
        approximate: GELU: ``none`` is the exact one, or ``tanh``.
        return_weights: Also return the pooling weights.

    Returns:
        :class:`EncodedContext`. bfloat16 is summed in float32. Differentiable once with respect to
        ``weight``, ``bias``, ``query`` and, without ``index``, ``context``.

    Raises:
        ValueError: ``approximate`` is neither ``none`` nor ``tanh``.
        RuntimeError: Shapes, dtypes or devices do not fit, a context is empty, an index is out of
            range, or gradients are wanted for rows that are gathered by ``index``.

    Example:
        >>> weight = torch.eye(2)
        >>> encode_context(
        ...     torch.ones(1, 5, 3, 2), weight, torch.zeros(2), torch.zeros(2)
        ... ).pooled.shape
        torch.Size([1, 3, 2])
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f"approximate must be 'none' or 'tanh', got {approximate!r}")
    if index is not None and context.requires_grad and torch.is_grad_enabled():
        raise RuntimeError("encode_context: rows gathered by index get no gradients; detach them")
    pooled, _, weights = torch.ops.mg2l.encode_context.default(
        context, weight, bias, query, index, approximate == "tanh", return_weights
    )
    return EncodedContext(pooled.to(context.dtype), weights if return_weights else None)


@torch.library.register_fake("mg2l::encode_context")
def _fake(
    context: Tensor,
    weight: Tensor,
    bias: Tensor,
    query: Tensor,
    index: Tensor | None = None,
    tanh_gelu: bool = False,
    return_weights: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    contexts, transitions = (context if index is None else index).shape[:2]
    agents, hidden = context.shape[-2], weight.shape[-2]
    sums = torch.float32 if context.dtype == torch.bfloat16 else context.dtype
    return (
        context.new_empty((contexts, agents, hidden), dtype=sums),
        context.new_empty((contexts, agents), dtype=sums),
        context.new_empty((contexts, agents, transitions) if return_weights else (0, agents, 0)),
    )


@torch.library.register_fake("mg2l::encode_context_backward")
def _backward_fake(
    grad_pooled: Tensor,
    context: Tensor,
    weight: Tensor,
    bias: Tensor,
    query: Tensor,
    index: Tensor | None,
    tanh_gelu: bool,
    pooled: Tensor,
    lse: Tensor,
    want_context: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        context.new_empty(context.shape if want_context else (0,)),
        weight.new_empty(weight.shape),
        bias.new_empty(bias.shape),
        query.new_empty(query.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    context, weight, bias, query, index, ctx.tanh_gelu, _ = inputs
    pooled, lse, weights = output
    ctx.mark_non_differentiable(lse, weights)
    ctx.save_for_backward(context, weight, bias, query, index, pooled, lse)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_pooled: Tensor | None, *_: Tensor | None) -> Any:
    if grad_pooled is None:
        return (None,) * 7
    context, weight, bias, query, index, pooled, lse = ctx.saved_tensors
    want_context = ctx.needs_input_grad[0] and index is None
    grad_context, *grads = torch.ops.mg2l.encode_context_backward.default(
        grad_pooled, context, weight, bias, query, index, ctx.tanh_gelu, pooled, lse, want_context
    )
    return (grad_context if want_context else None, *grads, None, None, None)


torch.library.register_autograd("mg2l::encode_context", _backward, setup_context=_setup_context)
