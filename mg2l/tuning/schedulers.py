"""Iterations at which trials are compared, and the rules that stop or replace them there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mg2l.tuning.space import Dimension
from mg2l.tuning.trial import Trial

if TYPE_CHECKING:
    import optuna

SCHEDULERS = ("none", "asha", "median", "pbt")

QUANTILE = 0.25
"""Part of a population that is replaced, and part that replaces it (Jaderberg et al., 2017)."""


@dataclass(frozen=True)
class Objective:
    """Objective of a search: the last value of a metric, to be maximised or minimised."""

    metric: str
    mode: str = "max"

    def best(self, trials: Sequence[Trial]) -> Trial | None:
        """The best of those that came furthest."""
        measured = [trial for trial in trials if trial.values]
        if not measured:
            return None
        far = max(max(trial.values) for trial in measured)
        sign = 1 if self.mode == "max" else -1
        return max(
            (trial for trial in measured if far in trial.values),
            key=lambda trial: sign * trial.values[far],
        )


@dataclass(frozen=True)
class Rungs:
    """Iterations at which trials are compared; the last is the end of a run.

    Args:
        scheduler: one of `SCHEDULERS`.
        n_iters: of each trial: what none is shortened to, and all that are not stopped reach.
        interval: iterations before the first comparison; 0 is a ninth of the run for ``asha`` and a
            tenth for others.
        reduction: of ``asha``: each rung is so many times further, and one in so many reaches it.
        every: iterations between two values of the objective; rungs are multiples of it.
    """

    scheduler: str
    n_iters: int
    interval: int = 0
    reduction: int = 3
    every: int = 1

    @property
    def first(self) -> int:
        """Iteration of the first comparison."""
        parts = self.reduction**2 if self.scheduler == "asha" else 10
        wanted = self.interval or max(1, self.n_iters // parts)
        return math.ceil(wanted / self.every) * self.every

    @property
    def iterations(self) -> list[int]:
        """All iterations at which trials are compared."""
        found = []
        if self.scheduler != "none":
            rung = self.first
            while rung < self.n_iters:
                found.append(rung)
                rung = rung * self.reduction if self.scheduler == "asha" else rung + self.first
        return [*found, self.n_iters]

    def after(self, iteration: int) -> int:
        """The next of `iterations`."""
        return next(rung for rung in self.iterations if rung > iteration)

    def pruner(self) -> optuna.pruners.BasePruner:
        """Optuna's rule for stopping trials."""
        import optuna

        if self.scheduler == "asha":
            return optuna.pruners.SuccessiveHalvingPruner(self.first, self.reduction)
        if self.scheduler == "median":
            return optuna.pruners.MedianPruner(n_startup_trials=4)
        return optuna.pruners.NopPruner()


@dataclass(frozen=True)
class Replacement:
    """A member of a population that ends, and the fork that takes its place."""

    loser: int
    winner: int
    params: dict[str, Any]


def exploit(
    values: Mapping[int, float | None],
    params: Mapping[int, dict[str, Any]],
    space: Sequence[Dimension],
    mode: str,
    rng: np.random.Generator,
) -> list[Replacement]:
    """A step of population-based training (Jaderberg et al., 2017, arXiv:1711.09846).

    Each member of the worst quarter is replaced by a fork of one of the best quarter, whose values
    are perturbed.

    Args:
        values: objective of each member; None where it failed, which is worse than any.
        params: values of each member by ``Key.path``.
        space: what is searched.
        mode: ``max`` or ``min``.
        rng: draws winners and perturbations.
    """
    sign = 1 if mode == "max" else -1

    def score(number: int) -> tuple[float, int]:
        value = values[number]
        return -math.inf if value is None else sign * value, -number

    order = sorted(values, key=score)
    count = max(1, math.floor(QUANTILE * len(order))) if len(order) > 1 else 0
    best = [number for number in order[len(order) - count :] if values[number] is not None]
    failed = sum(values[number] is None for number in order)
    losers = order[: max(count, failed)]
    if not best:
        return []
    found = []
    for loser in losers:
        if loser in best:
            continue
        winner = best[rng.integers(len(best))]
        moved = {d.name: d.perturb(params[winner][d.name], rng) for d in space}
        found.append(Replacement(loser, winner, moved))
    return found
