"""Layers with GELU between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mg2l.ops.once import differentiable_once, without_autograd


def gelu_mlp(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Linear layers with GELU between them (Hendrycks and Gimpel, 2016, arXiv:1606.08415).

    ``y = W_L gelu(... gelu(W_1 x + b_1) ...) + b_L``, with the exact GELU. On the CPU a tile of
    rows goes through all layers before the next one; only what hidden layers activate is kept for
    the backward pass, and nothing if no gradient is needed.

    Args:
        x: ``[rows, in]`` float32 or float64.
        weights: of each layer ``[units, in]``, ``in`` being the units of the layer before; like
            ``x``, as are the biases.
        biases: of each layer ``[units]``.

    Returns:
        ``[rows, units]`` of the last layer, contiguous. Differentiable once with respect to every
        tensor.

    Raises:
        RuntimeError: Shapes, dtypes or devices do not fit, or there is no layer; or a second
            derivative is asked for.

    Example:
        >>> eye, zero = torch.eye(2), torch.zeros(2)
        >>> gelu_mlp(torch.tensor([[0.0, 1.0]]), [eye, eye], [zero, zero])
        tensor([[0.0000, 0.8413]])
    """
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights, *biases)):
        y: Tensor = _Differentiable.apply(x, *weights, *biases)  # type: ignore[no-untyped-call]
        return y
    y, _ = without_autograd(torch.ops.mg2l.gelu_mlp.default, x, weights, biases, False)
    return y


class _Differentiable(torch.autograd.Function):
    """What is registered with the dispatcher below, without flattening lists in Python for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *layers: Tensor) -> Tensor:
        count = len(layers) // 2
        y: Tensor
        y, kept = without_autograd(
            torch.ops.mg2l.gelu_mlp.default, x, layers[:count], layers[count:], True
        )
        ctx.layers = count
        ctx.save_for_backward(x, kept, *layers)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        ctx.want_x = ctx.needs_input_grad[0]
        grad_x, weights, biases, _ = _backward(ctx, grad)
        return (grad_x, *weights, *biases)


@torch.library.register_fake("mg2l::gelu_mlp")
def _fake(
    x: Tensor, weights: list[Tensor], biases: list[Tensor], keep: bool
) -> tuple[Tensor, Tensor]:
    hidden = sum(weight.shape[0] for weight in weights[:-1])
    kept = x.new_empty(x.shape[0] * hidden if keep else 0)
    return x.new_empty((x.shape[0], weights[-1].shape[0])), kept


@torch.library.register_fake("mg2l::gelu_mlp_backward")
def _backward_fake(
    grad: Tensor,
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    kept: Tensor,
    want_x: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    return (
        x.new_empty(x.shape if want_x else (0,)),
        [weight.new_empty(weight.shape) for weight in weights],
        [bias.new_empty(bias.shape) for bias in biases],
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weights, biases, _ = inputs
    _, kept = output
    ctx.layers, ctx.want_x = len(weights), x.requires_grad
    ctx.mark_non_differentiable(kept)
    ctx.save_for_backward(x, kept, *weights, *biases)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> Any:
    if grad is None:
        return None, [None] * ctx.layers, [None] * ctx.layers, None
    x, kept, *layers = ctx.saved_tensors
    grad_x, *grads = without_autograd(
        torch.ops.mg2l.gelu_mlp_backward.default,
        grad,
        x,
        layers[: ctx.layers],
        layers[ctx.layers :],
        kept,
        ctx.want_x,
    )
    return (grad_x if ctx.want_x else None, *grads, None)


torch.library.register_autograd("mg2l::gelu_mlp", _backward, setup_context=_setup_context)
differentiable_once("gelu_mlp")
