"""Diagonal Gaussians over task representations."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

STD_FLOOR = 1e-3
"""Smallest standard deviation of a representation."""


class Gaussian(NamedTuple):
    """``N(mean, diag std^2)``; both ``[*, D]``."""

    mean: Tensor
    std: Tensor

    def sample(self, generator: Any = None) -> Tensor:
        """A reparametrised sample ``[*, D]``."""
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device)
        return self.mean + self.std * noise

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density [nats] of ``z``, summed over ``D``; shapes broadcast."""
        error = (z - self.mean) / self.std
        constant = 0.5 * math.log(2 * math.pi)
        return -(0.5 * error.square() + self.std.log() + constant).sum(-1)


def kl_to_standard(q: Gaussian) -> Tensor:
    """``KL(q || N(0, I)) = 1/2 sum(mean^2 + std^2 - 1 - log std^2)`` [nats], ``[*]``."""
    variance = q.std.square()
    return 0.5 * (q.mean.square() + variance - 1 - variance.log()).sum(-1)


def kl_between(q: Gaussian, p: Gaussian) -> Tensor:
    """``KL(q || p)`` of diagonal Gaussians [nats], ``[*]``, never negative."""
    ratio = (q.std / p.std).square()
    shift = ((q.mean - p.mean) / p.std).square()
    return 0.5 * (ratio + shift - 1 - ratio.log()).sum(-1)
