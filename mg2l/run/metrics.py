"""Metrics of each iteration, to ``metrics.jsonl``, TensorBoard and Weights & Biases."""

from __future__ import annotations

import json
import math
import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mg2l.packages import require


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
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            found.update(scalars(value, f"{prefix}{name}/"))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[prefix + name] = value
    return found


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """The objects of a ``metrics.jsonl``; a last line that was cut short is left out."""
    rows = []
    for line in Path(path).read_bytes().splitlines(keepends=True):
        row = _row(line)
        if row is None:
            break
        rows.append(row)
    return rows


def _row(line: bytes) -> dict[str, Any] | None:
    """A line that was written to its end and holds an iteration, else None."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("iteration"), int) else None


def truncate(path: Path | str, iteration: int) -> int:
    """Cut a ``metrics.jsonl`` after the line of ``iteration``; later lines will be written again.

    Returns:
        Lines that remain.
    """
    path = Path(path)
    if not path.exists():
        return 0
    size = count = 0
    with path.open("r+b") as file:
        for line in file:
            row = _row(line)
            if row is None or row["iteration"] > iteration:
                break
            size += len(line)
            count += 1
        file.truncate(size)
        os.fsync(file.fileno())
    return count


def _wandb_mode() -> str:
    """``WANDB_MODE``, or online where a key is at hand, or offline: it never asks for a login."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    try:
        hosts = netrc.netrc().hosts
    except (OSError, netrc.NetrcParseError):
        return "offline"
    return "online" if any("wandb" in host for host in hosts) else "offline"


class MetricsLogger:
    """Writes metrics; each line of ``metrics.jsonl`` is with the system before ``log`` returns.

    Args:
        folder: the run's folder.
        start: iterations already done, of the checkpoint that a run goes on from; whatever was
            logged after it is dropped from ``metrics.jsonl`` and hidden in TensorBoard.
        tensorboard: also write events to ``folder/tensorboard``.
        wandb: also log to Weights & Biases, offline unless a key for it is found.
        config: what Weights & Biases shows as the run's config.

    Raises:
        ConfigError: ``wandb`` is asked for and not installed.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        start: int = 0,
        tensorboard: bool = True,
        wandb: bool = False,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(folder) / "metrics.jsonl"
        self._wandb: Any = self._start_wandb(Path(folder), config or {}) if wandb else None
        truncate(self.path, start)
        self._file = self.path.open("a", encoding="utf-8", buffering=1)
        self._events: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(
                str(Path(folder) / "tensorboard"), purge_step=start + 1 if start else None
            )

    @staticmethod
    def _start_wandb(folder: Path, config: Mapping[str, Any]) -> Any:
        require("log_wandb=true", "wandb", extra="wandb")
        import wandb

        name = "-".join(folder.resolve().parts[-3:])
        return wandb.init(
            project="mg2l",
            name=name,
            id=name,
            resume="allow",
            dir=str(folder),
            config=dict(config),
            mode=_wandb_mode(),
        )

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Write the metrics of one iteration.

        Args:
            metrics: ``iteration`` and numbers, one-element tensors or nested mappings of them;
                NaN and infinities are written as null.

        Raises:
            TypeError: something else is among them.
            KeyError: there is no ``iteration``.
        """
        row = _plain(metrics)
        iteration = row["iteration"]
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        numbers = scalars(row)
        if self._events is not None:
            for name, value in numbers.items():
                if name != "iteration":
                    self._events.add_scalar(name, value, iteration)
        if self._wandb is not None:
            self._wandb.log(numbers, step=iteration)

    def flush(self) -> None:
        """Bring every line to the disk: call it before the checkpoint of the same iteration."""
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        """Write what is left and close."""
        if not self._file.closed:
            self.flush()
            self._file.close()
        if self._events is not None:
            self._events.close()
        if self._wandb is not None:
            self._wandb.finish()

    def __enter__(self) -> MetricsLogger:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
