"""Samples in the units that critics are trained in, whatever units they come in."""

from __future__ import annotations

import torch
from torch import Tensor

PREPROCESS = ("rank", "standardise", "none")
"""Kinds of preprocessing, see `prepare`."""

NARROW = 1e-3
"""Standard deviations that the middle half of a coordinate's values spans at least."""


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
    scaled = (_scaled if how == "rank" else _standardised)(
        train.double(), x.double(), how == "none"
    )
    if how == "rank":
        columns = zip(*(samples.unbind(1) for samples in scaled), strict=True)
        return torch.stack([_normal_score(*pair) for pair in columns], 1).to(x.dtype)
    return scaled[1].to(x.dtype)


def dominated_by_outliers(raw: Tensor, train: Tensor, test: Tensor, how: str) -> list[int]:
    """Coordinates whose outliers hide the other values from a critic.

    Args:
        raw: ``[N, size]`` samples from which location and scale were taken.
        train: the same after `prepare`.
        test: ``[M, size]`` held-out samples after `prepare`.
        how: the preprocessing of `prepare`.

    Returns:
        Those whose middle half of values spans less than `NARROW`, though they are not all equal
        (with ``none``, where scales may differ, only if it is so for all coordinates), and those
        with a held-out value beyond ``1 / NARROW``.
    """
    before, after = (_middle_half(samples) for samples in (raw, train))
    narrow = (after < NARROW) & (before > 0)
    if how == "none" and not narrow[before > 0].all():
        narrow = torch.zeros_like(narrow)
    far = test.abs().amax(0) > 1 / NARROW
    return [int(i) for i in (narrow | far).nonzero().flatten()]


def _middle_half(samples: Tensor) -> Tensor:
    """``[size]``, from the first quartile to the third."""
    ordered = samples.double().sort(0).values
    return ordered[3 * len(ordered) // 4] - ordered[len(ordered) // 4]


def _standardised(train: Tensor, x: Tensor, whole: bool) -> tuple[Tensor, Tensor]:
    """Both without location, scale and sign; ``whole`` takes one scale for all coordinates."""
    train, x = _scaled(train, x, whole)
    mean = train.mean(0)
    train, x = train - mean, x - mean
    constant = train.abs().amax(0) <= 1e-15
    largest = _scale(train.abs().amax(0), whole)
    train, x = train / largest, x / largest
    std = _scale(train.square().mean(0).sqrt(), whole)
    return tuple((v / std).masked_fill(constant, 0.0) for v in (train, x))  # type: ignore[return-value]


def _scaled(train: Tensor, x: Tensor, whole: bool) -> tuple[Tensor, Tensor]:
    """Both by their largest value, so that squares neither overflow nor vanish, and without sign.

    Which way a coordinate points is part of its unit: here the first sample is above the median.
    """
    above, below = (train > train[0]).sum(0), (train < train[0]).sum(0)
    largest = _scale(train.abs().amax(0), whole) * torch.where(above > below, -1.0, 1.0)
    return train / largest, x / largest


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
