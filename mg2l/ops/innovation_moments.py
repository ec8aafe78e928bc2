"""Second moments of what a series is beside what the step before lets expect."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mg2l.ops.once import differentiable_once, without_autograd


def innovation_moments(
    series: Tensor,
    transitions: Tensor,
    coefficients: Tensor,
    observation: int,
    *,
    places: Tensor | None = None,
) -> Tensor:
    """Second moments of the innovations of an autoregressive process of second order.

    What is left of a transition's numbers when those of the ones before it, as far as they are
    known, have been subtracted: ``u_t = x_t`` of a transition that follows none, ``u_t = x_t - c_0
    x_{t-1}`` of one that follows one, and ``u_t = x_t - c_1 x_{t-1} - c_2 x_{t-2}`` of one that
    follows two (as in Cochrane and Orcutt, 1949, for the first order). A transition follows the
    one before if it begins where that one ended. ``(1 / T) sum_t u_t u_t^T`` over the transitions
    of each of the three kinds.

    Args:
        series: ``[B, T, A, D]`` float32 or float64, numbers of each transition of B contexts.
        transitions: ``[B, T, A, F]`` like ``series``: the first numbers of each are the
            observation where it began, the last ones where it ended. They get no gradient.
        coefficients: ``c``, ``[3]`` like ``series``.
        observation: O, width of an observation, in ``[1, F]``.
        places: ``[B, T]`` int64: rows of contexts in ``series`` ``[U, A, D]`` and ``transitions``
            ``[U, A, F]``. Contexts may hold a row several times, but share none.

    Returns:
        ``[B, 3, A, D, D]`` float64: of transitions that follow none, one, and two. The first of a
        context follows none. Differentiable once with respect to ``series`` and ``coefficients``.

    Raises:
        RuntimeError: Shapes, dtypes or devices do not fit; on the CPU ``places`` are no rows, or
            two contexts share one; or a second derivative is asked for.

    Example:
        >>> series, c = torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1), torch.tensor([0.5, 1, 1])
        >>> innovation_moments(series, torch.zeros(1, 3, 1, 2), c, 1).flatten()
        tensor([0.3333, 0.7500, 0.3333], dtype=torch.float64)
    """
    arguments = series, transitions, coefficients, observation, places
    moments: Tensor
    if torch.is_grad_enabled() and (series.requires_grad or coefficients.requires_grad):
        moments = _Differentiable.apply(*arguments)  # type: ignore[no-untyped-call]
    else:
        moments = without_autograd(torch.ops.mg2l.innovation_moments.default, *arguments)
    return moments


class _Differentiable(torch.autograd.Function):
    """What is registered with the dispatcher below, without its Python."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        moments: Tensor = without_autograd(torch.ops.mg2l.innovation_moments.default, *arguments)
        _setup_context(ctx, arguments, moments)
        return moments

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Any:
        return _backward(ctx, grad)


@torch.library.register_fake("mg2l::innovation_moments")
def _fake(
    series: Tensor,
    transitions: Tensor,
    coefficients: Tensor,
    observation: int,
    places: Tensor | None,
) -> Tensor:
    contexts = len(series) if places is None else len(places)
    agents, width = series.shape[-2:]
    return series.new_empty((contexts, 3, agents, width, width), dtype=torch.float64)


@torch.library.register_fake("mg2l::innovation_moments_backward")
def _backward_fake(grad: Tensor, series: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return grad.new_empty(series.shape), grad.new_empty((len(grad), grad.shape[2], 3))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    series, transitions, coefficients, ctx.observation, places = inputs
    ctx.save_for_backward(series, transitions, coefficients, places)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None) -> Any:
    if grad is None:
        return (None,) * 5
    series, transitions, coefficients, places = ctx.saved_tensors
    op = torch.ops.mg2l.innovation_moments_backward.default
    to_series, to_coefficients = without_autograd(
        op, grad, series, transitions, coefficients, ctx.observation, places
    )
    to_series, to_coefficients = (
        x.to(series.dtype) for x in (to_series, to_coefficients.sum((0, 1)))
    )
    return to_series, None, to_coefficients, None, None


torch.library.register_autograd("mg2l::innovation_moments", _backward, setup_context=_setup_context)
differentiable_once("innovation_moments")
