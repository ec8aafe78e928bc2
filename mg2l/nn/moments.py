"""Mean and variance over batches, without catastrophic cancellation.

``E[x^2] - E[x]^2`` subtracts two large numbers where the mean is large beside the spread, and in
float32 nothing is left at a mean of some thousand standard deviations. Here squares are taken
around the mean, and batches are merged by their counts and the distance of their means (Chan, Golub
and LeVeque, 1983, doi:10.1080/00031305.1983.10483115, eq. 2.1), all of it in float64.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mg2l.core.distributed import world

RESOLUTION = torch.finfo(torch.float32).eps
"""Below this fraction of the mean, float32 has no digits for a standard deviation."""

_SMALLEST = 1e-30  # what float32 can still divide by


class Moments(NamedTuple):
    """Moments of a batch, in float64, without the reduced axes."""

    counted: Tensor
    """How many numbers."""

    mean: Tensor
    """0 where none counted."""

    deviation: Tensor
    """Sum of squared differences from the mean."""

    @property
    def variance(self) -> Tensor:
        """Population variance; 0 where none counted."""
        return self.deviation / self.counted.clamp(min=1)


def batch_moments(x: Tensor, kept: Tensor | None = None) -> Moments:
    """Moments over the first axis, and over all processes.

    Args:
        x: ``[n, *S]``.
        kept: bool, its axes the first ones of ``x``; only numbers count where it is true.
            None is everywhere.

    Returns:
        ``mean`` and ``deviation`` ``[*S]``; ``counted`` of the shape of ``kept`` without the first
        axis, followed by ones, so that it broadcasts with them.
    """
    x = x.double()
    if kept is None:
        kept = torch.ones(len(x), dtype=torch.bool, device=x.device)
    weight = kept.to(x.dtype).view(*kept.shape, *[1] * (x.dim() - kept.dim()))
    count = weight.sum(0)
    mean = (weight * x).sum(0) / count.clamp(min=1)
    return _merged(Moments(count, mean, (weight * (x - mean).square()).sum(0)))


def _merged(own: Moments) -> Moments:
    """Moments of the rows of all processes, in one message."""
    if world.size == 1:
        return own
    parts = world.gather(torch.stack(torch.broadcast_tensors(*own)).unsqueeze(0))
    counts, means, deviations = parts.unbind(1)
    count = counts.sum(0)
    mean = (counts * means).sum(0) / count.clamp(min=1)
    deviation = (deviations + counts * (means - mean).square()).sum(0)
    return Moments(count[tuple(slice(size) for size in own.counted.shape)], mean, deviation)


class RunningMoments(nn.Module):
    """Moments of all rows so far, each as important as any other.

    Args:
        shape: shape of a row. With two axes, the first may have different numbers of rows.
    """

    count: Tensor
    mean: Tensor
    deviation: Tensor
    std: Tensor
    """Standard deviation; 1 where it is below the resolution of float32."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        counts = (*shape[:-1], 1)
        self.register_buffer("count", torch.zeros(counts, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("deviation", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("std", torch.ones(shape, dtype=torch.float64), persistent=False)
        self._known = False

    @torch.no_grad()
    def update(self, rows: Tensor, kept: Tensor | None = None) -> None:
        """Merge those rows ``[n, *shape]`` for which ``kept`` ``[n, ...]`` is true."""
        batch = batch_moments(rows, kept)
        total = self.count + batch.counted
        share = batch.counted / total.clamp(min=1)
        distance = batch.mean - self.mean
        self.deviation += batch.deviation + self.count * share * distance.square()
        self.mean += share * distance
        self.count.copy_(total)
        self._measure_std()

    @property
    def variance(self) -> Tensor:
        """Population variance; 0 before the first row."""
        return self.deviation / self.count.clamp(min=1)

    @property
    def known(self) -> bool:
        """Whether there are any rows yet; read from the device until there are."""
        if not self._known:
            self._known = bool(self.count.any())
        return self._known

    def _measure_std(self) -> None:
        std = self.variance.sqrt()
        resolved = std > (RESOLUTION * self.mean.abs()).clamp(min=_SMALLEST)
        self.std.copy_(torch.where(resolved, std, torch.ones_like(std)))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._known = False
        self._measure_std()

    def standardise(self, x: Tensor) -> Tensor:
        """``(x - mean) / std`` of ``x`` ``[*, *shape]``; unchanged before the first row.

        In float32 no digits are lost to a large mean: the difference from its nearest float32 is
        exact where ``x`` is near, and the rest of the mean is subtracted after it.
        """
        nearest = self.mean.float().to(x.dtype)
        rest = (self.mean - nearest).to(x.dtype)
        return (x - nearest - rest) / self.std.to(x.dtype)

    def restore(self, standardised: Tensor) -> Tensor:
        """The inverse of `standardise`."""
        kind = standardised.dtype
        return standardised * self.std.to(kind) + self.mean.to(kind)
