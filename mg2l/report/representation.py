"""Figures of the measurements of ``mg2l.probe``."""

from __future__ import annotations

import math
from html import escape
from typing import Any

import numpy as np

from mg2l.evaluation.results import Run
from mg2l.report.panels import COLOURS, Panel, Section, Style, figure, plain
from mg2l.report.training import Algorithms, named

FIGURES = {
    "linear": "linear model",
    "nearest": "neighbours",
    "silhouette": "silhouette",
    **{f"r2/{part}": f"R² {part}" for part in ("train", "validation", "test", "ood")},
}
"""Columns of the table and their heads, of which only those with numbers are shown."""

AXES = {"pca": "principal component", "umap": "coordinate of UMAP"}

LEGEND = {"orientation": "h", "y": -0.2, "yanchor": "top", "itemsizing": "constant"}

POINTS = 240
"""Contexts drawn in a map at most."""


def probed(runs: list[Run]) -> Run | None:
    """The first run that was probed."""
    return next((run for run in runs if run.probe), None)


def figures(algos: Algorithms) -> str:
    """Table of the figures, mean over seeds; empty where nothing was probed."""
    lines, shown = [], _measured(algos)
    for algo, runs in algos.items():
        held = [run.probe["contexts"] for run in runs if run.probe]
        if not held:
            continue
        for episodes in held[0]:
            cells = [f'<td class="name">{escape(algo)}</td>', f"<td>{escape(episodes)}</td>"]
            for level in ("global", "local"):
                cells += [f"<td>{_mean(held, episodes, level, name)}</td>" for name in shown]
            lines.append(f"<tr>{''.join(cells)}</tr>")
    if not lines:
        return ""
    names = "".join(f"<th>{FIGURES[name]}</th>" for name in shown)
    return (
        '<div class="scroll"><table><thead><tr><th rowspan="2">algorithm</th>'
        '<th rowspan="2">episodes</th>'
        f'<th colspan="{len(shown)}">z, joint</th>'
        f'<th colspan="{len(shown)}">z^i, mean over agents</th></tr>'
        f"<tr>{names}{names}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _measured(algos: Algorithms) -> list[str]:
    """Those of `FIGURES` that any run has."""
    probes = [run.probe for runs in algos.values() for run in runs if run.probe]
    levels = [level for probe in probes for held in probe["contexts"].values()
              for level in held.values() if isinstance(level, dict)]  # fmt: skip
    return [name for name in FIGURES if any(name in level for level in levels)]


def _mean(held: list[dict[str, Any]], episodes: str, level: str, name: str) -> str:
    values = [
        of_level[name]
        for contexts in held
        for key, of_level in contexts.get(episodes, {}).items()
        if isinstance(of_level, dict)
        and (key == "global") == (level == "global")
        and math.isfinite(of_level.get(name, math.nan))
    ]
    return f"{np.mean(values, dtype=float):.2f}" if values else ""


def maps(algos: Algorithms) -> Section:
    """Representations laid out in a plane."""
    section = Section(
        "What representations know about the task",
        "From new episodes of the training tasks: fractions of contexts whose task a linear model "
        "and the nearest neighbours predict, and silhouette; from new episodes of training, "
        "held-out and further tasks: R² of the task's features. Maps: each point is a context, its "
        "colour the task; the first seed that was probed.",
        figures(algos),
    )
    for algo, runs in algos.items():
        run = probed(runs)
        if run is None or run.probe is None:
            continue
        for level, ways in run.probe["maps"].items():
            for way, points in ways.items():
                few = len(run.probe["tasks"]) <= len(COLOURS)
                axis = AXES.get(way, "coordinate")
                drawn = figure(
                    f"first {axis}", f"second {axis}", 380, showlegend=few, legend=LEGEND
                )
                for index, (task, of_task) in enumerate(
                    zip(run.probe["tasks"], np.asarray(points, float), strict=True)
                ):
                    shown = of_task[: max(2, POINTS // len(points))]
                    drawn.add_scatter(
                        x=plain(shown[:, 0]),
                        y=plain(shown[:, 1]),
                        mode="markers",
                        marker={"size": 5, "color": COLOURS[index % len(COLOURS)]},
                        name=escape(named(algos, str(task))),
                    )
                title = f"{algo}: {level.replace('_', ' ')}, {way.upper()}"
                caption = "" if few else "Colours repeat; a point's name is its task."
                section.panels.append(Panel(title, caption, drawn))
    return section


def priorities(style: Style, algos: Algorithms) -> Section:
    """Weight of each step in the inference."""
    section = Section(
        "Attention priorities",
        "Weight of each step of an episode in what an agent infers from it, where 1 is as much as "
        "any other; mean over episodes and agents, first seed that was probed.",
    )
    names = dict.fromkeys(
        str(task)
        for runs in algos.values()
        if (run := probed(runs)) and run.probe and "priorities" in run.probe
        for task in run.probe["tasks"]
    )
    for task in list(names)[:6]:
        drawn = figure("step of the episode", "weight", height=260)
        for algo, runs in algos.items():
            run = probed(runs)
            if run is None or run.probe is None or "priorities" not in run.probe:
                continue
            tasks = [str(name) for name in run.probe["tasks"]]
            if task not in tasks:
                continue
            weights = np.asarray(run.probe["priorities"], float)  # [K, A, T]
            mean = weights[tasks.index(task)].mean(0)
            drawn.add_trace(style.line(algo, np.arange(len(mean)), mean))
        section.panels.append(Panel(named(algos, task), "", drawn))
    return section
