"""Groups of runs that are seeds of the same experiment, and their joint statistics.

Here `mg2l.compare`, `mg2l.report` and `mg2l.sweep` share the definition of a group of runs, where
its returns are measured, and how its curves are averaged.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mg2l.config.saved import RESUMABLE
from mg2l.core.schema import ConfigError
from mg2l.evaluation import statistics
from mg2l.evaluation.results import Array, Run, age, find, printable

NO_SETTINGS = RESUMABLE | {"seed", "load_model_path", "env.module", "kernels"}
"""Keys that do not change the experiment. ``n_iters``, or ``n_env_steps`` in its place, does where
learning rates depend on it."""

POINTS = 200
"""Points of a curve at most."""


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed, one for each.

    Attributes:
        env: name of the environment, with the keys that differ, as in ``mpe-spread (n_agents=5)``.
        algo: name of the algorithm, with the keys that differ, as in ``mg2l (context_dim=32)``.
        runs: in the order of their folders.
    """

    env: str
    algo: str
    runs: list[Run]


def grouped(runs: Sequence[Run]) -> tuple[list[Group], list[str]]:
    """Runs by environment, algorithm and whatever else differs in their configurations.

    Names are those of the folders. Beside runs with a ``config.yaml``, those without are a group of
    their own. Of several runs of one seed, the one with the most environment steps counts, and
    among equals the latest.

    Returns:
        The groups, and a line for each run that was left out.
    """
    groups: list[Group] = []
    left_out = []
    for env, of_env in _distinguished(
        runs, lambda run: run.env, lambda key: key.startswith("env."), unknown_joins=True
    ):
        for algo, held in _distinguished(of_env, lambda run: run.algo):
            best = {
                run.folder if run.seed is None else run.seed: run
                for run in sorted(held, key=lambda run: (run.env_steps[-1], age(run.folder)))
            }
            kept = [run for run in held if run in best.values()]
            while any((env, algo) == (group.env, group.algo) for group in groups):
                algo += "'"  # a folder named like another one's label
            groups.append(Group(env, algo, kept))
            left_out += [
                f"left out: {run.folder}: seed {run.seed} of {algo} on {env} counts once, by "
                f"{best[run.seed].folder.name} with {best[run.seed].env_steps[-1]:,.0f} "
                f"environment steps"
                for run in held
                if run not in kept and run.seed is not None
            ]
    return groups, left_out


def groups_below(
    folders: Sequence[Path], *, measured: bool = False
) -> tuple[list[Group], list[str]]:
    """The groups of all runs below folders, and a line for whatever was skipped or left out.

    Args:
        folders: where to look.
        measured: also read what ``mg2l.evaluate`` and ``mg2l.probe`` wrote.

    Raises:
        ConfigError: there is no run that can be used.
    """
    runs, skipped = find(folders, measured=measured)
    if not runs:
        raise ConfigError(
            "; ".join([f"no run lies below {', '.join(map(str, folders))}", *skipped[:3]])
        )
    groups, left_out = grouped(runs)
    return groups, [*skipped, *left_out]


def _distinguished(
    runs: Sequence[Run],
    name_of: Callable[[Run], str],
    counts: Callable[[str], bool] = lambda key: True,
    *,
    unknown_joins: bool = False,
) -> list[tuple[str, list[Run]]]:
    """Runs by a name and by the values of keys that count, which are then added to the name.

    With ``unknown_joins`` runs without a configuration are taken for those that have one, where
    these agree.
    """
    named: dict[str, list[tuple[dict[str, str] | None, list[Run]]]] = {}
    for run in runs:
        settings = _settings(run, counts)
        kinds = named.setdefault(name_of(run), [])
        alike = [members for held, members in kinds if held == settings]
        if alike:
            alike[0].append(run)
        else:
            kinds.append((settings, [run]))
    found = []
    for name, kinds in named.items():
        if unknown_joins and len(kinds) == 2 and any(settings is None for settings, _ in kinds):
            kinds = [({}, [run for run in runs if name_of(run) == name])]
        known = [settings for settings, _ in kinds if settings is not None]
        keys = sorted({key for settings in known for key in settings})
        keys = [key for key in keys if len({settings.get(key) for settings in known}) > 1]
        for settings, members in kinds:
            words = ["no config.yaml"] if known else []
            if settings is not None:
                words = [_word(key, settings.get(key), keys) for key in keys]
            found.append((f"{name} ({', '.join(words)})" if words else name, members))
    return found


def _settings(run: Run, counts: Callable[[str], bool]) -> dict[str, str] | None:
    """Keys in which runs may differ, as texts; None where the configuration is not known."""
    if not run.config:
        return None
    ignored = NO_SETTINGS
    if run.config.get("ppo.use_linear_lr_decay") is True:
        ignored = ignored - {"n_env_steps" if run.config.get("n_env_steps") else "n_iters"}
    return {
        key: shown(value) for key, value in run.config.items() if counts(key) and key not in ignored
    }


def shown(value: Any) -> str:
    """A value of a configuration as a text, the same for 1 and 1.0."""
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:.15g}"
    return printable(value) if isinstance(value, str) else json.dumps(value)


def _word(key: str, value: str | None, keys: Sequence[str]) -> str:
    """A setting by the last part of its key, or by all of it where that is not enough."""
    leaf = key.rpartition(".")[2]
    if sum(other.rpartition(".")[2] == leaf for other in keys) > 1:
        leaf = key
    return f"no {leaf}" if value is None else f"{leaf}={value}"


