"""Permutation-invariant attention pooling: one learned query per head, shared by all sets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mg2l.ops.once import differentiable_once, without_autograd
from mg2l.ops.results import Pooled


def pia_pool(
    x: Tensor,
    query: Tensor,
    *,
    dim: int = -2,
    mask: Tensor | None = None,
    return_weights: bool = False,
) -> Pooled:
    """Weighted mean of a set's inputs, ``w_t = softmax_t(q . x_t)`` and ``y = sum_t w_t x_t``.

    The attention head of Zhao et al., 2025, section III, without its linear layers: since the
    weights sum to 1, ``W_k`` folds into ``q``, and ``W_v`` and ``W_o`` are applied to ``y``. Online
    softmax: neither keys nor values of single inputs are formed.

    Args:
        x: ``[*, T, D]`` float32 or float64, T at ``dim``, ``T >= 1``.
        query: ``[heads, D]`` like ``x``, scaled already.
        dim: Axis of a set's inputs, not the last.
        mask: ``x.shape[:-1]`` bool, False where there is no input; ``x`` is ignored there.
        return_weights: Also return the weights.

    A set with a logit that is not finite pools to NaN: :mod:`mg2l.ops.reference`.

    Returns:
        :class:`Pooled`, with the axes of ``x`` without ``dim``. Differentiable once with respect to
        ``x`` and ``query``.

    Raises:
        ValueError: ``dim`` is not an axis of ``x``, or is the last one.
        RuntimeError: Shapes, dtypes or devices do not fit, or ``T = 0``; or a second derivative is
            asked for.

    Example:
        >>> pia_pool(torch.tensor([[[1.0], [3.0]]]), torch.zeros(1, 1)).pooled
        tensor([[[2.]]])
    """
    axes = x.dim()
    axis = dim + axes if dim < 0 else dim
    if not 0 <= axis < axes - 1:
        raise ValueError(f"dim must be an axis of x {list(x.shape)} before the last, got {dim}")
    shape = x.shape
    if mask is not None and mask.shape != shape[:-1]:
        raise ValueError(f"mask must have shape {list(shape[:-1])}, got {list(mask.shape)}")
    before, after = shape[:axis], shape[axis + 1 : -1]
    if axes != 4 or axis != 1:
        sizes = (before.numel(), shape[axis], after.numel())
        x = x.reshape(*sizes, shape[-1])
        mask = None if mask is None else mask.reshape(sizes)
    if torch.is_grad_enabled() and (x.requires_grad or query.requires_grad):
        pooled, weights = _Differentiable.apply(x, query, mask, return_weights)  # type: ignore
    else:
        pooled, _, weights = without_autograd(
            torch.ops.mg2l.pia_pool.default, x, query, mask, return_weights
        )
    if axes != 4 or axis != 1:
        pooled = pooled.view(*before, *after, *pooled.shape[2:])
        if return_weights:
            weights = weights.view(*before, *after, *weights.shape[2:])
    return Pooled(pooled, weights if return_weights else None)


def pia_pool_vjp(
    x: Tensor, query: Tensor
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]:
    """`pia_pool` of sets ``[B, T, D]`` without a graph, for a loss whose gradient is known.

    Returns:
        ``pooled`` ``[B, heads, D]``, and a function from its gradient to those of ``x`` and of the
        query. To be called under ``torch.no_grad``, as that is.
    """
    inputs = x.unsqueeze(2), query, None
    pooled, lse, _ = without_autograd(torch.ops.mg2l.pia_pool.default, *inputs, False)

    def pull(grad: Tensor) -> tuple[Tensor, Tensor]:
        backward = torch.ops.mg2l.pia_pool_backward.default
        to_x, to_query = without_autograd(backward, grad.unsqueeze(1), *inputs, pooled, lse)
        return to_x.squeeze(2), to_query

    return pooled.squeeze(1), pull


class _Differentiable(torch.autograd.Function):
    """What is registered with the dispatcher below, without its Python."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, query: Tensor, mask: Tensor | None, return_weights: bool
    ) -> tuple[Tensor, Tensor]:
        pooled, lse, weights = without_autograd(
            torch.ops.mg2l.pia_pool.default, x, query, mask, return_weights
        )
        _setup_context(ctx, (x, query, mask, return_weights), (pooled, lse, weights))
        return pooled, weights

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> Any:
        return _backward(ctx, grad)


@torch.library.register_fake("mg2l::pia_pool")
def _fake(
    x: Tensor, query: Tensor, mask: Tensor | None = None, return_weights: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    outer, length, inner, width = x.shape
    heads = query.shape[0]
    weights = (outer, inner, heads, length) if return_weights else (0, inner, heads, 0)
    return (
        x.new_empty((outer, inner, heads, width)),
        x.new_empty((outer, inner, heads)),
        x.new_empty(weights),
    )


@torch.library.register_fake("mg2l::pia_pool_backward")
def _backward_fake(
    grad: Tensor, x: Tensor, query: Tensor, mask: Tensor | None, pooled: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), query.new_empty(query.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, query, mask, _ = inputs
    pooled, lse, weights = output
    ctx.mark_non_differentiable(lse, weights)
    ctx.save_for_backward(x, query, mask, pooled, lse)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> Any:
    if grad is None:
        return (None,) * 4
    op = torch.ops.mg2l.pia_pool_backward.default
    return (*without_autograd(op, grad, *ctx.saved_tensors), None, None)


torch.library.register_autograd("mg2l::pia_pool", _backward, setup_context=_setup_context)
differentiable_once("pia_pool")
