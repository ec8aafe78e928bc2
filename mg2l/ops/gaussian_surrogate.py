"""Policy loss of Gaussian policies, with its gradients, in one pass over the rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mg2l.ops.once import refuse, without_autograd
from mg2l.ops.results import GaussianSurrogate


def gaussian_surrogate(
    mean: Tensor,
    log_std: Tensor,
    action: Tensor,
    before: Tensor,
    advantages: Tensor,
    weights: Tensor | float,
    *,
    clip: float,
    entropy_coef: float,
    own: Tensor | None = None,
) -> GaussianSurrogate:
    """Clipped surrogate loss of each agent, less its entropy, for policies ``N(mean, diag std^2)``.

    ``-sum_i w_i min(r_i A_i, clip(r_i, 1 - c, 1 + c) A_i) - k H sum_i w_i`` with probability ratios
    ``r = exp(log N(action; mean, std) - before)`` and the entropy H of the Gaussian (Schulman et
    al., 2017, arXiv:1707.06347, eqs. 7 and 9): :func:`mg2l.ops.surrogate` of log-densities that are
    never in memory.

    Args:
        mean: ``[A, rows, W]`` float32 or float64.
        log_std: ``[A, 1, W]`` like ``mean``, or ``[1, 1, W]`` for all agents.
        action: ``[A, rows, W]`` like ``mean``.
        before: ``[A, rows]`` like ``mean`` [nats], log-density by the policy that took the action.
        advantages: ``[A, rows]`` like ``mean``.
        weights: w, ``[A, rows]`` like ``mean``; a number where all rows weigh the same.
        clip: c, positive.
        entropy_coef: k, at least 0.
        own: ``[A, 1, W]`` bool, which numbers of an action an agent has; None is all. The others
            count in no density and no entropy, and get no gradient.

    Returns:
        :class:`GaussianSurrogate`. Differentiable once, the loss with respect to ``mean`` and
        ``log_std``.

    Raises:
        RuntimeError: Shapes, dtypes or devices do not fit, or a number is out of bounds; or a
            second derivative is asked for.

    Example:
        >>> zeros, ones = torch.zeros(1, 4, 1), torch.ones(1, 4)
        >>> before = torch.full((1, 4), -0.9189385)  # the density at the mean
        >>> gaussian_surrogate(
        ...     zeros, zeros[:, :1], zeros, before, ones, 1 / 4, clip=0.2, entropy_coef=0.0
        ... ).loss
        tensor([-1.])
    """
    per_row = (weights, 0.0) if isinstance(weights, Tensor) else (None, weights)
    arguments = mean, log_std, action, before, advantages, *per_row, clip, entropy_coef, own
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return GaussianSurrogate(*_Once.apply(*arguments))  # type: ignore[no-untyped-call]
    op = torch.ops.mg2l.gaussian_surrogate.default
    return GaussianSurrogate(*without_autograd(op, *arguments))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[-2:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.groups, ctx.others = len(inputs[1]), len(inputs) - 2


def _backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    others = [None] * ctx.others
    if grad is None:
        return None, None, *others
    if torch.is_grad_enabled():
        slopes = _FirstDerivative.apply(grad, ctx.groups, *ctx.saved_tensors)  # type: ignore
    else:
        slopes = _scaled(grad, ctx.groups, *ctx.saved_tensors)
    return *slopes, *others


def _scaled(grad: Tensor, groups: int, mean: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor]:
    each = grad.view(-1, 1, 1)
    return mean * each, (log_std * each).sum_to_size(groups, *log_std.shape[1:])


class _Once(torch.autograd.Function):
    """What is registered with the dispatcher below, whose calls take longer on a minibatch."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        op = torch.ops.mg2l.gaussian_surrogate.default
        results: tuple[Tensor, ...] = without_autograd(op, *arguments)
        _setup_context(ctx, arguments, results)
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return _backward(ctx, *grads)


class _FirstDerivative(torch.autograd.Function):
    """Whose derivative is an error: torch would return that of constant slopes."""

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, groups: int, mean: Tensor, log_std: Tensor
    ) -> tuple[Tensor, Tensor]:
        return _scaled(grad, groups, mean, log_std)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        refuse("gaussian_surrogate")


@torch.library.register_fake("mg2l::gaussian_surrogate")
def _fake(mean: Tensor, *_: Any) -> tuple[Tensor, ...]:
    agents, _rows, width = mean.shape
    each = [mean.new_empty(agents) for _ in range(5)]
    return *each, mean.new_empty(mean.shape), mean.new_empty(agents, 1, width)


torch.library.register_autograd("mg2l::gaussian_surrogate", _backward, setup_context=_setup_context)
