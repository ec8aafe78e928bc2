"""Samples in the units that critics are trained in, whatever units they come in."""

from __future__ import annotations

import torch
from torch import Tensor

PREPROCESS = ("rank", "standardise", "none")
"""What is done to samples: see `prepare`."""


def prepare(train: Tensor, x: Tensor, how: str) -> Tensor:
    """Samples as a critic reads them; equal for all units, offsets and signs of coordinates.

    Args:
        train: ``[N, size]`` samples from which location and scale are taken.
        x: ``[M, size]`` samples to prepare.
        how: ``rank`` maps every coordinate to a normal by its ranks among ``train``;
            ``standardise`` gives every coordinate mean 0 and standard deviation 1; ``none`` scales
            all coordinates by one factor, so that their ratios stay.

    Returns:
        ``[M, size]``, dtype of ``x``. A coordinate that is constant in ``train`` is 0.
    """
    known, wanted = _standardised(train.double(), x.double(), how == "none")
    if how == "rank":
        columns = zip(known.unbind(1), wanted.unbind(1), strict=True)
        wanted = torch.stack([_normal_score(*pair) for pair in columns], 1)
    return wanted.to(x.dtype)


def _standardised(train: Tensor, x: Tensor, whole: bool) -> tuple[Tensor, Tensor]:
    """Both without location, scale and sign; ``whole`` takes one scale for all coordinates."""
    # By the largest value first: squares neither overflow nor vanish in any unit.
    largest = _scale(train.abs().amax(0), whole)
    train, x = train / largest, x / largest
    mean = train.mean(0)
    train, x = train - mean, x - mean
    constant = train.abs().amax(0) <= 1e-15
    largest = _scale(train.abs().amax(0), whole)
    train, x = train / largest, x / largest
    std = _scale(train.square().mean(0).sqrt(), whole)
    # Which way a coordinate points is part of its unit: here the first sample is above the median.
    above, below = (train > train[0]).sum(0), (train < train[0]).sum(0)
    sign = torch.where(above > below, -1.0, 1.0)
    scale = sign / std
    return tuple((v * scale).masked_fill(constant, 0.0) for v in (train, x))  # type: ignore[return-value]


def _scale(size: Tensor, whole: bool) -> Tensor:
    """``[size]`` divisors: where there is nothing to divide by, 1."""
    size = size.amax().expand_as(size) if whole else size
    return torch.where(size > 0, size, 1.0)


def _normal_score(known: Tensor, wanted: Tensor) -> Tensor:
    """``wanted`` through the distribution function of ``known``, to a normal; ties share a rank."""
    ordered, count = known.sort().values, len(known)
    wanted = wanted.contiguous()
    below, upto = (torch.searchsorted(ordered, wanted, right=right) for right in (False, True))
    gap = below.clamp(1, count - 1)
    low, high = ordered[gap - 1], ordered[gap]
    part = ((wanted - low) / torch.where(high > low, high - low, 1.0)).clamp(0, 1)
    rank = torch.where(upto > below, 0.5 * (below + upto), gap + part - 0.5)
    score: Tensor = torch.special.ndtri(rank / count)
    return score
