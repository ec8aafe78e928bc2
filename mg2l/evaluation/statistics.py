"""Statistics over a few runs of an algorithm, with their uncertainty.

Agarwal, Schwarzer, Castro, Courville, Bellemare, *Deep Reinforcement Learning at the Edge of the
Statistical Precipice*, NeurIPS 2021 (arXiv:2108.13264). Scores are ``[R, K]``: a row per run (a
training seed), a column per task; every statistic reduces the last two axes and keeps those before.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Scores = NDArray[np.float64]
Statistic = Callable[[Scores], Any]

RESAMPLES = 2000

IN_USE = 2**22
"""Numbers of resampled scores held at once."""


class Interval(NamedTuple):
    """An estimate and its interval; the bounds are NaN where they are undefined."""

    value: float
    low: float
    high: float


def mean(scores: Scores) -> Any:
    """Mean over runs and tasks of ``[*, R, K]``."""
    return scores.mean((-2, -1))


def interquartile_mean(scores: Scores) -> Any:
    """Mean of the middle half of all ``R * K`` scores of ``[*, R, K]`` (section 4.3).

    The quarters left out are whole numbers of scores, rounded down, as in the authors' library.
    """
    held = np.sort(scores.reshape(*scores.shape[:-2], -1), -1)
    cut = held.shape[-1] // 4
    return held[..., cut : held.shape[-1] - cut].mean(-1)


def optimality_gap(scores: Scores, target: float = 1.0) -> Any:
    """Mean shortfall below ``target``, scores above it counted as ``target`` (section 4.3)."""
    return (target - np.minimum(scores, target)).mean((-2, -1))


def profile(scores: Scores, thresholds: ArrayLike) -> Any:
    """Fraction of the runs that score more than each threshold (eq. 1): ``[*, thresholds]``."""
    above = scores[..., None] > np.asarray(thresholds, float)
    return above.mean((-3, -2))


def student(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean of independent values and Student's interval of it.

    For one number from each of a few seeds, of which a bootstrap would make too narrow an interval.

    Raises:
        ValueError: there is no value.
    """
    if not len(values):
        raise ValueError("values must hold one number per seed, got none")
    centre = float(np.mean(values))
    if len(values) == 1:
        return Interval(centre, float("nan"), float("nan"))
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    width = student_quantile(confidence, len(values) - 1) * error
    return Interval(centre, centre - width, centre + width)


@functools.cache
def student_quantile(confidence: float, freedom: int) -> float:
    """Half-width of the interval around 0 that holds ``confidence`` of Student's t.

    With ``t = sqrt(freedom) * tan(angle)`` that probability is a finite sum (Abramowitz and Stegun,
    *Handbook of Mathematical Functions*, 26.7.3 and 26.7.4), and it grows with the angle.

    Args:
        confidence: in ``[0, 1)``.
        freedom: degrees of freedom, at least 1.
    """
    low, high = 0.0, math.pi / 2
    while (middle := (low + high) / 2) not in (low, high):
        if _within(middle, freedom) < confidence:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """Probability that Student's t is at most ``sqrt(freedom) * tan(angle)`` in magnitude."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def bootstrap(
    scores: ArrayLike,
    statistic: Statistic = mean,
    *,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval by resampling runs independently within every task (section 4.1).

    Args:
        scores: ``[R, K]``.
        statistic: takes ``[*, R, K]`` to ``[*]``.
        resamples: times that the runs are drawn.
        confidence: mass of the interval.
        seed: random seed of the drawing.

    Raises:
        ValueError: scores are not a matrix of numbers.
    """
    held = _matrix(scores, "scores")
    drawn = [statistic(part) for part in resampled(held, resamples, seed, held.size)]
    return _interval(float(statistic(held)), np.concatenate(drawn), confidence)


def nested_bootstrap(
    families: Sequence[ArrayLike],
    statistic: Statistic = interquartile_mean,
    *,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval over tasks and runs, stratified by family.

    Tasks are resampled within each family, and runs within each resampled task: tasks of a
    distribution are as much a sample as seeds are.

    Args:
        families: ``[R, K]`` scores of each, all of which count alike.
        statistic: takes ``[*, 1, all scores]`` to ``[*]``.
        resamples: times that tasks and runs are drawn.
        confidence: mass of the interval.
        seed: of the drawing.

    Raises:
        ValueError: there is no family, or its scores are no matrix of numbers.
    """
    held = [_matrix(scores, "scores") for scores in families]
    if not held:
        raise ValueError("families must hold the scores of one at least, got none")
    rng = np.random.default_rng(seed)
    most = max(1, IN_USE // sum(scores.size for scores in held))
    drawn = []
    for begin in range(0, resamples, most):
        count = min(most, resamples - begin)
        rows = []
        for scores in held:
            tasks = rng.integers(scores.shape[1], size=(count, 1, scores.shape[1]))
            runs = rng.integers(len(scores), size=(count, *scores.shape))
            rows.append(scores[runs, tasks].reshape(count, 1, -1))
        drawn.append(statistic(np.concatenate(rows, -1)))
    value = statistic(np.concatenate([scores.reshape(1, -1) for scores in held], -1))
    return _interval(float(value), np.concatenate(drawn), confidence)


def improvement(
    ours: ArrayLike,
    theirs: ArrayLike,
    *,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Probability that a run of ours beats one of theirs, mean over tasks (eq. 2).

    On each task this is Mann and Whitney's U over the number of pairs, a tie counting a half.

    Args:
        ours: ``[R, K]``.
        theirs: ``[R', K]``, of the same tasks.
        resamples: times that the runs of both are drawn.
        confidence: mass of the interval.
        seed: random seed of the drawing.

    Raises:
        ValueError: scores are not matrices, or of different numbers of tasks.
    """
    first, second = _matrix(ours, "ours"), _matrix(theirs, "theirs")
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"ours and theirs must have a column per task, got {first.shape[1]} and "
            f"{second.shape[1]} columns"
        )
    size = first.size * len(second)
    drawn = zip(
        resampled(first, resamples, seed, size),
        resampled(second, resamples, seed + 1, size),
        strict=True,
    )
    beaten = np.concatenate([_beats(*pair) for pair in drawn])
    return _interval(float(_beats(first, second)), beaten, confidence)


def _beats(ours: Scores, theirs: Scores) -> Any:
    sign = np.sign(ours[..., :, None, :] - theirs[..., None, :, :])
    return (1 + sign.mean((-3, -2, -1))) / 2


def _matrix(scores: ArrayLike, name: str) -> Scores:
    held = np.asarray(scores, float)
    if held.ndim != 2 or not held.size or not np.isfinite(held).all():
        raise ValueError(
            f"{name} must be finite numbers [runs, tasks], got shape {list(held.shape)}"
            + ("" if np.isfinite(held).all() else " with NaN or infinities")
        )
    return held


def resampled(scores: Scores, resamples: int, seed: int, size: int) -> Iterator[Scores]:
    """``[B, R, K]`` until there were ``resamples``; B * ``size`` numbers are in use at once."""
    rng, (runs, tasks) = np.random.default_rng(seed), scores.shape
    most = max(1, IN_USE // size)
    for begin in range(0, resamples, most):
        count = min(most, resamples - begin)
        drawn = rng.integers(runs, size=(count, runs, tasks))
        yield np.take_along_axis(scores[None], drawn, 1)


def _interval(value: float, drawn: Scores, confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(value, float(low), float(high))
