"""What a run shows while it goes on: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn


def clock(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def summary(metrics: Mapping[str, Any]) -> str:
    """Return, mutual information (global and local) [nats] and speed, as far as they are known."""
    parts = []
    for name, keys, form in [
        ("return", ["return"], "{:.1f}"),
        ("MI", ["mi/global", "mi/local"], "{:.2f}"),
        ("steps/s", ["env_steps_per_s"], "{:,.0f}"),
    ]:
        values = [form.format(float(metrics[key])) for key in keys if metrics.get(key) is not None]
        if values:
            parts.append(f"{name} {'/'.join(values)}")
    return "  ".join(parts)


class RunProgress:
    """Progress of a run, to be used in a ``with`` block, which leaves the terminal as it was.

    Args:
        n_iters: iterations of the whole run.
        start: iterations already done.
        log_interval: iterations between two plain lines; the last iteration always has one.
        console: where to write; by default standard output.
    """

    def __init__(
        self, n_iters: int, start: int = 0, log_interval: int = 1, console: Console | None = None
    ) -> None:
        self.n_iters = n_iters
        self.log_interval = log_interval
        self.console = console or Console()
        self.live = self.console.is_terminal and not self.console.is_dumb_terminal
        self._start = start
        self._began = time.monotonic()
        self._task = TaskID(0)
        self._bar: Progress | None = None
        if self.live:
            self._bar = Progress(
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[text]}"),
                console=self.console,
                refresh_per_second=4,
            )
            self._task = self._bar.add_task("", total=n_iters, completed=start, text="")

    def __enter__(self) -> RunProgress:
        self._began = time.monotonic()
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def eta(self, iteration: int) -> float:
        """Seconds that the remaining iterations take at the pace so far."""
        done = iteration - self._start
        pace = (time.monotonic() - self._began) / done if done > 0 else 0.0
        return pace * max(self.n_iters - iteration, 0)

    def update(self, iteration: int, metrics: Mapping[str, Any]) -> None:
        """Show an iteration that is complete."""
        text = f"{summary(metrics)}  ETA {clock(self.eta(iteration))}".strip()
        if self._bar is not None:
            self._bar.update(self._task, completed=iteration, text=text)
        elif iteration % self.log_interval == 0 or iteration >= self.n_iters:
            width = len(str(self.n_iters))
            self._write(f"iteration {iteration:{width}}/{self.n_iters}  {text}")

    def note(self, text: str) -> None:
        """Write a line of its own, above the live one."""
        self._write(text)

    def _write(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        self.console.file.flush()
