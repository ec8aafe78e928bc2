"""``metrics.csv`` in the run's folder: a row per iteration, a column per number."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mg2l.training.metrics import read_metrics, scalars


class CsvFile:
    """A new table of the run's rows in ``metrics.jsonl``, to which rows are appended.

    A number that comes first in a later iteration gets the last column, and the table is written
    again; cells above are empty.

    Args:
        folder: the run's.
        iteration: up to which rows are kept.

    Raises:
        FileError: ``metrics.jsonl`` cannot be read; so does `log`.
        OSError: the table cannot be written; so does `log`.
    """

    def __init__(self, folder: Path, iteration: int) -> None:
        self.path, self._record = folder / "metrics.csv", folder / "metrics.jsonl"
        self._columns = ["iteration"]
        self._write_all(iteration)

    def log(self, numbers: Mapping[str, float], iteration: int) -> None:
        """See `Tracker.log`; ``metrics.jsonl`` has the row already."""
        if set(numbers) <= set(self._columns):
            self._write("ab", [numbers])
        else:
            self._write_all(iteration)

    def close(self) -> None:
        """See `Tracker.close`."""

    def _write_all(self, iteration: int) -> None:
        """Write the table of ``metrics.jsonl`` up to an iteration."""
        rows = read_metrics(self._record) if self._record.exists() else []
        numbers = [scalars(row) for row in rows if row["iteration"] <= iteration]
        self._columns = list(
            dict.fromkeys([*self._columns, *(name for x in numbers for name in x)])
        )
        self._write("wb", [{name: name for name in self._columns}, *numbers])

    def _write(self, mode: str, rows: Sequence[Mapping[str, Any]]) -> None:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, lineterminator="\n").writerows(rows)
        with self.path.open(mode) as file:
            file.write(text.getvalue().encode())


def start(folder: Path, iteration: int, config: Mapping[str, Any]) -> CsvFile:
    """A table of a run."""
    return CsvFile(folder, iteration)
