"""First layer, GELU and attention pooling of a context in one pass over its transitions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mg2l.ops.once import differentiable_once, without_autograd
from mg2l.ops.results import EncodedContext


def encode_context(
    context: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    query: Tensor,
    *,
    index: Tensor | None = None,
    approximate: str = "none",
    bfloat16: bool = False,
    return_weights: bool = False,
) -> EncodedContext:
    """Hidden features of every transition, pooled by attention to one learned query.

    ``h_t = gelu(W_n ... gelu(W_1 c_t + b_1) ... + b_n)``, ``w_t = softmax_t(q . h_t)`` and
    ``y = sum_t w_t h_t`` (Zhao et al., 2025, section III). Since the weights sum to 1 and all that
    follows up to the pooled vector is linear, the layers after ``h_t`` (the transition encoder's
    output, ``W_v``, ``W_o``) are applied to ``y``, once per context, and ``W_k`` and the query of
    the attention head fold into ``q``: :class:`mg2l.nn.aggregators.PIAHead`.

    Nothing of the size of ``h`` is stored: the forward pass is an online softmax, the backward pass
    recomputes. Memory beyond arguments, results and gradients does not depend on T. But where an
    index holds each of its rows twice or more on average, the CPU encodes a row once, and keeps the
    features of all these rows, of one agent at a time.

    Args:
        context: ``[B, T, A, F]`` float32, float64 or bfloat16, transitions of every context; or,
            with ``index``, rows ``[R, A, F]`` that contexts are gathered from.
        weights: per hidden layer ``[H, F]``, shared by the agents, or ``[A, H, F]``, one per
            agent, F being the width of the layer before; like ``context``, as are the rest.
        biases: per hidden layer ``[H]`` or ``[A, H]``.
        query: ``[H]`` or ``[A, H]``, scaled already.
        index: ``[B, T]`` int64 in ``[0, R)``.
        approximate: GELU: ``none`` (exact) or ``tanh``.
        bfloat16: round what hidden layers multiply to bfloat16, in the backward pass as well;
            products are summed in float32. Of float32 on a CPU with ``avx512_bf16``.
        return_weights: Also return the pooling weights.

    A context with a logit ``q . h_t`` that is not finite pools to NaN: :mod:`mg2l.ops.reference`.

    Returns:
        :class:`EncodedContext`. bfloat16 is summed in float32. Differentiable once with respect to
        ``weights``, ``biases``, ``query`` and, without ``index``, ``context``.

    Raises:
        ValueError: ``approximate`` is neither ``none`` nor ``tanh``.
        RuntimeError: Shapes, dtypes or devices do not fit, a context is empty, an index is out of
            range (on CUDA, where a check would wait for the device, its results are NaN), or
            gradients are wanted for rows that are gathered by ``index`` or, with ``bfloat16``, for
            any; the CPU has no ``avx512_bf16``; or a second derivative is asked for.

    Example:
        >>> context, zeros = torch.ones(1, 5, 3, 2), torch.zeros(2)
        >>> encode_context(context, [torch.eye(2)], [zeros], zeros).pooled.shape
        torch.Size([1, 3, 2])
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f"approximate must be 'none' or 'tanh', got {approximate!r}")
    if index is not None and context.requires_grad and torch.is_grad_enabled():
        raise RuntimeError("encode_context: rows gathered by index get no gradients; detach them")
    if bfloat16 and context.requires_grad and torch.is_grad_enabled():
        raise RuntimeError("encode_context: with bfloat16 the context gets no gradients; detach it")
    options = (index, approximate == "tanh", bfloat16, return_weights)
    leaves = (context, query, *weights, *biases)
    if torch.is_grad_enabled() and any(t.requires_grad for t in leaves):
        pooled, pooling = _Differentiable.apply(*options, *leaves)  # type: ignore[no-untyped-call]
    else:
        pooled, _, pooling = without_autograd(
            torch.ops.mg2l.encode_context.default, context, weights, biases, query, *options
        )
    return EncodedContext(pooled.to(context.dtype), pooling if return_weights else None)


