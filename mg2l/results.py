"""Runs as they lie on disk: metrics, configuration, and what was measured of them afterwards."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from mg2l.run.metrics import read_metrics, scalars

Array = NDArray[np.float64]
FILMS = (".gif", ".mp4")


@dataclass(frozen=True)
class Run:
    """One training, finished or not.

    Attributes:
        folder: ``.../<env>/<algo>/<time>-sd<seed>``.
        rows: an object per iteration.
    """

    folder: Path
    rows: list[dict[str, Any]]

    @property
    def algo(self) -> str:
        """Name of the algorithm's configuration."""
        return self.folder.parent.name

    @property
    def env(self) -> str:
        """Name of the environment's configuration."""
        return self.folder.parent.parent.name

    @property
    def seed(self) -> int | None:
        """Of the training."""
        if "seed" in self.config:
            return int(self.config["seed"])
        found = re.search(r"-sd(\d+)", self.folder.name)
        return int(found[1]) if found else None

    @cached_property
    def config(self) -> dict[str, Any]:
        """Every value of the run by its dotted key; empty where there is no ``config.yaml``."""
        path = self.folder / "config.yaml"
        if not path.exists():
            return {}
        return _flat(yaml.safe_load(path.read_text(encoding="utf-8")) or {})

    @cached_property
    def evaluation(self) -> dict[str, Any] | None:
        """What ``mg2l.evaluate`` wrote, if it has."""
        return _read(self.folder / "evaluation.json")

    @cached_property
    def probe(self) -> dict[str, Any] | None:
        """What ``mg2l.probe`` wrote, if it has."""
        return _read(self.folder / "probe.json")

    @property
    def films(self) -> list[Path]:
        """Films below ``videos/``."""
        found = sorted((self.folder / "videos").glob("*"))
        return [path for path in found if path.suffix in FILMS]

    def within(self, env_steps: int | None) -> list[dict[str, Any]]:
        """Rows up to a number of environment steps."""
        return [row for row in self.rows if env_steps is None or row["env_steps"] <= env_steps]

    def last_return(self, last: int, env_steps: int | None = None) -> float:
        """Mean return of the last iterations, or of the last ones within ``env_steps``.

        NaN where there is none.
        """
        rows = self.within(env_steps)[-last:]
        return float(np.mean([row["return"] for row in rows])) if rows else float("nan")

    def last_by_task(self, last: int, env_steps: int | None = None) -> dict[str, float]:
        """The same for each training task; those that were not met are not in it."""
        met: dict[str, list[float]] = {}
        for row in self.within(env_steps)[-last:]:
            for task, value in row.get("return_by_task", {}).items():
                if value is not None:
                    met.setdefault(task, []).append(value)
        return {task: float(np.mean(values)) for task, values in met.items()}

    def curve(self, name: str) -> tuple[Array, Array]:
        """Environment steps and values of a metric, where it was logged and is a number."""
        found = [(row["env_steps"], scalars(row).get(name)) for row in self.rows]
        kept = [(steps, value) for steps, value in found if value is not None]
        steps, values = zip(*kept, strict=True) if kept else ((), ())
        return np.asarray(steps, float), np.asarray(values, float)


def find(folders: Iterable[Path]) -> list[Run]:
    """Every run in or below the folders that has logged an iteration, by environment and name."""
    paths = {
        path.parent.resolve(): path for folder in folders for path in folder.rglob("metrics.jsonl")
    }
    runs = [Run(folder, read_metrics(path)) for folder, path in paths.items()]
    return sorted((run for run in runs if run.rows), key=lambda run: run.folder.parts[-3:])


def by_algorithm(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs of each algorithm."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.algo, []).append(run)
    return found


def smooth(values: Sequence[float] | Array, window: int) -> Array:
    """Running mean over the window before each value."""
    sums = np.cumsum(np.insert(np.asarray(values, float), 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts), float)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _read(path: Path) -> dict[str, Any] | None:
    """A file of JSON, None where there is none or it was cut short."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
