"""One trial: an ordinary run, with the values that make it, and what was measured of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mg2l.cli.jobs import Job
from mg2l.core.files import FileError
from mg2l.training.metrics import read_metrics, scalars


@dataclass
class Trial(Job):
    """A trial of a search.

    Attributes:
        number: from 0, in the order of their beginnings.
        params: searched values by ``Key.path``.
        values: objective by iteration, at each decision.
        forked: number of the trial that it was forked from, and the iteration; None for a new one.
    """

    number: int = 0
    params: dict[str, Any] = field(default_factory=dict)
    values: dict[int, float] = field(default_factory=dict)
    forked: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        return f"trial-{self.number:04d}"

    @property
    def value(self) -> float | None:
        """The objective at the last decision."""
        return self.values[max(self.values)] if self.values else None

    def logged(self) -> set[str]:
        """Metrics that its run has logged."""
        run = self.run()
        if run is None or not (run / "metrics.jsonl").exists():
            return set()
        rows = read_metrics(run / "metrics.jsonl", run)
        return {name for row in rows for name in scalars(row)}


def measure(run: Path, metric: str, iteration: int) -> float | None:
    """The last value of a metric that a run has logged up to an iteration; None where it has none.

    Args:
        run: folder of the run.
        metric: of ``metrics.jsonl``, nested ones as ``outer/inner``.
        iteration: the last that counts.
    """
    try:
        rows = read_metrics(run / "metrics.jsonl", run)
    except FileError:
        return None
    found = [
        scalars(row)[metric]
        for row in rows
        if row["iteration"] <= iteration and metric in scalars(row)
    ]
    return found[-1] if found else None
