"""How well teams adapt to tasks that they are not given, as scores between two bounds.

On every task 0 is the return of ``mappo``, which knows nothing about the task, and 1 that of the
``oracle``, which is given it, each the mean over its runs. A task on which the oracle is not better
by a tenth of the gain of informed hand-written teams cannot show adaptation: it has no score.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from mg2l.evaluation import statistics
from mg2l.evaluation.groups import Group
from mg2l.evaluation.results import Run

LEAST = 0.1
"""Fraction of the range by which the oracle must be better on a task for it to have a score."""

NO_SHOTS = "0"
ONLINE = "online"
RANDOM = "random"

PARTS = {
    "test": "held-out tasks",
    "validation": "validation tasks",
    "train": "training tasks",
    "ood": "tasks beyond the training distribution",
}
"""Parts of the tasks, in the order in which they are shown, and what they are called."""

ROLES = ("zero", "one")
"""Reference runs of the score: those of ``mappo``, and of the ``oracle``."""


class TaskReturn(NamedTuple):
    """Mean return of a run on a task."""

    env: str
    """Environment, as of `Group`."""

    algo: str
    """Algorithm, as of `Group`."""

    role: str
    """One of `ROLES`, or nothing."""

    seed: int
    """Random seed of the training."""

    part: str
    """Part of the tasks."""

    shots: str
    """Episodes of exploration, ``online`` or ``random``."""

    task: str
    """Name of the task."""

    value: float
    """Return."""


class Bound(NamedTuple):
    """Mean returns on a part of the tasks of teams that were not trained."""

    env: str
    part: str
    random: float
    blind: float
    informed: float


def role(runs: Sequence[Run]) -> str:
    """Role of an algorithm's runs in the score, one of `ROLES` or none."""
    if all(run.ignores_task for run in runs):
        return "zero"
    return "one" if all(run.knows_task for run in runs) else ""


def tested(groups: Sequence[Group]) -> list[TaskReturn]:
    """Results in the runs' ``evaluation.json`` with uniformly drawn transitions."""
    found = []
    for group in groups:
        what = role(group.runs)
        for run in group.runs:
            for row in (run.evaluation or {}).get("results", []):
                if row["sampling"] == "priority":
                    continue
                shots = str(row["shots"]) if row["mode"] == "shots" else str(row["mode"])
                about = (group.env, group.algo, what, run.seed or 0, row["split"], shots)
                found += [
                    TaskReturn(*about, task, held["return"])
                    for task, held in row["by_task"].items()
                ]
    return found


def bounds(groups: Sequence[Group]) -> list[Bound]:
    """Returns of hand-written teams in the runs' ``evaluation.json``, once per environment."""
    found: dict[tuple[str, str], Bound] = {}
    for group in groups:
        for run in group.runs:
            for part, held in (run.evaluation or {}).get("scripted", {}).items():
                numbers = (held["random"], held["blind"], held["informed"])
                found.setdefault((group.env, part), Bound(group.env, part, *numbers))
    return list(found.values())


@dataclass(frozen=True)
class Scale:
    """What 0 and 1 stand for on a part of an environment's tasks.

    Args:
        zero: return of ``mappo`` by task.
        one: return of the ``oracle`` on the same tasks.
        reach: what knowing the task is worth, as a return.
    """

    zero: dict[str, float]
    one: dict[str, float]
    reach: float

    @property
    def tasks(self) -> list[str]:
        """Tasks that have a score."""
        gains = {task: self.one[task] - low for task, low in self.zero.items()}
        return [task for task, gain in gains.items() if gain > 0 and gain >= LEAST * self.reach]

    @property
    def unscored(self) -> int:
        """Number of tasks that have none."""
        return len(self.zero) - len(self.tasks)

    def score(self, task: str, value: float) -> float:
        """Score of a return on a task that has one."""
        return (value - self.zero[task]) / (self.one[task] - self.zero[task])


