"""Runs on disk: metrics, configuration, and later measurements.

A run folder is data that people share. Whatever is damaged in one run, or leads out of its folder,
is left out with a line that says so, and the others are read all the same.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mg2l.config.algorithms import algorithms
from mg2l.config.keys import dotted
from mg2l.config.saved import upgrade
from mg2l.core.files import FileError, MissingFileError, read_json, read_yaml, require
from mg2l.training.metrics import read_metrics, scalars

Array = NDArray[np.float64]

VIDEOS = (".gif", ".mp4", ".webp")

LARGEST = 1e100
"""Magnitude of a number at most: means and variances of larger ones would overflow."""

ROW = {
    "iteration": int,
    "env_steps": float,
    "return?": (float, None),
    "return_by_task?": {...: (float, None)},
}
EVALUATION = {
    "results": [
        {
            "split": str,
            "mode": str,
            "shots": int,
            "sampling": str,
            "return": float,
            "by_task": {...: {"return": float}},
        }
    ],
    "scripted?": {...: {"random": float, "blind": float, "informed": float}},
    "mismatch?": {...: {"shots": int, "tasks": [str], "returns": [[float]]}},
}
PROBE = {
    "tasks": [(str, int)],
    "contexts": {...: {...: (float, {...: float})}},
    "maps": {...: {...: [[[float]]]}},
    "priorities?": [[[float]]],
}
TASKS = {"tasks": {"names": [str]}}
ORIGIN = {
    "started": {
        "commit": (str, None),
        "uncommitted_changes": (bool, None),
        "packages": {...: (str, None)},
        "cpu": (str, None),
        "cores": (int, None),
        "threads": int,
        "gpus": [str],
    }
}
"""Schemas of a row of ``metrics.jsonl``, of ``evaluation.json``, ``probe.json``, ``spaces.json``
and ``environment.json``."""


@dataclass(frozen=True, eq=False)
class Run:
    """One training, finished or not.

    Attributes:
        folder: ``.../<env>/<algo>/<time>-sd<seed>``.
        rows: an object per iteration, `ROW`; ``env_steps`` grows from one to the next.
        config: every value of the run by its dotted key; empty where there is no ``config.yaml``.
        evaluation: what ``mg2l.evaluate`` wrote, `EVALUATION`, if it has and was asked for.
        probe: what ``mg2l.probe`` wrote, `PROBE`, if it has and was asked for.
        tasks: names of the tasks, if measurements were asked for.
        origin: what it was made with, `ORIGIN`, if there is such a file and it was asked for.
    """

    folder: Path
    rows: list[dict[str, Any]]
    config: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] | None = None
    probe: dict[str, Any] | None = None
    tasks: list[str] = field(default_factory=list)
    origin: dict[str, Any] | None = None

    @property
    def algo(self) -> str:
        """Name of the algorithm's configuration."""
        return printable(self.folder.parent.name)

    @property
    def env(self) -> str:
        """Name of the environment's configuration."""
        return printable(self.folder.parent.parent.name)

    @property
    def seed(self) -> int | None:
        """Random seed of the training."""
        if "seed" in self.config:
            return int(self.config["seed"])
        found = re.search(r"-sd(\d+)", self.folder.name)
        return int(found[1]) if found else None

    @property
    def knows_task(self) -> bool:
        """Whether its algorithm is given the task, a bound for those that infer it."""
        name = str(self.config.get("algo_name"))
        return algorithms.knows(name) and algorithms.get(name).inference.knows_task

    @property
    def ignores_task(self) -> bool:
        """Whether its algorithm neither gets, infers nor remembers the task."""
        name, reset = str(self.config.get("algo_name")), self.config.get("policy.recurrent_reset")
        if not algorithms.knows(name) or reset == "task":
            return False
        return algorithms.get(name).inference.latent_source == "nothing"

    @property
    def videos(self) -> list[Path]:
        """Files below ``videos/`` whose names end as a video's do."""
        found = sorted((self.folder / "videos").glob("*"))
        return [path for path in found if path.suffix in VIDEOS]

    @cached_property
    def env_steps(self) -> Array:
        """Environment steps at the end of each iteration."""
        return np.asarray([row["env_steps"] for row in self.rows], float)

    @cached_property
    def numbers(self) -> list[dict[str, float]]:
        """The numbers of each iteration, nested ones as ``outer/inner``."""
        return [scalars(row) for row in self.rows]

    def curve(self, name: str) -> tuple[Array, Array]:
        """Environment steps and values of a metric, where it was logged and is a number."""
        held = [index for index, row in enumerate(self.numbers) if name in row]
        values = np.asarray([self.numbers[index][name] for index in held], float)
        return self.env_steps[held], values

    def mean_return(self, after: float, until: float) -> float:
        """Mean of ``return`` over ``after < env_steps <= until``, NaN where there is none."""
        steps, values = self.curve("return")
        inside = values[(after < steps) & (steps <= until)]
        return float(inside.mean()) if inside.size else float("nan")

    def mean_by_task(self, after: float, until: float) -> dict[str, float]:
        """The same for each training task that occurred."""
        met: dict[str, list[float]] = {}
        for row in self.rows:
            if after < row["env_steps"] <= until:
                for task, value in row.get("return_by_task", {}).items():
                    if value is not None:
                        met.setdefault(task, []).append(value)
        return {task: float(np.mean(values, dtype=float)) for task, values in met.items()}


