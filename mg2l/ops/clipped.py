"""Clipped losses of PPO, each with its gradient from one pass over the rows."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from mg2l.ops.once import refuse, without_autograd
from mg2l.ops.results import Surrogate, ValueLoss

Weights = Tensor | float


def surrogate(
    log_probs: Tensor, before: Tensor, advantages: Tensor, weights: Weights, clip: float
) -> Surrogate:
    """Clipped surrogate loss of each agent.

    ``-sum_i w_i min(r_i A_i, clip(r_i, 1 - c, 1 + c) A_i)`` with probability ratios
    ``r = exp(log_probs - before)`` (Schulman et al., 2017, arXiv:1707.06347, eq. 7).

    Args:
        log_probs: ``[A, rows]`` float32 or float64 [nats], of the actions taken.
        before: ``[A, rows]`` like ``log_probs``, of the policy that took them.
        advantages: ``[A, rows]`` like ``log_probs``.
        weights: w, ``[A, rows]`` like ``log_probs``; a number where all rows weigh the same.
        clip: c, positive.

    Returns:
        :class:`Surrogate`. Differentiable once with respect to ``log_probs`` alone.

    Raises:
        RuntimeError: Shapes, dtypes or devices do not fit, or ``clip`` is not positive; or a second
            derivative is asked for.

    Example:
        >>> zeros, ones = torch.zeros(1, 4), torch.ones(1, 4)
        >>> surrogate(zeros, zeros, ones, 1 / 4, 0.2).loss.tolist()
        [-1.0]
    """
    arguments = log_probs, before, advantages, *_split(weights), clip
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return Surrogate(*_Once.apply("surrogate", *arguments))  # type: ignore[no-untyped-call]
    return Surrogate(*without_autograd(torch.ops.mg2l.surrogate.default, *arguments))


def value_loss(
    prediction: Tensor,
    old: Tensor,
    target: Tensor,
    weights: Weights,
    *,
    clip: float | None = None,
    delta: float | None = None,
) -> ValueLoss:
    """Clipped value loss of each agent.

    ``sum_i w_i max(l(v_i - y_i), l(o_i + clip(v_i - o_i, -c, c) - y_i))`` of predictions v, those
    before o and targets y (Yu et al., 2022, arXiv:2103.01955, eq. in appendix A), where l is half
    the square, or the Huber loss (1964, doi:10.1214/aoms/1177703732).

    Args:
        prediction: ``[A, rows]`` float32 or float64.
        old: ``[A, rows]`` like ``prediction``.
        target: ``[A, rows]`` like ``prediction``.
        weights: w, ``[A, rows]`` like ``prediction``; a number where all rows weigh the same.
        clip: c, positive; None is the loss of the prediction alone.
        delta: error from which on the Huber loss is linear, positive; None is half the square.

    Returns:
        :class:`ValueLoss`. Differentiable once with respect to ``prediction`` alone.

    Raises:
        RuntimeError: Shapes, dtypes or devices do not fit, or ``clip`` or ``delta`` is not
            positive; or a second derivative is asked for.

    Example:
        >>> value_loss(torch.ones(1, 2), torch.zeros(1, 2), torch.zeros(1, 2), 1 / 2).loss.tolist()
        [0.5]
    """
    arguments = prediction, old, target, *_split(weights), clip, delta
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return ValueLoss(*_Once.apply("value_loss", *arguments))  # type: ignore[no-untyped-call]
    return ValueLoss(*without_autograd(torch.ops.mg2l.value_loss.default, *arguments))


def _split(weights: Weights) -> tuple[Tensor | None, float]:
    return (weights, 0.0) if isinstance(weights, Tensor) else (None, weights)


class _Once(torch.autograd.Function):
    """What is registered with the dispatcher below, whose calls take longer on a minibatch."""

    @staticmethod
    def forward(ctx: Any, name: str, *arguments: Any) -> tuple[Tensor, ...]:
        op = getattr(torch.ops.mg2l, name).default
        results: tuple[Tensor, ...] = without_autograd(op, *arguments)
        ctx.save_for_backward(results[-1])
        ctx.mark_non_differentiable(*results[1:])
        ctx.set_materialize_grads(False)
        ctx.name, ctx.others = name, len(arguments) - 1
        return results

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, _gradient(ctx, grad), *[None] * ctx.others


def _gradient(ctx: Any, grad: Tensor | None) -> Tensor | None:
    (slope,) = ctx.saved_tensors
    if grad is None:
        return None
    if torch.is_grad_enabled():
        found: Tensor = _FirstDerivative.apply(ctx.name, slope, grad)  # type: ignore
        return found
    scaled: Tensor = slope * grad.unsqueeze(1)
    return scaled


class _FirstDerivative(torch.autograd.Function):
    """Whose derivative is an error: torch would return that of a constant slope."""

    @staticmethod
    def forward(ctx: Any, name: str, slope: Tensor, grad: Tensor) -> Tensor:
        ctx.name = name
        return slope * grad.unsqueeze(1)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        refuse(ctx.name)


def _setup_context(
    name: str, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]
) -> None:
    ctx.save_for_backward(output[-1])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.name, ctx.others = name, len(inputs) - 1


def _backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    return _gradient(ctx, grad), *[None] * ctx.others


@torch.library.register_fake("mg2l::surrogate")
def _surrogate_fake(log_probs: Tensor, *_: Any) -> tuple[Tensor, ...]:
    each = [log_probs.new_empty(log_probs.shape[:1]) for _ in range(3)]
    return *each, log_probs.new_empty(log_probs.shape)


@torch.library.register_fake("mg2l::value_loss")
def _value_loss_fake(prediction: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return prediction.new_empty(prediction.shape[:1]), prediction.new_empty(prediction.shape)


for _name in ("surrogate", "value_loss"):
    torch.library.register_autograd(
        f"mg2l::{_name}", _backward, setup_context=partial(_setup_context, _name)
    )
