"""Results of runs as a few small tables: enough to draw every figure without the runs.

`collect` makes them of runs, `write` writes them, `read` takes them up again, `merge` adds those of
one machine to those of others, and `arrange` puts environments in order. They are CSV files, the
first line with the names of their columns.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import numpy as np

from mg2l.core.files import FileError, parse_json, read_text, write_text
from mg2l.core.schema import ConfigError
from mg2l.evaluation.adaptation import Bound, TaskReturn, bounds, role, tested
from mg2l.evaluation.groups import Group, smooth
from mg2l.evaluation.results import Run

POINTS = 40
"""Points of a run's curve of returns."""

WINDOW = 10
"""Iterations over which these are averaged."""

DIGITS = 5
"""Significant digits of a number that is not an integer."""

ABOUT = ("env", "algo", "role", "seed")
"""First columns of every table of runs."""


class Record(NamedTuple):
    """One run, or one that came to nothing."""

    env: str
    algo: str
    role: str
    seed: int
    state: str
    """``done``, or what the sweep says of it: ``failed``, ``stopped``, ``waiting``."""

    iterations: int
    env_steps: float
    seconds: float
    """Wall time of training, without meta-tests [s]."""

    error: str
    """Last line of its log where it failed."""


class Point(NamedTuple):
    """A metric of a run at some environment steps."""

    env: str
    algo: str
    role: str
    seed: int
    metric: str
    env_steps: float
    value: float


class Probed(NamedTuple):
    """A figure of a representation."""

    env: str
    algo: str
    role: str
    seed: int
    episodes: int
    level: str
    """``global``, ``agent_0``, ..."""

    figure: str
    value: float


@dataclass(frozen=True)
class Frames:
    """Tables of a set of runs."""

    records: list[Record]
    returns: list[TaskReturn]
    bounds: list[Bound]
    points: list[Point]
    probes: list[Probed]


def collect(groups: Sequence[Group], folders: Sequence[Path] = ()) -> Frames:
    """Tables of the runs of groups.

    Args:
        groups: with what was measured of their runs.
        folders: of sweeps, whose ``sweep.jsonl`` says which runs have failed.
    """
    runs = [(group, role(group.runs), run) for group in groups for run in group.runs]
    records, points, probes = [], [], []
    failed = _unfinished(folders)
    for group, what, run in runs:
        about = (group.env, group.algo, what, run.seed or 0)
        said = failed.pop((run.env, run.algo, run.seed or 0), None)
        seconds = sum(float(row.get("time/iteration", 0.0)) for row in run.numbers)
        state, error = said or ("done", "")
        records.append(
            Record(*about, state, len(run.rows), float(run.env_steps[-1]), seconds, error)
        )
        points += [Point(*about, *point) for point in _points(run)]
        probes += [Probed(*about, *figure) for figure in _figures(run)]
    for (env, algo, seed), (state, error) in failed.items():
        records.append(Record(env, algo, "", seed, state, 0, 0.0, 0.0, error))
    return Frames(records, tested(groups), bounds(groups), points, probes)


def merge(kept: Frames, added: Frames) -> Frames:
    """Tables of runs from two places; of a run that both have done, what is added counts.

    A run is known by its environment, algorithm and seed. One that has come to nothing where it
    was added last does not displace one that is done.
    """
    done = {_run(record) for record in added.records if record.state == "done"}
    others = [record for record in kept.records if _run(record) not in done]
    held = {_run(record) for record in others if record.state == "done"}
    news = [record for record in added.records if _run(record) not in held]
    said = {_run(record) for record in news}

    def both(old: Sequence[Any], new: Sequence[Any]) -> list[Any]:
        return [row for row in old if _run(row) not in done] + [*new]

    scripted = {(bound.env, bound.part) for bound in added.bounds}
    records = [record for record in others if _run(record) not in said] + news
    return Frames(
        sorted(records, key=lambda record: (record.state != "done", _run(record))),
        both(kept.returns, added.returns),
        [bound for bound in kept.bounds if (bound.env, bound.part) not in scripted] + added.bounds,
        both(kept.points, added.points),
        both(kept.probes, added.probes),
    )


def arrange(frames: Frames, envs: Sequence[str]) -> Frames:
    """Tables in the order of these environments; others follow as they are."""
    places = {env: place for place, env in enumerate(dict.fromkeys(envs))}
    tables = (getattr(frames, table.name) for table in fields(frames))
    return Frames(*(sorted(x, key=lambda row: places.get(row.env, len(places))) for x in tables))