def encode_context_vjp(
    context: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    query: Tensor,
    *,
    index: Tensor | None = None,
    bfloat16: bool = False,
) -> tuple[Tensor, Callable[[Tensor], tuple[list[Tensor], list[Tensor], Tensor]]]:
    """`encode_context` without a graph, for a loss whose gradient is known.

    Returns:
        ``pooled``, and a function from its gradient to those of the weights, of the biases and of
        the query. To be called under ``torch.no_grad``, as that is.
    """
    arguments = context, weights, biases, query, index, False, bfloat16
    pooled, lse, _ = without_autograd(torch.ops.mg2l.encode_context.default, *arguments, False)

    def pull(grad: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        backward = torch.ops.mg2l.encode_context_backward.default
        _, to_weights, to_biases, to_query = without_autograd(
            backward, grad, *arguments, pooled, lse, False
        )
        return to_weights, to_biases, to_query

    return pooled, pull


class _Differentiable(torch.autograd.Function):
    """What is registered with the dispatcher below, without flattening lists in Python for it."""

    @staticmethod
    def forward(
        ctx: Any,
        index: Tensor | None,
        tanh_gelu: bool,
        bfloat16: bool,
        return_weights: bool,
        context: Tensor,
        query: Tensor,
        *layers: Tensor,
    ) -> tuple[Tensor, Tensor]:
        count = len(layers) // 2
        pooled, lse, pooling = without_autograd(
            torch.ops.mg2l.encode_context.default,
            context,
            layers[:count],
            layers[count:],
            query,
            index,
            tanh_gelu,
            bfloat16,
            return_weights,
        )
        ctx.options, ctx.layers = (tanh_gelu, bfloat16), count
        ctx.save_for_backward(context, query, index, pooled, lse, *layers)
        ctx.mark_non_differentiable(pooling)
        ctx.set_materialize_grads(False)
        return pooled, pooling

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> Any:
        if grad is None:
            return (None,) * (6 + 2 * ctx.layers)
        ctx.want_context = ctx.needs_input_grad[4]
        to_context, weights, biases, to_query, *_rest = _backward(ctx, grad)
        return (None, None, None, None, to_context, to_query, *weights, *biases)


@torch.library.register_fake("mg2l::encode_context")
def _fake(
    context: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    query: Tensor,
    index: Tensor | None,
    tanh_gelu: bool,
    bfloat16: bool,
    return_weights: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    contexts, transitions = (context if index is None else index).shape[:2]
    agents, hidden = context.shape[-2], weights[-1].shape[-2]
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
    weights: list[Tensor],
    biases: list[Tensor],
    query: Tensor,
    index: Tensor | None,
    tanh_gelu: bool,
    bfloat16: bool,
    pooled: Tensor,
    lse: Tensor,
    want_context: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
    return (
        context.new_empty(context.shape if want_context else (0,)),
        [weight.new_empty(weight.shape) for weight in weights],
        [bias.new_empty(bias.shape) for bias in biases],
        query.new_empty(query.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    context, weights, biases, query, index, *ctx.options, _ = inputs
    pooled, lse, pooling = output
    ctx.layers = len(weights)
    ctx.want_context = context.requires_grad and index is None
    ctx.mark_non_differentiable(lse, pooling)
    ctx.save_for_backward(context, query, index, pooled, lse, *weights, *biases)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_pooled: Tensor | None, *_: Tensor | None) -> Any:
    if grad_pooled is None:
        return None, [None] * ctx.layers, [None] * ctx.layers, None, None, None, None, None
    context, query, index, pooled, lse, *layers = ctx.saved_tensors
    grad_context, *grads = without_autograd(
        torch.ops.mg2l.encode_context_backward.default,
        grad_pooled,
        context,
        layers[: ctx.layers],
        layers[ctx.layers :],
        query,
        index,
        *ctx.options,
        pooled,
        lse,
        ctx.want_context,
    )
    return (grad_context if ctx.want_context else None, *grads, None, None, None, None)


torch.library.register_autograd("mg2l::encode_context", _backward, setup_context=_setup_context)
differentiable_once("encode_context")
