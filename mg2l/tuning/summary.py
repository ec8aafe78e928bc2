"""Outcome of a search: a table, what mattered, and the best configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from mg2l.config.files import read_sources
from mg2l.core.files import read_json, write_json, write_text
from mg2l.core.schema import ConfigError, nearest
from mg2l.tuning.plan import Plan
from mg2l.tuning.schedulers import Objective
from mg2l.tuning.space import Dimension, text
from mg2l.tuning.study import importances
from mg2l.tuning.trial import Trial

RESULT, BEST = "tune.json", "best.yaml"


@dataclass(frozen=True)
class Result:
    """A search as its report shows it.

    Attributes:
        metric: that was searched for.
        mode: ``max`` or ``min``.
        keys: that were searched, by ``Key.path``; whether on a logarithmic scale.
        trials: a row each: ``trial``, ``state``, ``iteration``, ``value``, ``params``, ``run``,
            and ``forked`` (from which trial, at which iteration).
        best: number of the best trial; -1 where none was measured.
        importances: part of the variance that each key explains; empty where too few are known.
        compared: iteration at which they are, of all trials that reached it.
    """

    metric: str
    mode: str
    keys: dict[str, bool]
    trials: list[dict[str, Any]]
    best: int
    importances: dict[str, float]
    compared: int


def summarise(
    trials: Sequence[Trial], space: Sequence[Dimension], objective: Objective, folder: Path
) -> Result:
    """Sum up a search, and write ``tune.json``.

    Importances are computed at the last iteration that half of the measured trials have reached:
    later ones are reached by the best alone.
    """
    reached = sorted(max(trial.values) for trial in trials if trial.values)
    compared = reached[(len(reached) - 1) // 2] if reached else 0
    rows = [(trial.params, trial.values[compared]) for trial in trials if compared in trial.values]
    best = objective.best(trials)
    found = Result(
        objective.metric,
        objective.mode,
        {dimension.name: dimension.log for dimension in space},
        [_row(trial, folder) for trial in trials],
        -1 if best is None else best.number,
        importances(space, rows),
        compared,
    )
    write_json(folder / RESULT, asdict(found))
    return found


def _row(trial: Trial, folder: Path) -> dict[str, Any]:
    run = trial.run()
    return {
        "trial": trial.number,
        "state": trial.state,
        "iteration": max(trial.values, default=0),
        "value": trial.value,
        "params": trial.params,
        "forked": None if trial.forked is None else list(trial.forked),
        "run": None if run is None else str(run.relative_to(folder)),
        "error": trial.error,
    }


def read(folder: Path) -> Result:
    """Read what `summarise` wrote.

    Raises:
        FileError: it is missing or damaged.
    """
    shape = {"metric": str, "mode": str, "keys": dict, "trials": list, "best": int}
    shape |= {"importances": dict, "compared": int}
    held = read_json(folder / RESULT, shape, inside=folder)
    return Result(**{name: held[name] for name in shape})


def cells(result: Result) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table: the best first, and the failed last."""
    sign = 1 if result.mode == "max" else -1

    def place(row: Mapping[str, Any]) -> tuple[int, float]:
        value = row["value"]
        return -row["iteration"], 0 if value is None else -sign * value

    header = ["trial", "state", "iteration", result.metric, *result.keys, "forked from"]
    rows = []
    for row in sorted(result.trials, key=place):
        value, forked = row["value"], row["forked"]
        rows.append(
            [
                f"{row['trial']}{' (best)' if row['trial'] == result.best else ''}",
                row["state"],
                str(row["iteration"]),
                "" if value is None else f"{value:.5g}",
                *(_shown(row["params"].get(name)) for name in result.keys),
                "" if forked is None else f"{forked[0]} at {forked[1]}",
            ]
        )
    if all(row[-1] == "" for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    return header, rows


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else text(value)


def table(result: Result) -> list[str]:
    """The table as lines of Markdown."""
    header, rows = cells(result)
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def write_best(trials: Sequence[Trial], wanted: Plan, folder: Path) -> tuple[Trial, str]:
    """Write ``best.yaml``, the configuration of the best trial as an experiment's file.

    Returns:
        The best trial, and the command that trains with its configuration.

    Raises:
        ConfigError: no trial has a value of the objective.
    """
    best, metric = wanted.objective.best(trials), wanted.objective.metric
    if best is None:
        logged = {name for trial in trials for name in trial.logged()}
        near = nearest(metric, sorted(logged))
        raise ConfigError(f"no trial has a value of --objective={metric}{near}")
    path = folder / BEST
    names = " ".join(f"--{kind}={wanted.names[kind]}" for kind in ("algo", "env"))
    command = f"python -m mg2l.train {names} --expt={path}"
    head = [f"Trial {best.number}: {metric} {best.value:.5g}.", f"Use: {command}"]
    if best.forked is not None:
        head.append(
            f"It is a fork of trial {best.forked[0]} at iteration {best.forked[1]}: values "
            "changed on the way, and these are the last."
        )
    experiment = read_sources(**wanted.names).values[-1][1]
    values = {**experiment, **wanted.fixed, **best.params}
    body = yaml.safe_dump(values, sort_keys=True, default_flow_style=None)
    write_text(path, "".join(f"# {line}\n" for line in head) + body)
    return best, command
