"""Adaptation scores: 0 is mappo and 1 the oracle, task by task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mg2l.evaluation.adaptation import PARTS, Adaptation
from mg2l.report import page
from mg2l.report.panels import Panel, Section, Style, figure, seeds


def section(style: Style, found: Sequence[Adaptation]) -> Section:
    """Scores of each part of the tasks over the ways of acting, and a table of all of them.

    Args:
        style: colours of the algorithms.
        found: what was measured in one environment.
    """
    scored = [part for part in found if part.scores]
    drawn = Section(
        "Adaptation",
        "Task by task 0 is the mean return of mappo and 1 that of the oracle. Interquartile mean "
        "over runs and tasks; intervals: 95 % bootstrap over tasks and runs. K: episodes of "
        "exploration before acting; online: none, an agent learns of the task while it acts.",
        "".join(_table(part) for part in found),
    )
    for part in scored:
        shown = figure("episodes of exploration", "adaptation score", xaxis_type="category")
        for algo in style.algos:
            points = [(name, part.interval(algo, name)) for name in part.shots]
            held = [(name, interval) for name, interval in points if interval is not None]
            if not held:
                continue
            error: dict[str, Any] = {
                "array": [interval.high - interval.value for _, interval in held],
                "arrayminus": [interval.value - interval.low for _, interval in held],
                "thickness": 1,
            }
            names, values = zip(*((name, interval.value) for name, interval in held), strict=True)
            shown.add_trace(style.line(algo, names, values, mode="lines+markers", error_y=error))
        title = f"Adaptation to {PARTS[part.part]}"
        drawn.panels.append(Panel(title, f"{part.notes[0]}.", shown))
    return drawn


def _table(part: Adaptation) -> str:
    header = [PARTS[part.part], "runs"]
    header += [f"K = {name}" if name.isdigit() else name for name in part.shots]
    rows = []
    for algo, by_shots in part.scores.items():
        cells = [algo, seeds(max(len(held) for held in by_shots.values()))]
        for name in part.shots:
            interval = part.interval(algo, name)
            cells.append("" if interval is None else "{:.2f} [{:.2f}, {:.2f}]".format(*interval))
        rows.append(cells)
    notes = page.lines([f"{PARTS[part.part]}: {note}" for note in part.notes])
    return (page.table(header, rows) if rows else "") + notes
