"""Every operator in plain torch: its definition, what tests compare with and benchmarks race.

Same arguments and results as the functions of :mod:`mg2l.ops`, none of the checks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mg2l.ops.gae import GAE


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
    """See :func:`mg2l.ops.gae`."""
    if value_mean is not None and value_std is not None:
        values = values * value_std + value_mean
        final_values = None if final_values is None else final_values * value_std + value_mean
    zero = rewards.new_zeros(())
    next_values = values[1:]
    if final_values is not None:
        next_values = torch.where(truncated, final_values, next_values)
    next_values = torch.where(terminated, zero, next_values)
    over = terminated | truncated
    carry = torch.zeros_like(values[0])
    advantages = torch.empty_like(rewards)
    for step in reversed(range(rewards.shape[0])):
        error = rewards[step] + gamma * next_values[step] - values[step]
        carry = error + gamma * gae_lambda * torch.where(over[step], zero, carry)
        advantages[step] = carry
    wide = advantages.double()
    moments = torch.stack([wide.sum(0), wide.square().sum(0)])
    return GAE(advantages, advantages + values[:-1], moments)
