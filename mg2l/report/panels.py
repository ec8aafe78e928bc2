"""What a page is made of, and how its figures look.

Plotly reads tags in names and labels, so that what is written there is escaped as in HTML.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from mg2l.config.files import DEFAULTS
from mg2l.evaluation import statistics

COLOURS = (
    *("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#7f7f7f", "#8c564b"),
    *("#9467bd", "#b8a200", "#17375e", "#c44e52"),
)
"""Those of Okabe and Ito first, which the colour-blind can tell apart."""

DASHES = ("solid", "dash", "dot")

BANDS = 8
"""Algorithms shown in a figure, at most, for intervals to be drawn along its curves."""


@dataclass
class Panel:
    """A figure with what it shows.

    Attributes:
        title: in a few words.
        caption: how to read it.
        figure: of plotly; traces with ``meta`` belong to the algorithm of that name.
        wide: takes the page's whole width.
    """

    title: str
    caption: str
    figure: go.Figure
    wide: bool = False


@dataclass
class Section:
    """Panels under one heading, or HTML before them.

    Attributes:
        title: of the heading.
        text: what all panels have in common, plain.
        html: tables and films.
    """

    title: str
    text: str = ""
    html: str = ""
    panels: list[Panel] = field(default_factory=list)


def ordered(names: Iterable[str]) -> list[str]:
    """Algorithms as they are listed everywhere, the default one first.

    Those of several configurations stand side by side.
    """

    def place(name: str) -> tuple[int, str]:
        return int(name.partition(" (")[0] != DEFAULTS["algo"]), name

    return sorted({*names}, key=place)


@dataclass
class Style:
    """How each algorithm looks, in all figures of a page alike.

    Args:
        algos: all of the page, `ordered`.
    """

    algos: list[str]

    def colour(self, algo: str) -> str:
        """As CSS knows it."""
        return COLOURS[self.algos.index(algo) % len(COLOURS)]

    def dash(self, algo: str) -> str:
        """Of lines, where colours are used again."""
        return DASHES[self.algos.index(algo) // len(COLOURS) % len(DASHES)]

    def line(self, algo: str, x: Any, y: Any, **more: Any) -> go.Scatter:
        """A line, or points with ``mode``."""
        look = {"color": self.colour(algo), "dash": self.dash(algo), "width": 2}
        values = {"x": x, "y": y, "mode": "lines", "line": look, "meta": algo, **more}
        return go.Scatter(name=escape(algo), **values)

    def band(self, algo: str, x: Any, low: Any, high: Any, among: int) -> go.Scatter:
        """What lies between two lines, shown in a figure of not too many algorithms."""
        x, low, high = (np.asarray(values, float) for values in (x, low, high))
        gaps = np.flatnonzero(~np.isfinite(low))
        parts = [part for part in np.split(np.arange(len(x)), gaps) if np.isfinite(low[part]).any()]
        held = [part[np.isfinite(low[part])] for part in parts]
        nan = [float("nan")]  # between polygons
        return go.Scatter(
            x=np.concatenate([[*x[part], *x[part[::-1]], *nan] for part in held] or [nan]),
            y=np.concatenate([[*high[part], *low[part[::-1]], *nan] for part in held] or [nan]),
            fill="toself",
            fillcolor=_faint(self.colour(algo)),
            line={"width": 0},
            hoverinfo="skip",
            visible=among <= BANDS,
            name=escape(algo),
            meta=algo,
            showlegend=False,
        )


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.15)"


def figure(x: str, y: str, height: int = 340, **layout: Any) -> go.Figure:
    """An empty figure with named axes."""
    found = go.Figure()
    axis = {"gridcolor": "#e8e8e8", "zerolinecolor": "#cccccc", "automargin": True}
    found.update_layout(
        template="none",
        height=height,
        margin={"l": 50, "r": 12, "t": 28, "b": 44},
        font={"family": "system-ui, sans-serif", "size": 12, "color": "#222222"},
        showlegend=False,
        hovermode="closest",
        xaxis={"title": {"text": x}, **axis},
        yaxis={"title": {"text": y}, **axis},
    )
    found.update_layout(**layout)
    return found


def forest(
    style: Style, intervals: dict[str, statistics.Interval], x: str, reference: float | None = None
) -> go.Figure:
    """An estimate and its interval per algorithm, one under the other."""
    found = figure(x, "", height=90 + 22 * max(3, len(intervals)), margin={"l": 10})
    for name in reversed(intervals):
        value, low, high = intervals[name]
        error = None
        if np.isfinite(low):
            error = {"array": [high - value], "arrayminus": [value - low], "thickness": 2}
        found.add_trace(
            style.line(
                name,
                [value],
                [escape(name)],
                mode="markers",
                marker={"color": style.colour(name), "size": 9},
                error_x=error,
            )
        )
    if reference is not None:
        found.add_vline(reference, line={"color": "#999999", "dash": "dot"})
    return found


def seeds(count: int) -> str:
    """How many runs, in words."""
    return f"{count} seed" + ("s" if count != 1 else "")
