"""Metrics of each iteration, to ``metrics.jsonl`` and trackers."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mg2l.core import files
from mg2l.core.files import parse_json, read_bytes, write_all
from mg2l.training.trackers.base import Tracker

MAX_METRICS = 2**30
"""Bytes of a ``metrics.jsonl`` at most."""


def _plain(value: Any) -> Any:
    """Numbers as JSON knows them: NaN and infinities become null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if hasattr(value, "tolist"):  # tensors, arrays and their scalars
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{type(value).__name__} is not a metric")


def scalars(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers among plain metrics, nested ones under ``outer/inner``."""
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            flat.update(scalars(value, f"{prefix}{name}/"))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            flat[prefix + name] = value
    return flat


def read_metrics(path: Path | str, inside: Path | None = None) -> list[dict[str, Any]]:
    """The objects of a ``metrics.jsonl``; a last line that was cut short is left out.

    Args:
        path: path of the file.
        inside: folder that it must lie in.

    Raises:
        FileError: it cannot be read, or a line is not the metrics of an iteration.
    """
    lines = read_bytes(path, inside=inside, most=MAX_METRICS).splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    return [_row(line, f"{path}: line {number}") for number, line in enumerate(lines, 1)]


def _row(line: bytes, name: str) -> dict[str, Any]:
    """A line as an object with an iteration. Raises FileError."""
    row: dict[str, Any] = files.require(parse_json(line, name), {"iteration": int}, name)
    return row


def truncate(path: Path | str, iteration: int) -> int:
    """Cut a ``metrics.jsonl`` after the line of ``iteration``; later lines will be written again.

    Returns:
        Lines that remain: fewer than ``iteration`` where some are lost.

    Raises:
        FileError: it cannot be read, or a line that should remain is not the metrics of an
            iteration; nothing is cut then.
        OSError: it cannot be written.
    """
    path = Path(path)
    if not path.exists():
        return 0
    size = count = last = 0
    for line in read_bytes(path, most=MAX_METRICS).splitlines(keepends=True):
        if last >= iteration or not line.endswith(b"\n"):
            break
        last = _row(line, f"{path}: line {count + 1}")["iteration"]
        if last > iteration:
            break
        size += len(line)
        count += 1
    with path.open("r+b") as file:
        file.truncate(size)
        os.fsync(file.fileno())
    return count


class MetricsLogger:
    """Writes metrics; each line of ``metrics.jsonl`` is with the system when ``log`` returns.

    Args:
        folder: the run's folder.
        start: iterations of the checkpoint that a run resumes from; metrics
            logged after it are dropped from ``metrics.jsonl``.
        trackers: what else shows the metrics; closed with this.

    Raises:
        FileError: a line of ``metrics.jsonl`` that should remain is none.
        OSError: something cannot be written; so do all methods.

    Attributes:
        kept: lines of before ``start`` that ``metrics.jsonl`` has.
        dropped: whether it had others.
    """

    def __init__(
        self, folder: Path | str, *, start: int = 0, trackers: Sequence[Tracker] = ()
    ) -> None:
        self.path = Path(folder) / "metrics.jsonl"
        self._trackers = trackers
        before = self.path.stat().st_size if self.path.exists() else 0
        self.kept = truncate(self.path, start)
        self._file = self.path.open("ab", buffering=0)
        self.dropped = self._file.tell() < before

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Write the metrics of one iteration.

        Args:
            metrics: ``iteration`` and numbers, one-element tensors or nested mappings of them;
                NaN and infinities are written as null.

        Raises:
            OSError: it cannot be written, or the run's folder was removed.
            TypeError: something else is among them.
            KeyError: there is no ``iteration``.
        """
        row = _plain(metrics)
        iteration = row["iteration"]
        self._append(json.dumps(row, allow_nan=False).encode() + b"\n")
        numbers = scalars(row)
        for tracker in self._trackers:
            tracker.log(numbers, iteration)

    def _append(self, line: bytes) -> None:
        """Write a whole line or nothing."""
        handle, before = self._file.fileno(), self._file.tell()
        if os.fstat(handle).st_nlink == 0:
            raise FileNotFoundError(errno.ENOENT, "it was removed", str(self.path))
        try:
            write_all(handle, line)
        except OSError as error:
            os.ftruncate(handle, before)
            raise OSError(error.errno, error.strerror, str(self.path)) from None

    def flush(self) -> None:
        """Flush every line to the disk: call it before the checkpoint of the same iteration."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        for tracker in self._trackers:
            tracker.close()

    def __enter__(self) -> MetricsLogger:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
