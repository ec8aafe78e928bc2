"""Action distributions of all agents: diagonal Gaussian and masked categorical."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from mg2l.nn.stacked import StackedLinear

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class GaussianHead(nn.Module):
    """``a ~ N(mean(h), diag std^2)`` with a standard deviation that does not depend on the state.

    The density is that of the unclipped action: environments clip.
    """

    discrete = False

    def __init__(self, groups: int, hidden: int, size: int, gain: float, orthogonal: bool) -> None:
        super().__init__()
        self.mean = StackedLinear(groups, hidden, size, gain, orthogonal)
        self.log_std = nn.Parameter(torch.zeros(groups, 1, size))

    def act(
        self, hidden: Tensor, mask: Tensor | None, deterministic: bool, generator: Any
    ) -> tuple[Tensor, Tensor]:
        """Actions ``[A, rows, size]`` and their log-probabilities ``[A, rows]`` [nats]."""
        mean = self.mean(hidden)
        if deterministic:
            action = mean
        else:
            noise = torch.randn(mean.shape, generator=generator, device=mean.device)
            action = mean + self.log_std.exp() * noise
        return action, self._log_prob(mean, action)

    def evaluate(
        self, hidden: Tensor, action: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy ``[A, rows]`` [nats] of given actions."""
        mean = self.mean(hidden)
        entropy = (self.log_std + 0.5 + _LOG_SQRT_2PI).sum(-1).expand(mean.shape[:-1])
        return self._log_prob(mean, action), entropy

    def _log_prob(self, mean: Tensor, action: Tensor) -> Tensor:
        error = (action - mean) * torch.exp(-self.log_std)
        constant = self.log_std.sum(-1) + mean.shape[-1] * _LOG_SQRT_2PI
        return -0.5 * error.square().sum(-1) - constant


class CategoricalHead(nn.Module):
    """``a ~ softmax(logits(h))`` over the actions that the mask allows."""

    discrete = True

    def __init__(self, groups: int, hidden: int, size: int, gain: float, orthogonal: bool) -> None:
        super().__init__()
        self.logits = StackedLinear(groups, hidden, size, gain, orthogonal)

    def act(
        self, hidden: Tensor, mask: Tensor | None, deterministic: bool, generator: Any
    ) -> tuple[Tensor, Tensor]:
        """Actions ``[A, rows]`` int64 and their log-probabilities ``[A, rows]`` [nats]."""
        log_probs = self._log_probs(hidden, mask)
        if deterministic:
            action = log_probs.argmax(-1)
        else:
            flat = log_probs.exp().flatten(0, -2)
            action = torch.multinomial(flat, 1, generator=generator).view(log_probs.shape[:-1])
        return action, log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def evaluate(
        self, hidden: Tensor, action: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy ``[A, rows]`` [nats] of given actions."""
        log_probs = self._log_probs(hidden, mask)
        chosen = log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)
        # A forbidden action has probability 0 and log-probability -inf; 0 * -inf counts as 0.
        entropy = -(log_probs.exp() * log_probs.clamp(min=-1e4)).sum(-1)
        return chosen, entropy

    def _log_probs(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        logits = self.logits(hidden)
        if mask is not None:
            logits = logits.masked_fill(~mask, float("-inf"))
        return torch.log_softmax(logits, -1)