@dataclass(frozen=True)
class End:
    """Window in which a group's returns are measured: the same environment steps for all its runs.

    Attributes:
        env_steps: the most environment steps that at least half of the runs have reached.
        iterations: iterations of a run by then.
        after: returns count after these environment steps, until ``env_steps``.
        runs: the runs that count.
        behind: the others, which stopped before half of it.
    """

    env_steps: float
    iterations: int
    after: float
    runs: list[Run]
    behind: list[Run]

    @property
    def returns(self) -> list[float]:
        """Mean return of each run that counts and has logged any."""
        found = [run.mean_return(self.after, self.env_steps) for run in self.runs]
        return [value for value in found if np.isfinite(value)]

    @property
    def interval(self) -> statistics.Interval:
        """Mean over the runs and Student's 95 % interval, NaN where it is undefined."""
        return student(self.returns)

    @property
    def lines(self) -> list[str]:
        """A line for each run that does not count."""
        return [
            f"not counted: {run.folder} has {run.env_steps[-1]:,.0f} environment steps, the "
            f"return is taken at {self.env_steps:,.0f}"
            for run in self.behind
        ]


def end(runs: Sequence[Run], last: int, cut: int | None = None) -> End | None:
    """The window in which a group's returns are measured, None where no run has reached it.

    So one run that is far behind does not shorten the others, and one that is ahead does not stand
    for all. The last iterations are counted in a run that ended exactly there, and other runs are
    measured over the same environment steps, however many iterations these are.

    Args:
        runs: runs of a group.
        last: iterations that count as the end.
        cut: environment steps after which nothing counts.
    """
    reached = {}
    for run in runs:
        steps = run.env_steps if cut is None else run.env_steps[run.env_steps <= cut]
        if len(steps):
            reached[run] = steps
    if not reached:
        return None
    ends = sorted((steps[-1] for steps in reached.values()), reverse=True)
    until = ends[(len(ends) + 1) // 2 - 1]
    there = next(steps for steps in reached.values() if steps[-1] == until)
    after = float(there[-last - 1]) if len(there) > last else -1.0
    behind = [run for run, steps in reached.items() if steps[-1] < (after + until) / 2]
    return End(
        env_steps=float(until),
        iterations=len(there),
        after=after,
        runs=[run for run in reached if run not in behind],
        behind=behind,
    )


def different_steps(ends: Iterable[End]) -> list[str]:
    """A line where the returns of an environment's groups are at different environment steps."""
    steps = {end.env_steps for end in ends}
    return (
        [
            "returns are at different environment steps; "
            f"--env-steps={min(steps):.0f} compares them at the same"
        ]
        if len(steps) > 1
        else []
    )


def student(values: Iterable[float]) -> statistics.Interval:
    """`statistics.student` of the finite values, NaN where there are none."""
    finite = [float(value) for value in values if math.isfinite(value)]
    if not finite:
        return statistics.Interval(float("nan"), float("nan"), float("nan"))
    return statistics.student(finite)


@dataclass(frozen=True)
class Curve:
    """A metric of several runs at common environment steps.

    Attributes:
        env_steps: ``[S]``.
        values: ``[runs, S]``, NaN where a run has none. Where runs end or begin, and a mean would
            jump for that reason alone, there is a column of NaN, at which lines are broken.
    """

    env_steps: Array
    values: Array

    @property
    def counts(self) -> NDArray[np.int64]:
        """``[S]`` runs that have a value."""
        return np.asarray(np.isfinite(self.values).sum(0), np.int64)

    @property
    def intervals(self) -> tuple[Array, Array, Array]:
        """Mean of the runs that have a value, and Student's 95 % interval, ``[S]`` each."""
        mean, low, high = np.asarray([student(column) for column in self.values.T]).T
        return mean, low, high


def curve(runs: Sequence[Run], name: str, window: int) -> Curve | None:
    """A metric of each run, smoothed, as far as at least half of the runs that log it have come.

    A run is interpolated between its iterations and has no value before its first and after its
    last, so that it neither shifts nor ends the curve of the others.

    Args:
        runs: runs of a group.
        name: name of the metric, nested ones as ``outer/inner``.
        window: iterations of the running mean, as many environment steps for every run.

    Returns:
        The curve, of at most `POINTS` points, None where no run logs the metric.
    """
    logged = [found for found in (run.curve(name) for run in runs) if len(found[0])]
    if not logged:
        return None
    width = window * _pace(runs)
    grid = np.unique(np.concatenate([steps for steps, _ in logged]))
    nan = float("nan")
    values = np.stack(
        [np.interp(grid, x, smooth(x, y, width), left=nan, right=nan) for x, y in logged]
    )
    kept = np.flatnonzero(2 * np.isfinite(values).sum(0) >= len(logged))
    kept = kept[np.unique(np.linspace(0, len(kept) - 1, POINTS).astype(int))]
    grid, values = grid[kept], values[:, kept]
    there = np.isfinite(values)
    breaks = np.flatnonzero((there[:, 1:] != there[:, :-1]).any(0)) + 1
    return Curve(np.insert(grid, breaks, grid[breaks]), np.insert(values, breaks, nan, axis=1))


def _pace(runs: Sequence[Run]) -> float:
    """Environment steps of an iteration, the median over the runs."""
    steps = np.concatenate([np.diff(run.env_steps) for run in runs])
    return float(np.median(steps)) if len(steps) else float(runs[0].env_steps[-1])


def smooth(steps: Array, values: Array, width: float) -> Array:
    """Running mean over the last ``width`` steps up to each value."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.minimum(np.searchsorted(steps, steps - width, side="right"), ends - 1)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts), float)
