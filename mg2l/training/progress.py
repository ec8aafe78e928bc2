"""Progress of a command: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task
from rich.text import Text

LINE_INTERVAL = 10.0
"""Seconds between two plain lines of a `Bar`."""

BAR = 20
"""Width of a live bar; a narrow terminal has a shorter one, or none below `SHORTEST`."""

SHORTEST = 5


_Bar = TypeVar("_Bar", bound="Bar")


def clock(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def summary(metrics: Mapping[str, Any]) -> str:
    """Return, mutual information (global and local) [nats] and speed, where they are known."""
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


def tested_return(metrics: Mapping[str, Any]) -> float | None:
    """Return of the meta-test in these metrics: on validation tasks, after the most shots.

    On held-out tasks where there are none of these, and else on training tasks; None where there
    was no meta-test.
    """
    for part in ("validation", "test", "train"):
        by_shots = {}
        for name, value in metrics.items():
            if name.startswith(f"eval/{part}_") and value is not None:
                by_shots[int(name.removeprefix(f"eval/{part}_").partition("_")[0])] = float(value)
        if by_shots:
            return by_shots[max(by_shots)]
    return None


class _Line(ProgressColumn):
    """One live line that fits into the terminal."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def render(self, task: Task) -> Text:
        count = f"{task.completed:,.0f}/{task.total or 0:,.0f} {task.fields['unit']}".strip()
        fraction = task.completed / task.total if task.total else 0.0
        fields = (task.fields["text"], clock(task.elapsed or 0.0))
        shown = live_line(task.description, count, fraction, *fields, self.console.width)
        return Text(shown, no_wrap=True, overflow="ellipsis")


def live_line(title: str, count: str, fraction: float, text: str, time: str, width: int) -> str:
    """A line of progress of at most ``width`` characters.

    Where these are too few, parts of the text (two spaces are between them) are left out, the
    second first and the first last, then the bar, then the end of the title.

    >>> live_line("iteration", "3/9", 1 / 3, "return 1.5  test 2.0", "0:07", 60)
    'iteration 3/9  ━━━━━━───────────  return 1.5  test 2.0  0:07'
    >>> live_line("iteration", "3/9", 1 / 3, "return 1.5  test 2.0", "0:07", 32)
    'iteration 3/9  return 1.5  0:07'
    """
    parts = [part for part in text.split("  ") if part]
    while parts and len("  ".join([f"{title} {count}", *parts, time])) > width:
        parts.pop(1 if len(parts) > 1 else 0)
    bar = min(BAR, width - len("  ".join([f"{title} {count}", "", *parts, time])))
    if bar >= SHORTEST:
        done = round(fraction * bar)
        parts.insert(0, "━" * done + "─" * (bar - done))
    room = width - len("  ".join([f" {count}", *parts, time]))
    if room < len(title):
        title = f"{title[: max(room - 1, 0)]}…"
    return "  ".join([f"{title} {count}", *parts, time])


class Bar:
    """Progress of some work, to be used in a ``with`` block, which leaves the terminal as it was.

    On a terminal a live bar with the time that has passed; elsewhere a line at the start, every
    `LINE_INTERVAL` seconds and at the end.

    Args:
        title: name of the work.
        total: units in all; `update` may change it.
        unit: name of a unit, such as ``steps``.
        console: where to write; by default standard output.
        done: units at the start.
    """

    def __init__(
        self, title: str, total: int, unit: str = "", console: Console | None = None, done: int = 0
    ) -> None:
        self.title, self.total, self.unit, self.done = title, total, unit, done
        self.console = console or Console()
        self.live = self.console.is_terminal and not self.console.is_dumb_terminal
        self.text = ""
        self._began = self._shown = time.monotonic()
        self._bar: Progress | None = None
        if self.live:
            self._bar = Progress(_Line(self.console), console=self.console, refresh_per_second=4)

    @property
    def elapsed(self) -> float:
        """Wall time [s] since the start."""
        return time.monotonic() - self._began

    def start(self) -> None:
        """Show it; in a ``with`` block, this is done."""
        self._began = self._shown = time.monotonic()
        if self._bar is not None:
            self._task = self._bar.add_task(
                self.title, total=self.total, completed=self.done, text=self.text, unit=self.unit
            )
            self._bar.start()
        else:
            self._show_line()

    def close(self, complete: bool = False) -> None:
        """Leave the terminal as it was; where the work is complete, a last line says so."""
        if self._bar is not None:
            self._bar.stop()
        elif complete:
            self._show_line()

    def __enter__(self: _Bar) -> _Bar:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self.close(complete=kind is None)

    def update(self, done: int, text: str = "", total: int | None = None) -> None:
        """Show that ``done`` units are complete, and ``text`` beside the bar."""
        self.done, self.text = done, text
        self.total = max(self.total if total is None else total, done)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=self.total, text=text)
        elif time.monotonic() - self._shown >= LINE_INTERVAL:
            self._show_line()

    def advance(self, units: int = 1, text: str = "") -> None:
        """Show that ``units`` more are complete."""
        self.update(self.done + units, text)

    def note(self, text: str) -> None:
        """Write a line of its own, above the live one."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        self.console.file.flush()

    def _show_line(self) -> None:
        self._shown = time.monotonic()
        count = f"{self.done:,}/{self.total:,} {self.unit}".strip()
        self.note(
            f"{self.title}: {count}  {self.text}  {clock(self.elapsed)}".replace("    ", "  ")
        )


class RunProgress(Bar):
    """Progress of a run: its metrics beside the bar, a plain line every ``log_interval``.

    Args:
        n_iters: iterations of the whole run.
        start: iterations already done.
        log_interval: iterations between two plain lines; the last iteration always has one.
        console: where to write; by default standard output.
    """

    def __init__(
        self, n_iters: int, start: int = 0, log_interval: int = 1, console: Console | None = None
    ) -> None:
        super().__init__("iteration", n_iters, console=console, done=start)
        self.n_iters, self.log_interval = n_iters, log_interval
        self._start = start
        self._tested: float | None = None

    def _show_line(self) -> None:
        """Nothing at the start and at the end: there are lines of iterations."""

    def eta(self, iteration: int) -> float:
        """Seconds that the remaining iterations take at the pace so far."""
        done = iteration - self._start
        pace = self.elapsed / done if done > 0 else 0.0
        return pace * max(self.n_iters - iteration, 0)

    def show(self, iteration: int, metrics: Mapping[str, Any]) -> None:
        """Show an iteration that is complete: its metrics, and the last return of a meta-test."""
        tested = tested_return(metrics)
        self._tested = self._tested if tested is None else tested
        parts = [summary(metrics)]
        if self._tested is not None:
            parts.append(f"test {self._tested:.1f}")
        parts.append(f"ETA {clock(self.eta(iteration))}")
        text = "  ".join(part for part in parts if part)
        self.update(iteration, text)
        if self.live:
            return
        if iteration % self.log_interval == 0 or iteration >= self.n_iters:
            width = len(str(self.n_iters))
            line = f"iteration {iteration:{width}}/{self.n_iters}  {text}"
            self.note(f"{line}  {clock(self.elapsed)} elapsed")
