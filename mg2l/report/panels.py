"""Parts of a page, and the style of its figures.

Plotly interprets tags in names and labels, so these are escaped as in HTML.
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
    *("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8a8a8a", "#a0695c"),
    *("#9467bd", "#a39a00"),
)
"""Those of Okabe and Ito first, which the colour-blind can distinguish; on white and on black."""

DASHES = {"solid": "", "dash": "7 4", "dot": "2 3", "dashdot": "7 3 2 3"}
"""Dashes of lines by plotly's names, and as SVG has them."""

SYMBOLS = ("circle", "diamond-open", "square", "triangle-up-open")

BANDS = 8
"""Algorithms shown in a figure, at most, for intervals to be drawn along its curves."""


@dataclass
class Panel:
    """A figure with its title and caption.

    Attributes:
        title: in a few words.
        caption: how to read it.
        figure: a plotly figure; traces with ``meta`` belong to the algorithm of that name.
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
        title: text of the heading.
        text: plain text about all panels.
        html: tables and videos.
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
    """Style of each algorithm, the same in all figures of a page.

    Args:
        algos: all algorithms of the page, `ordered`.
    """

    algos: list[str]

    def colour(self, algo: str) -> str:
        """Colours as CSS."""
        return COLOURS[self.algos.index(algo) % len(COLOURS)]

    def dash(self, algo: str) -> str:
        """Dashes of lines, where colours are used again."""
        return list(DASHES)[self._turn(algo)]

    def symbol(self, algo: str) -> str:
        """Symbols of points, likewise."""
        return SYMBOLS[self._turn(algo)]

    def _turn(self, algo: str) -> int:
        return self.algos.index(algo) // len(COLOURS) % len(DASHES)

    def sample(self, algo: str) -> str:
        """A piece of its line, as SVG."""
        return (
            f'<line x1="0" x2="26" y1="5" y2="5" stroke="{self.colour(algo)}" stroke-width="3" '
            f'stroke-dasharray="{DASHES[self.dash(algo)]}"/>'
        )

    def line(self, algo: str, x: Any, y: Any, **more: Any) -> go.Scatter:
        """A line, or points with ``mode``."""
        look = {"color": self.colour(algo), "dash": self.dash(algo), "width": 2}
        values = {"x": plain(x), "y": plain(y), "mode": "lines", "line": look, "meta": algo}
        marker = {"symbol": self.symbol(algo), "size": 7}
        return go.Scatter(name=escape(algo), **(values | {"marker": marker} | more))

    def band(self, algo: str, x: Any, low: Any, high: Any, among: int) -> go.Scatter:
        """The band between two lines, in figures of not too many algorithms."""
        x, low, high = (np.asarray(values, float) for values in (x, low, high))
        gaps = np.flatnonzero(~np.isfinite(low))
        parts = [part for part in np.split(np.arange(len(x)), gaps) if np.isfinite(low[part]).any()]
        held = [part[np.isfinite(low[part])] for part in parts]
        nan = [float("nan")]  # between polygons
        return go.Scatter(
            x=plain([at for p in held for at in (*x[p], *x[p[::-1]], *nan)] or nan),
            y=plain([at for p in held for at in (*high[p], *low[p[::-1]], *nan)] or nan),
            mode="lines",  # by default short ones have markers
            fill="toself",
            fillcolor=_faint(self.colour(algo)),
            line={"width": 0},
            hoverinfo="skip",
            visible=among <= BANDS,
            name=escape(algo),
            meta=algo,
            showlegend=False,
        )


def plain(values: Any) -> list[Any]:
    """Values as a list, numbers with six digits, which is all that a figure can show."""
    return [float(f"{x:.6g}") if isinstance(x, float) else x for x in np.asarray(values).tolist()]


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.15)"


def figure(x: str, y: str, height: int = 340, **layout: Any) -> go.Figure:
    """An empty figure with named axes."""
    found = go.Figure()
    axis = {"automargin": True}
    found.update_layout(
        template="none",
        height=height,
        margin={"l": 50, "r": 12, "t": 28, "b": 44},
        font={"family": "system-ui, sans-serif", "size": 12},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "#8a8a8a", "activecolor": "#56b4e9"},
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
                marker={"color": style.colour(name), "symbol": style.symbol(name), "size": 9},
                error_x=error,
            )
        )
    if reference is not None:
        found.add_vline(reference, line={"color": "#999999", "dash": "dot"})
    return found


def seeds(count: int) -> str:
    """How many runs, in words."""
    return f"{count} seed" + ("s" if count != 1 else "")
