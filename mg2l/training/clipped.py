"""Clipped losses of PPO, each with its gradient formed beside it.

Autograd would record a node for every elementwise operation, which takes several times as long as
the arithmetic on a minibatch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mg2l.config.sections import PPOConfig

Weights = Tensor | float
"""``[A, rows]``, what each row counts in the mean of its agent; a number where all count alike."""


def weights_of(rows: int, kept: Tensor | None, count: Tensor | None) -> Weights:
    """Weights of rows in means per agent.

    Args:
        rows: how many there are, of all processes.
        kept: ``[A, rows]`` bool, which of this process's rows count; None is all.
        count: ``[A]`` how many rows count, of all processes; None where there is one process.
    """
    if kept is None:
        return 1 / max(rows, 1)
    kept = kept.float()
    count = kept.sum(1) if count is None else count
    return kept / count.clamp(min=1).unsqueeze(1)


def mean_per_agent(x: Tensor, weights: Weights) -> Tensor:
    """``[A, rows] -> [A]``."""
    return (x * weights).sum(1)


class Surrogate(NamedTuple):
    """Means over an agent's rows, ``[A]`` each."""

    loss: Tensor
    """``-min(r A, clip(r, 1 - c, 1 + c) A)`` of probability ratios r and advantages A."""

    kl: Tensor
    """``r - 1 - log r``, an estimate of the divergence from the policy before; no gradient."""

    clip_fraction: Tensor
    """Whether r is farther than c from 1; no gradient."""


def surrogate(
    log_probs: Tensor, before: Tensor, advantages: Tensor, weights: Weights, clip: float
) -> Surrogate:
    """Clipped surrogate loss (Schulman et al., 2017, arXiv:1707.06347, eq. 7).

    Args:
        log_probs: ``[A, rows]`` [nats].
        before: of the same actions, of the policy that took them.
        advantages: ``[A, rows]``.
        weights: of the rows, see `weights_of`.
        clip: c.
    """
    terms = _Surrogate.apply(log_probs, before, advantages, weights, clip)  # type: ignore
    return Surrogate(*terms)


def value_loss(
    prediction: Tensor, old: Tensor, target: Tensor, weights: Weights, config: PPOConfig
) -> Tensor:
    """Mean value loss ``[A]``; all arguments ``[A, rows]`` in normalised units.

    The Huber loss, or half the squared error, and where it is clipped the larger one of the
    prediction and of the prediction within ``clip_param`` of the one before.
    """
    loss: Tensor = _ValueLoss.apply(prediction, old, target, weights, config)  # type: ignore
    return loss


class _Surrogate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, log_probs: Tensor, before: Tensor, advantages: Tensor, weights: Any, clip: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        change = log_probs - before
        ratio = change.exp()
        plain = ratio * advantages
        clipped = ratio.clamp(1 - clip, 1 + clip) * advantages
        loss = -mean_per_agent(torch.minimum(plain, clipped), weights)
        # Where the clipped one is smaller, it is constant.
        ctx.save_for_backward(torch.where(plain <= clipped, plain, 0) * -weights)
        moved = ratio - 1
        kl = mean_per_agent(moved - change, weights)
        outside = mean_per_agent((moved.abs() > clip).to(ratio.dtype), weights)
        ctx.mark_non_differentiable(kl, outside)
        return loss, kl, outside

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, None, None, None, None]:
        (slope,) = ctx.saved_tensors
        return slope * grad.unsqueeze(1), None, None, None, None


class _ValueLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, prediction: Tensor, old: Tensor, target: Tensor, weights: Any, config: PPOConfig
    ) -> Tensor:
        delta = config.huber_delta if config.use_huber_loss else float("inf")

        def loss(value: Tensor) -> Tensor:
            if config.use_huber_loss:
                return F.huber_loss(value, target, reduction="none", delta=delta)
            return 0.5 * (value - target).square()

        losses = loss(prediction)
        slope = (prediction - target).clamp_(-delta, delta)
        if config.use_clipped_value_loss:
            clip, moved = config.clip_param, prediction - old
            clipped = loss(old + moved.clamp(-clip, clip))
            # Where the clipped one is larger, it is constant, unless they differ by rounding.
            slope = torch.where((losses >= clipped) | (moved.abs() <= clip), slope, 0)
            losses = torch.maximum(losses, clipped)
        ctx.save_for_backward(slope * weights)
        return mean_per_agent(losses, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        (slope,) = ctx.saved_tensors
        return slope * grad.unsqueeze(1), None, None, None, None
