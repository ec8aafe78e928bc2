"""Limits of an estimate: bounds that it contradicts, samples for which it is no bound."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MARGIN = 0.05
"""Tolerated disagreement of two bounds [nats]."""

NEAR_CEILING = 1.0
"""Distance [nats] from its ceiling below which an estimate says little about larger values."""

SEEN = 10
"""Times that a value is seen on average where a variable is taken for discrete."""

REPEATED = 0.01
"""Fraction of the held-out pairs that may be training pairs as well."""


class Notes:
    """Sentences about an estimate, and whether they leave it a bound."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.broken = False

    def _add(self, text: str, *, breaks: bool = False) -> None:
        self.texts.append(text)
        self.broken |= breaks

    def on_samples(self, name: str, density: bool, x: Tensor, y: Tensor, test: Tensor) -> None:
        """Note where pairs repeat, and where a density meets labels.

        Args:
            name: the estimator.
            density: it takes the density ``q(y | x)``.
            x: ``[N, size]``, all samples.
            y: likewise.
            test: ``[N]`` bool, held out.
        """
        labels = [i for i, column in enumerate(y.unbind(1)) if _is_label(column)]
        if density and labels:
            self._add(
                f"coordinates {labels} of y take few values: {name} needs a density q(y | x), "
                "which labels do not have, and bounds nothing; take them as x, or info_nce",
                breaks=True,
            )
        if entropy(x) is not None and entropy(y) is not None:
            return  # pairs of labels repeat
        pair = torch.unique(torch.cat([x, y], 1), dim=0, return_inverse=True)[1]
        fraction = float(torch.isin(pair[test], pair[~test]).double().mean())
        if fraction > REPEATED:
            self._add(
                f"{fraction:.0%} of the held-out pairs are training pairs as well: {name} may have "
                "memorised them, and bounds nothing; leave repeated pairs out",
                breaks=True,
            )

    def on_outliers(self, name: str, bound: str, letter: str, dominated: list[int]) -> None:
        """Note where outliers hide the other values.

        Args:
            name: the estimator.
            bound: which bound it is.
            letter: ``x`` or ``y``.
            dominated: its coordinates of which this is so.
        """
        if dominated:
            self._add(
                f"coordinates {dominated} of {letter} have outliers so far out that the critic of "
                f"{name} cannot distinguish the other values; take preprocess='rank'",
                breaks=bound == "upper",
            )

    def on_value(
        self,
        name: str,
        bound: str,
        estimate: tuple[float, float, float],
        x: Tensor,
        y: Tensor,
        tested: int,
    ) -> None:
        """Note where an estimate contradicts ``0 <= I <= H``, or nears what its pairs can show.

        Args:
            name: the estimator.
            bound: what it bounds, ``lower``, ``upper`` or ``neither``.
            estimate: value, and the two ends of its interval [nats].
            x: ``[N, size]``, all samples.
            y: likewise.
            tested: K, held-out pairs.
        """
        value, low, high = estimate
        if value < -MARGIN:
            self._add(
                f"{name} is {value:.2f}, but information is never negative: its critic has learned "
                "nothing that holds; give it more pairs, fewer steps or a lower lr",
                breaks=bound == "upper" and high < 0,
            )
        for letter, samples in (("x", x), ("y", y)):
            limit = entropy(samples)
            if limit is not None and low > limit + MARGIN:
                self._add(
                    f"{name} is {value:.2f}, more than the entropy H({letter}) = {limit:.2f} of "
                    f"the values of {letter}, which I(x; y) cannot exceed",
                    breaks=bound == "lower",
                )
        log_pairs, log_products = math.log(tested), math.log(tested * (tested - 1))
        if name in ("info_nce", "l1out") and value > log_pairs - NEAR_CEILING:
            off = "more" if name == "info_nce" else "less"
            self._add(
                f"{name} is {value:.2f}, where log K = {log_pairs:.2f} with K = {tested} held-out "
                f"pairs: near it and above, the information may be far {off}; hold out more pairs"
            )
        if bound != "upper" and value > log_products:
            self._add(
                f"{name} is {value:.2f}, more than the {tested} held-out pairs can show: "
                f"log K(K - 1) = {log_products:.2f}",
                breaks=True,
            )

    def on_lower_bound(self, name: str, upper: float, lower: float, difference: Tensor) -> None:
        """Note where an upper bound lies below a lower one on the same held-out pairs.

        Args:
            name: the estimator of the upper one.
            upper: its value [nats].
            lower: that of ``info_nce``.
            difference: ``[samples]``, upper minus lower of bootstrap samples.
        """
        if upper < lower - MARGIN and float(difference.quantile(0.975)) < 0:
            self._add(
                f"{name} is {upper:.2f}, less than the lower bound info_nce = {lower:.2f} on the "
                "same held-out pairs: its q(y | x) is not the true conditional, and it is no upper "
                "bound",
                breaks=True,
            )


def entropy(samples: Tensor) -> float | None:
    """``H`` [nats] of a discrete variable ``[N, size]``, None if it is not discrete.

    The plug-in estimate with the correction of Miller (1955), ``(values - 1) / 2N``.
    """
    counts = torch.unique(samples, dim=0, return_counts=True)[1]
    if len(counts) * SEEN > len(samples):
        return None
    frequency = counts.double() / len(samples)
    return float(-(frequency * frequency.log()).sum()) + (len(counts) - 1) / (2 * len(samples))


def _is_label(column: Tensor) -> bool:
    values = len(column.unique())
    return values > 1 and values * SEEN <= len(column)