@dataclass(frozen=True)
class Adaptation:
    """Scores of an environment's algorithms on a part of its tasks.

    Attributes:
        env: name of the environment.
        part: of its tasks.
        scale: what 0 and 1 are; None where ``mappo`` or the ``oracle`` was not tested.
        bound: what hand-written teams earn, where there are any.
        random: mean return of random actions, NaN where they were not played.
        returns: by algorithm and shots, ``[R, K]``.
        scores: by algorithm and shots, ``[R, K']`` of `Scale.tasks`.
        seeds: by algorithm and shots, of these R runs: not all need be tested in every way.
    """

    env: str
    part: str
    scale: Scale | None
    bound: Bound | None
    random: float
    returns: dict[str, dict[str, statistics.Scores]]
    scores: dict[str, dict[str, statistics.Scores]] = field(default_factory=dict)
    seeds: dict[str, dict[str, list[int]]] = field(default_factory=dict)

    @property
    def shots(self) -> list[str]:
        """Ways of acting that any algorithm was tested in, ``online`` first."""
        return in_order(shots for of_algo in self.returns.values() for shots in of_algo)

    def interval(self, algo: str, shots: str) -> statistics.Interval | None:
        """Interquartile mean of an algorithm's scores, None where it has none."""
        held = self.scores.get(algo, {}).get(shots)
        return None if held is None else statistics.nested_bootstrap([held])

    def gains(self, algo: str, before: str, after: str) -> statistics.Scores | None:
        """``[R, K']``, what scores gain from one number of shots to another, task by task.

        Of the runs that were tested in both; None where there is none.
        """
        held, seeds = self.scores.get(algo, {}), self.seeds.get(algo, {})
        if not {before, after} <= held.keys():
            return None
        both = [seed for seed in seeds[before] if seed in seeds[after]]
        if not both:
            return None
        one, other = (
            held[shots][[seeds[shots].index(seed) for seed in both]] for shots in (before, after)
        )
        gains: statistics.Scores = other - one
        return gains

    def gain(self, algo: str, before: str, after: str) -> statistics.Interval | None:
        """Interquartile mean of `gains`."""
        held = self.gains(algo, before, after)
        return None if held is None else statistics.nested_bootstrap([held])

    @property
    def notes(self) -> list[str]:
        """Lines on the scale, and on what teams earn that were not trained."""
        untrained = {"random": self.random}
        if self.bound:
            untrained |= {"blind": self.bound.blind, "informed": self.bound.informed}
        shown = [f"{name} {value:.1f}" for name, value in untrained.items() if value == value]
        lines = [f"returns without training: {', '.join(shown)}"] if shown else []
        return [self._scale_note, *lines]

    @property
    def _scale_note(self) -> str:
        if self.scale is None:
            return "no scores: needs tested runs of one mappo and of one oracle"
        span = "informed and blind scripted teams" if self.bound else "oracle and random actions"
        count = len(self.scale.zero)
        if not self.scale.unscored:
            return f"all {count} tasks have a score"
        return (
            f"{len(self.scale.tasks)} of {count} tasks have a score; on {self.scale.unscored} the "
            f"oracle is not better than mappo by {LEAST:g} of the {self.scale.reach:.1f} between "
            f"{span}"
        )


def in_order(shots: Iterable[str]) -> list[str]:
    """Ways of acting, ``online`` first, then by the number of episodes; without random actions."""
    return sorted({*shots} - {RANDOM}, key=lambda name: -1 if name == ONLINE else int(name))


def adaptation(rows: Sequence[TaskReturn], limits: Sequence[Bound]) -> list[Adaptation]:
    """Scores of every environment and part, in the order of the rows and of `PARTS`."""
    found = []
    for env in dict.fromkeys(row.env for row in rows):
        for part in PARTS:
            of_part = [row for row in rows if (row.env, row.part) == (env, part)]
            if of_part:
                bound = next((x for x in limits if (x.env, x.part) == (env, part)), None)
                found.append(_of_part(of_part, bound))
    return found


def of_groups(groups: Sequence[Group]) -> list[Adaptation]:
    """`adaptation` for the evaluations of groups of runs."""
    return adaptation(tested(groups), bounds(groups))


def _of_part(rows: Sequence[TaskReturn], bound: Bound | None) -> Adaptation:
    tables: dict[str, dict[str, dict[int, dict[str, float]]]] = {}
    for row in rows:
        of_seed = tables.setdefault(row.algo, {}).setdefault(row.shots, {})
        of_seed.setdefault(row.seed, {})[row.task] = row.value
    every = [table for by_shots in tables.values() for table in by_shots.values()]
    tasks = [task for task in dict.fromkeys(row.task for row in rows)
             if all(task in held for table in every for held in table.values())]  # fmt: skip
    returns = {
        algo: {
            shots: np.array([[held[task] for task in tasks] for held in table.values()], float)
            for shots, table in by_shots.items()
            if tasks
        }
        for algo, by_shots in tables.items()
    }
    drawn = [held.mean() for by_shots in returns.values()
             for shots, held in by_shots.items() if shots == RANDOM]  # fmt: skip
    random = float(np.mean(drawn)) if drawn else math.nan
    zeros, ones = (
        _reference(returns, {row.algo for row in rows if row.role == which}) for which in ROLES
    )
    scores: dict[str, dict[str, statistics.Scores]] = {}
    scale = None
    if zeros is not None and ones is not None:
        reach = bound.informed - bound.blind if bound else float(ones.mean()) - random
        zero, one = (dict(zip(tasks, held.tolist(), strict=True)) for held in (zeros, ones))
        scale = Scale(zero, one, reach)
        kept = [tasks.index(task) for task in scale.tasks]
        if kept:
            low, span = zeros[kept], ones[kept] - zeros[kept]
            scores = {
                algo: {shots: (held[:, kept] - low) / span for shots, held in by_shots.items()}
                for algo, by_shots in returns.items()
            }
    about = (rows[0].env, rows[0].part)
    seeds = {
        algo: {shots: [*table] for shots, table in by_shots.items()}
        for algo, by_shots in tables.items()
    }
    return Adaptation(*about, scale, bound, random, returns, scores, seeds)


def _reference(
    returns: dict[str, dict[str, statistics.Scores]], algos: set[str]
) -> statistics.Scores | None:
    """``[K]`` mean over the runs of the one algorithm that is a bound; None of none or several.

    It does not matter after how many episodes of exploration, since it learns nothing from them.
    """
    if len(algos) != 1:
        return None
    by_shots = returns[next(iter(algos))]
    shots = in_order(by_shots)
    if not shots or not by_shots[shots[-1]].size:
        return None
    reference: statistics.Scores = by_shots[shots[-1]].mean(0)
    return reference
