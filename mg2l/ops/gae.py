"""Generalised advantage estimation in one pass over a rollout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mg2l.ops.once import below_autograd, differentiable_once
from mg2l.ops.results import GAE


def gae(
    rewards: Tensor,
    values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    gae_lambda: float,
    *,
    final_values: Tensor | None = None,
    value_mean: Tensor | None = None,
    value_std: Tensor | None = None,
) -> GAE:
    """Advantages, returns and advantage moments of a rollout.

    ``A[t] = r[t] + gamma * V'[t] - V[t] + gamma * gae_lambda * c[t] * A[t + 1]``, ``A[T] = 0``
    (Schulman et al., 2016, arXiv:1506.02438, eq. 16), with ``V = values * value_std + value_mean``,
    ``c[t] = 0`` where an episode ended and 1 elsewhere, and ``V'[t]``, the value after step t:

    ==========================  ==================================================================
    step t                      ``V'[t]``
    ==========================  ==================================================================
    continues                   ``V[t + 1]``
    ``terminated``              0: nothing follows
    ``truncated`` only          value of ``final_values[t]``, else ``V[t + 1]``: the episode was
                                cut off, but what it would have earned still counts
    ==========================  ==================================================================

    With environments that reset by themselves ``values[t + 1]`` belongs to the next episode, so
    that ``final_values`` is needed wherever ``truncated`` can be true. It is read only there.

    Args:
        rewards: ``[T, *B]`` float32 or float64, time first.
        values: ``[T + 1, *B]`` like ``rewards``: the critic's predictions, the last one after the
            last step.
        terminated: ``[T, *B]`` bool, the task ended at this step. Wins over ``truncated``.
        truncated: ``[T, *B]`` bool, the episode was cut off after this step (time limit).
        gamma: Discount, dimensionless, in ``[0, 1]``.
        gae_lambda: Decay, dimensionless, in ``[0, 1]``: 0 is the one-step TD error, 1 the
            discounted return minus the value.
        final_values: ``[T, *B]`` like ``rewards``: prediction for the observation that the
            truncated step really led to.
        value_mean: Broadcasts to ``*B``, like ``rewards``: mean of the targets that the critic's
            predictions are normalised with. Given together with ``value_std``.
        value_std: Broadcasts to ``*B``, like ``rewards``: their standard deviation.

    Returns:
        :class:`GAE`; on the device of ``rewards``, contiguous. ``advantages`` and ``returns`` have
        its dtype. Differentiable once with respect to every floating-point argument.

    Raises:
        RuntimeError: Shapes, dtypes or devices do not fit, only one of ``value_mean`` and
            ``value_std`` is given, or ``gamma`` or ``gae_lambda`` is outside ``[0, 1]``; or a
            second derivative is asked for.

    Example:
        >>> flags = torch.zeros(3, 2, dtype=torch.bool)
        >>> rewards, values = torch.ones(3, 2), torch.zeros(4, 2)
        >>> gae(rewards, values, flags, flags, 0.5, 1.0).returns[:, 0].tolist()
        [1.75, 1.5, 1.0]
    """
    arguments = (
        rewards,
        values,
        terminated,
        truncated,
        gamma,
        gae_lambda,
        final_values,
        value_mean,
        value_std,
    )
    leaves = (rewards, values, final_values, value_mean, value_std)
    recorded = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in leaves)
    if recorded or torch.compiler.is_compiling():
        return GAE(*torch.ops.mg2l.gae.default(*arguments))
    return GAE(*below_autograd(torch.ops.mg2l.gae.default, *arguments))


@torch.library.register_fake("mg2l::gae")
def _gae_fake(
    rewards: Tensor,
    values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    gae_lambda: float,
    final_values: Tensor | None = None,
    value_mean: Tensor | None = None,
    value_std: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    torch._check(rewards.dim() >= 1, lambda: "gae: rewards must have shape [T, *B], got a scalar")
    steps, *batch = rewards.shape
    torch._check(
        values.shape == (steps + 1, *batch),
        lambda: f"gae: values must have shape [T + 1, *B], got {list(values.shape)}",
    )
    return (
        rewards.new_empty(rewards.shape),
        rewards.new_empty(rewards.shape),
        rewards.new_empty((2, *batch), dtype=torch.float64),
    )


@torch.library.register_fake("mg2l::gae_backward")
def _gae_backward_fake(
    grad_advantages: Tensor,
    grad_returns: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    gae_lambda: float,
    has_final_values: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    steps, *batch = grad_advantages.shape
    return (
        grad_advantages.new_empty(grad_advantages.shape),
        grad_advantages.new_empty((steps + 1, *batch)),
        grad_advantages.new_empty((steps if has_final_values else 0, *batch)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    (
        _rewards,
        values,
        terminated,
        truncated,
        gamma,
        gae_lambda,
        final_values,
        value_mean,
        value_std,
    ) = inputs
    advantages, _returns, moments = output
    ctx.save_for_backward(
        values, terminated, truncated, final_values, value_mean, value_std, advantages, moments
    )
    ctx.gamma, ctx.gae_lambda = gamma, gae_lambda
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any,
    grad_advantages: Tensor | None,
    grad_returns: Tensor | None,
    grad_moments: Tensor | None,
) -> Any:
    values, terminated, truncated, final_values, mean, std, advantages, moments = ctx.saved_tensors
    if grad_advantages is None:
        grad_advantages = torch.zeros_like(advantages)
    if grad_returns is None:
        grad_returns = torch.zeros_like(advantages)
    if grad_moments is not None:
        through_mean = grad_moments[0] / max(len(advantages), 1)
        through_squares = 2 * (advantages.double() - moments[0]) * grad_moments[1]
        grad_advantages = grad_advantages + (through_mean + through_squares).to(advantages.dtype)
    grad_rewards, grad_values, grad_final = torch.ops.mg2l.gae_backward.default(
        grad_advantages,
        grad_returns,
        terminated,
        truncated,
        ctx.gamma,
        ctx.gae_lambda,
        final_values is not None,
    )
    grad_mean = grad_std = None
    if mean is not None:
        # Chain rule through V = values * std + mean; all in de-normalised values so far.
        grad_mean = grad_values.sum(0)
        grad_std = (grad_values * values).sum(0)
        if final_values is not None:
            # Kept steps may hold anything in final_values, even NaN: their gradient is exactly 0.
            used = grad_final != 0
            grad_mean = grad_mean + grad_final.sum(0)
            grad_std = grad_std + torch.where(used, grad_final * final_values, 0).sum(0)
        grad_mean = grad_mean.sum_to_size(mean.shape)
        grad_std = grad_std.sum_to_size(std.shape)
        grad_values, grad_final = grad_values * std, grad_final * std
    return (
        grad_rewards,
        grad_values,
        None,
        None,
        None,
        None,
        grad_final if final_values is not None else None,
        grad_mean,
        grad_std,
    )


torch.library.register_autograd("mg2l::gae", _backward, setup_context=_setup_context)
differentiable_once("gae")