def printable(text: object) -> str:
    """A text on one line, without characters that a terminal or an encoder cannot handle."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in str(text))


def age(folder: Path) -> list[int]:
    """Sort key of the run folders of one seed: the time at which they were started."""
    return [int(digits) for digits in re.findall(r"[0-9]+", folder.name)]


def find(folders: Iterable[Path], *, measured: bool = False) -> tuple[list[Run], list[str]]:
    """Every run in or below the folders that has logged an iteration, by environment and name.

    Args:
        folders: where to look; links to folders below them are not followed.
        measured: also read ``evaluation.json`` and ``probe.json``.

    Returns:
        The runs, and a line for each run or file that was skipped, saying why.
    """
    paths = {
        Path(base).resolve(): None
        for folder in folders
        for base, _, names in os.walk(folder)
        if "metrics.jsonl" in names
    }
    runs, skipped = [], []
    for folder in sorted(paths, key=lambda path: path.parts[-3:]):
        try:
            run, lines = read(folder, measured=measured)
        except FileError as error:
            skipped.append(printable(f"skipped: {error}"))
            continue
        skipped += lines
        if run.rows:
            runs.append(run)
    return runs, skipped


def read(folder: Path, *, measured: bool = False) -> tuple[Run, list[str]]:
    """A run, and a line for each file of measurements that was skipped.

    Raises:
        FileError: ``metrics.jsonl`` or ``config.yaml`` cannot be used.
    """
    rows, config = _rows(folder), _config(folder)
    if not measured:
        return Run(folder, rows, config), []
    skipped: list[str] = []
    evaluation = _if_usable(_evaluation, folder, skipped)
    probe = _if_usable(_probe, folder, skipped)
    about = _if_usable(_tasks, folder, skipped)
    tasks = [] if about is None else [printable(name) for name in about["tasks"]["names"]]
    origin = _if_usable(_origin, folder, skipped)
    return Run(folder, rows, config, evaluation, probe, tasks, origin), skipped


def _if_usable(
    reader: Callable[[Path], dict[str, Any]], folder: Path, skipped: list[str]
) -> dict[str, Any] | None:
    try:
        return reader(folder)
    except MissingFileError:
        return None
    except FileError as error:
        skipped.append(printable(f"skipped: {error}"))
        return None


def _rows(folder: Path) -> list[dict[str, Any]]:
    """Iterations of a run; a last line that was cut short is left out."""
    path = folder / "metrics.jsonl"
    rows = read_metrics(path, folder)
    before: tuple[float, float] = (-1, -1)
    for number, row in enumerate(rows, 1):
        name = f"{path}: line {number}"
        require(row, ROW, name)
        for key, value in scalars(row).items():
            if not abs(value) <= LARGEST:
                raise FileError(f"{name}: {key} must be a number up to {LARGEST}, got {value}")
        now = (row["iteration"], row["env_steps"])
        if not all(new > old for new, old in zip(now, before, strict=True)):
            raise FileError(
                f"{name}: iteration and env_steps must grow from line to line, got "
                f"{now[0]} and {now[1]} after {before[0]} and {before[1]}"
            )
        before = now
    return rows


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.yaml"
    try:
        found = dotted(read_yaml(path, inside=folder))
    except MissingFileError:
        return {}
    require(found, {"seed?": int, "n_iters?": int}, path)
    try:
        return upgrade(found)
    except ValueError:  # values that no run can have are left as they are
        return found


def _evaluation(folder: Path) -> dict[str, Any]:
    path = folder / "evaluation.json"
    found: dict[str, Any] = read_json(path, EVALUATION, inside=folder)
    for row in found["results"]:
        returns = [row["return"], *(task["return"] for task in row["by_task"].values())]
        _array(returns, path, "returns", (None,))
    for split, held in found.get("mismatch", {}).items():
        tasks = len(held["tasks"])
        _array(held["returns"], path, f"mismatch.{split}.returns", (tasks, tasks))
    return found


def _probe(folder: Path) -> dict[str, Any]:
    path = folder / "probe.json"
    found: dict[str, Any] = read_json(path, PROBE, inside=folder)
    tasks = len(found["tasks"])
    for level, ways in found["maps"].items():
        for way, points in ways.items():
            _array(points, path, f"maps.{level}.{way}", (tasks, None, 2))
    if "priorities" in found:
        _array(found["priorities"], path, "priorities", (tasks, None, None))
    return found


def _tasks(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(folder / "spaces.json", TASKS, inside=folder)
    return found


def _origin(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(folder / "environment.json", ORIGIN, inside=folder)
    return found


def _array(value: Any, path: Path, name: str, shape: tuple[int | None, ...]) -> None:
    """Raise FileError where nested lists are no array of ``shape``, None being any length."""
    wanted = " x ".join("any" if size is None else str(size) for size in shape)
    try:
        found = np.asarray(value, float)
    except ValueError:
        raise FileError(f"{path}: {name} must be {wanted} numbers, got lists that differ") from None
    fits = found.ndim == len(shape) and all(
        want in (None, size) for want, size in zip(shape, found.shape, strict=True)
    )
    if not fits:
        got = " x ".join(map(str, found.shape))
        raise FileError(f"{path}: {name} must be {wanted} numbers, got {got}")
    if not (np.abs(found) <= LARGEST).all():
        raise FileError(f"{path}: {name} must be numbers up to {LARGEST}, got NaN or larger ones")
