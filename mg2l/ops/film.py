"""Feature-wise linear modulation: features that another network scales and shifts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mg2l.ops.once import differentiable_once, without_autograd


def film(features: Tensor, generated: Tensor, index: Tensor | None = None) -> Tensor:
    """Scale and shift features, ``(1 + s) f + b`` (Perez et al., 2018, arXiv:1709.07871).

    Args:
        features: f, ``[A, rows, H]`` float32 or float64.
        generated: scales s, then shifts b, ``[A, N, 2 H]`` like ``features``. Without ``index``
            there is one of each for every row, ``N = rows``.
        index: ``[rows]`` int64, which of the N a row has, in ``[0, N)``; a number outside is an
            error on the CPU, and its row NaN on a GPU.

    Returns:
        ``[A, rows, H]``, contiguous. Differentiable once with respect to ``features`` and
        ``generated``.

    Raises:
        RuntimeError: Shapes, dtypes or devices do not fit, an index is out of range, or a second
            derivative is asked for.

    Example:
        >>> film(torch.ones(1, 2, 1), torch.tensor([[[2.0, 0.5]]]), torch.tensor([0, 0]))
        tensor([[[3.5000],
                 [3.5000]]])
    """
    y: Tensor = without_autograd(torch.ops.mg2l.film.default, features, generated, index)
    return y


def film_vjp(
    features: Tensor, generated: Tensor, index: Tensor | None
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]:
    """`film` without a graph, for a loss whose gradient is known.

    Returns:
        The value, and a function from its gradient to those of ``features`` and ``generated``. To
        be called under ``torch.no_grad``, as that is.
    """

    def pull(grad: Tensor) -> tuple[Tensor, Tensor]:
        backward = torch.ops.mg2l.film_backward.default
        to_features, to_generated = without_autograd(backward, grad, features, generated, index)
        return to_features, to_generated

    return film(features, generated, index), pull


@torch.library.register_fake("mg2l::film")
def _fake(features: Tensor, generated: Tensor, index: Tensor | None) -> Tensor:
    return features.new_empty(features.shape)


@torch.library.register_fake("mg2l::film_backward")
def _backward_fake(
    grad: Tensor, features: Tensor, generated: Tensor, index: Tensor | None
) -> tuple[Tensor, Tensor]:
    return features.new_empty(features.shape), generated.new_empty(generated.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    backward = torch.ops.mg2l.film_backward.default
    to_features, to_generated = without_autograd(backward, grad, *ctx.saved_tensors)
    return to_features, to_generated, None


torch.library.register_autograd("mg2l::film", _backward, setup_context=_setup_context)
differentiable_once("film")
