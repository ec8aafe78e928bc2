"""A search for configurations: what mattered, every trial, and the table."""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape
from pathlib import Path

import mg2l
from mg2l.core.files import write_text
from mg2l.report import page
from mg2l.report.panels import COLOURS, Panel, Section, Style, figure
from mg2l.tuning.space import text
from mg2l.tuning.summary import Result, cells


def sections(result: Result) -> list[Section]:
    """The part of a page that is about a search."""
    header, rows = cells(result)
    found = [Section("Trials", html=page.table(header, rows))]
    if result.importances:
        found.append(Section("What mattered", panels=[importance(result)]))
    found.append(slices(result))
    return found


def importance(result: Result) -> Panel:
    """Fraction of the objective's variance that each key explains."""
    names = list(reversed(result.importances))
    drawn = figure("part of the variance", "", 90 + 24 * max(3, len(names)), margin={"l": 10})
    values = [result.importances[name] for name in names]
    labels = [escape(name) for name in names]
    drawn.add_bar(x=values, y=labels, orientation="h", marker={"color": COLOURS[0]})
    drawn.update_xaxes(range=[0, 1])
    caption = (
        f"fANOVA (Hutter et al., 2014): how much of the variance of {result.metric} at iteration "
        f"{result.compared} each key explains, over the values that were searched."
    )
    return Panel("Importance of the keys", caption, drawn, wide=True)


def slices(result: Result) -> Section:
    """The objective over each key, a point per trial."""
    section = Section(
        "Objective over each key",
        "Filled: trials that reached the last iteration; hollow: stopped early, with their last "
        "value. The best is marked.",
    )
    measured = [row for row in result.trials if row["value"] is not None]
    far = max((row["iteration"] for row in measured), default=0)
    for name, log in result.keys.items():
        numeric = all(isinstance(row["params"][name], (int, float)) for row in measured)
        drawn = figure(escape(name), escape(result.metric))
        if log:
            drawn.update_xaxes(type="log")
        elif not numeric:
            drawn.update_xaxes(type="category")
        drawn.add_scatter(
            x=[v if numeric else text(v) for v in (row["params"][name] for row in measured)],
            y=[row["value"] for row in measured],
            mode="markers",
            marker={
                "size": [14 if row["trial"] == result.best else 8 for row in measured],
                "color": COLOURS[0],
                "symbol": ["circle" if r["iteration"] == far else "circle-open" for r in measured],
            },
            text=[f"trial {row['trial']}, iteration {row['iteration']}" for row in measured],
        )
        section.panels.append(Panel(name, "", drawn))
    return section


def write(path: Path, result: Result) -> None:
    """Write a page about a search alone. Raises WriteError."""
    about = f"{len(result.trials)} trials, written {time.strftime('%Y-%m-%d %H:%M')} by mg2l "
    title = f"MG2L: search for {result.mode} {result.metric}"
    parts: dict[str, Sequence[Section]] = {"Search": sections(result)}
    write_text(path, page.html(title, about + mg2l.__version__, Style([]), parts))