def _run(row: Any) -> tuple[str, str, int]:
    return row.env, row.algo, row.seed


def _unfinished(folders: Sequence[Path]) -> dict[tuple[str, str, int], tuple[str, str]]:
    """State and error of the runs that sweeps have not brought to their end."""
    found = {}
    for folder in folders:
        path = folder / "sweep.jsonl"
        if not path.is_file():
            continue
        for line in read_text(path, inside=folder).splitlines():
            row = parse_json(line, path)
            if row["state"] != "done":
                key = (str(row["env"]), str(row["algo"]), int(row["seed"]))
                found[key] = (str(row["state"]), str(row["error"]))
    return found


def _points(run: Run) -> Iterable[tuple[str, float, float]]:
    """Returns of training, smoothed and thinned out, and all meta-tests during it."""
    steps, values = run.curve("return")
    if len(steps):
        pace = float(np.median(np.diff(run.env_steps))) if len(run.env_steps) > 1 else steps[-1]
        values = smooth(steps, values, WINDOW * pace)
        for at in np.unique(np.linspace(0, len(steps) - 1, POINTS).astype(int)):
            yield "return", float(steps[at]), float(values[at])
    metrics = dict.fromkeys(name for row in run.numbers for name in row if name.startswith("eval/"))
    for name in metrics:
        for at, value in zip(*run.curve(name), strict=True):
            yield name, float(at), float(value)


def _figures(run: Run) -> Iterable[tuple[int, str, str, float]]:
    for episodes, levels in (run.probe or {}).get("contexts", {}).items():
        for level, figures in levels.items():
            if isinstance(figures, dict):
                for name, value in figures.items():
                    if math.isfinite(value):
                        yield int(episodes), level, name, float(value)


# On disk.


def write(folder: Path, frames: Frames) -> list[Path]:
    """Write the tables into a folder, and return their paths. Raises WriteError."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        "runs.csv": (Record._fields, frames.records),
        "returns.csv": _wide(frames.returns),
        "scripted.csv": (Bound._fields, frames.bounds),
        "curves.csv": (Point._fields, frames.points),
        "probe.csv": (Probed._fields, frames.probes),
    }
    for name, (columns, rows) in tables.items():
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_cell(value) for value in row] for row in rows)
        write_text(folder / name, text.getvalue())
    return [folder / name for name in tables]


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return str(int(value)) if value.is_integer() else f"{value:.{DIGITS}g}"


def _wide(returns: Sequence[TaskReturn]) -> tuple[Sequence[str], Iterable[Sequence[Any]]]:
    """A row per run, part and task, a column per way of acting."""
    ways = list(dict.fromkeys(row.shots for row in returns))
    rows: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in returns:
        key = (row.env, row.algo, row.role, row.seed, row.part, row.task)
        rows.setdefault(key, {})[row.shots] = row.value
    columns = [*ABOUT, "part", "task", *ways]
    return columns, ([*key, *(held.get(way, "") for way in ways)] for key, held in rows.items())


def read(folder: Path) -> Frames:
    """Tables that `write` wrote.

    Raises:
        ConfigError: there are none in the folder, or one is damaged.
    """
    returns = []
    for row in _rows(folder / "returns.csv", (*ABOUT, "part", "task")):
        about = [row.pop(name) for name in (*ABOUT, "part", "task")]
        env, algo, what, seed, part, task = about
        for shots, value in row.items():
            if value:
                of_run = (env, algo, what, int(seed))
                returns.append(TaskReturn(*of_run, part, shots, task, float(value)))
    return Frames(
        _typed(folder / "runs.csv", Record),
        returns,
        _typed(folder / "scripted.csv", Bound),
        _typed(folder / "curves.csv", Point),
        _typed(folder / "probe.csv", Probed),
    )


def _rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    try:
        text = read_text(path)
    except FileError as error:
        raise ConfigError(f"{error}; --frames writes what --results reads") from None
    rows = list(csv.DictReader(io.StringIO(text)))
    if rows and not {*columns} <= rows[0].keys():
        raise ConfigError(f"{path}: must have the columns {', '.join(columns)}")
    return rows


def _typed(path: Path, kind: Any) -> list[Any]:
    """Rows of a table, in the types of a NamedTuple's fields."""
    types, found = get_type_hints(kind), []
    for number, row in enumerate(_rows(path, kind._fields), 2):
        try:
            values = [types[name](row[name]) for name in kind._fields]
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{path}: line {number}: {error}") from None
        found.append(kind(*values))
    return found
