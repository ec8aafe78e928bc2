"""Layers of all agents' networks, each linear, activated and normalised, in one pass over rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mg2l.ops.once import differentiable_once, without_autograd


def stacked_mlp(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    relu: bool = True,
    plain_last: bool = False,
    bfloat16: bool = False,
) -> Tensor:
    """Multi-layer perceptrons of G groups at once, with LayerNorm after every activation.

    ``h_l = norm(act(h_{l-1} W_l^T + b_l))`` per group, ``norm`` being LayerNorm (Ba et al., 2016,
    arXiv:1607.06450) without an affine part, its variance that of the population plus 1e-5. On the
    CPU a tile of rows goes through all layers before the next one; only the normalised features
    are kept for the backward pass, and nothing if no gradient is needed.

    Args:
        x: ``[G, rows, in]`` float32 or float64. Groups may share memory, as in
            ``x.expand(G, -1, -1)``: nothing is copied.
        weights: of each layer ``[G, units, in]``, ``in`` being the units of the layer before; like
            ``x``, as are the biases.
        biases: of each layer ``[G, units]``.
        relu: use ReLU, else tanh.
        plain_last: leave the last layer linear, without activation or normalisation.
        bfloat16: round what normalised layers multiply to bfloat16, in the backward pass as well;
            products are summed in float32. Of float32 on a CPU with ``avx512_bf16``.

    Returns:
        ``[G, rows, units]`` of the last layer, contiguous. Differentiable once with respect to
        every tensor.

    Raises:
        RuntimeError: Shapes, dtypes or devices do not fit, or there is no normalised layer; the
            CPU has no ``avx512_bf16``; or a second derivative is asked for.

    Example:
        >>> x, weight, bias = torch.ones(1, 1, 2), torch.eye(2).unsqueeze(0), torch.zeros(1, 2)
        >>> stacked_mlp(x, [weight], [bias])
        tensor([[[0., 0.]]])
    """
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights, *biases)):
        options = relu, plain_last, bfloat16
        y: Tensor = _Differentiable.apply(*options, x, *weights, *biases)  # type: ignore
        return y
    y, *_ = without_autograd(
        torch.ops.mg2l.stacked_mlp.default, x, weights, biases, relu, plain_last, bfloat16, False
    )
    return y


def stacked_mlp_vjp(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    relu: bool,
    plain_last: bool,
    want_x: bool,
    bfloat16: bool = False,
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor | None, list[Tensor], list[Tensor]]]]:
    """`stacked_mlp` without a graph, for a loss whose gradient is known.

    Returns:
        The value, and a function from its gradient to those of ``x`` (None unless ``want_x``), of
        the weights, and of the biases. To be called under ``torch.no_grad``, as that is.
    """
    options = relu, plain_last, bfloat16
    y, *kept = without_autograd(
        torch.ops.mg2l.stacked_mlp.default, x, weights, biases, *options, True
    )

    def pull(grad: Tensor) -> tuple[Tensor | None, list[Tensor], list[Tensor]]:
        backward = torch.ops.mg2l.stacked_mlp_backward.default
        to_x, to_weights, to_biases = without_autograd(
            backward, grad, x, weights, biases, *options, y, *kept, want_x
        )
        return to_x if want_x else None, to_weights, to_biases

    return y, pull


class _Differentiable(torch.autograd.Function):
    """What is registered with the dispatcher below, without flattening lists in Python for it.

    That took longer than the kernels on a minibatch.
    """

    @staticmethod
    def forward(
        ctx: Any, relu: bool, plain_last: bool, bfloat16: bool, x: Tensor, *layers: Tensor
    ) -> Tensor:
        count = len(layers) // 2
        y: Tensor
        y, kept, moments = without_autograd(
            torch.ops.mg2l.stacked_mlp.default,
            x,
            layers[:count],
            layers[count:],
            relu,
            plain_last,
            bfloat16,
            True,
        )
        ctx.options, ctx.layers = (relu, plain_last, bfloat16), count
        ctx.save_for_backward(x, y, kept, moments, *layers)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        ctx.want_x = ctx.needs_input_grad[3]
        grad_x, weights, biases, *_ = _backward(ctx, grad)
        return (None, None, None, grad_x, *weights, *biases)


@torch.library.register_fake("mg2l::stacked_mlp")
def _fake(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    relu: bool,
    plain_last: bool,
    bfloat16: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    groups, rows, _ = x.shape
    units = [weight.shape[1] for weight in weights]
    normalised = len(units) - plain_last
    kept = (groups * rows * sum(units[:-1]), 2 * groups * rows * normalised) if keep else (0, 0)
    return (
        x.new_empty((groups, rows, units[-1])),
        x.new_empty(kept[0]),
        x.new_empty(kept[1]),
    )


@torch.library.register_fake("mg2l::stacked_mlp_backward")
def _backward_fake(
    grad: Tensor,
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    relu: bool,
    plain_last: bool,
    bfloat16: bool,
    y: Tensor,
    kept: Tensor,
    moments: Tensor,
    want_x: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    return (
        x.new_empty(x.shape if want_x else (0,)),
        [weight.new_empty(weight.shape) for weight in weights],
        [bias.new_empty(bias.shape) for bias in biases],
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weights, biases, *options, _ = inputs
    y, kept, moments = output
    ctx.options, ctx.layers = options, len(weights)
    ctx.want_x = x.requires_grad
    ctx.mark_non_differentiable(kept, moments)
    ctx.save_for_backward(x, y, kept, moments, *weights, *biases)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> Any:
    if grad is None:
        return None, [None] * ctx.layers, [None] * ctx.layers, None, None, None, None
    x, y, kept, moments, *layers = ctx.saved_tensors
    grad_x, *grads = without_autograd(
        torch.ops.mg2l.stacked_mlp_backward.default,
        grad,
        x,
        layers[: ctx.layers],
        layers[ctx.layers :],
        *ctx.options,
        y,
        kept,
        moments,
        ctx.want_x,
    )
    return (grad_x if ctx.want_x else None, *grads, None, None, None, None)


torch.library.register_autograd("mg2l::stacked_mlp", _backward, setup_context=_setup_context)
differentiable_once("stacked_mlp")
