"""Diagonal Gaussians over task representations."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mg2l.core.distributed import world

STD_FLOOR = 1e-3
"""Smallest standard deviation of a representation."""


class Gaussian(NamedTuple):
    """``N(mean, diag std^2)``; both ``[*, D]``."""

    mean: Tensor
    std: Tensor

    def sample(self, generator: Any = None, dim: int = 0) -> Tensor:
        """A reparametrised sample ``[*, D]``; ``dim`` is the axis of a process's own rows."""

        def randn(shape: list[int]) -> Tensor:
            return torch.randn(shape, generator=generator, device=self.mean.device)

        return self.mean + self.std * world.draw(randn, self.mean.shape, dim)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density [nats] of ``z``, summed over ``D``; shapes broadcast."""
        error = (z - self.mean) / self.std
        constant = 0.5 * math.log(2 * math.pi)
        return -(0.5 * error.square() + self.std.log() + constant).sum(-1)


def kl_to_standard(q: Gaussian) -> Tensor:
    """``KL(q || N(0, I)) = 1/2 sum(mean^2 + std^2 - 1 - log std^2)`` [nats], ``[*]``."""
    divergence: Tensor = _KLToStandard.apply(q.mean, q.std)  # type: ignore[no-untyped-call]
    return divergence


class _KLToStandard(torch.autograd.Function):
    """With its gradient in closed form, which takes a fraction of autograd's operations."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, std: Tensor) -> Tensor:
        ctx.save_for_backward(mean, std)
        variance = std.square()
        return (mean.square() + variance).sub_(1).sub_(variance.log()).sum(-1).mul_(0.5)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = ctx.saved_tensors
        grad = grad.unsqueeze(-1)
        return grad * mean, grad * (std - 1 / std)


def kl_between(q: Gaussian, p: Gaussian) -> Tensor:
    """``KL(q || p)`` of diagonal Gaussians [nats], ``[*]``, never negative."""
    ratio = (q.std / p.std).square()
    shift = ((q.mean - p.mean) / p.std).square()
    return 0.5 * (ratio + shift - 1 - ratio.log()).sum(-1)
