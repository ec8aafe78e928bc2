"""Figures of what training logs."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from mg2l.evaluation.groups import curve, end
from mg2l.evaluation.results import Run
from mg2l.report.panels import BANDS, Panel, Section, Style, figure, forest, seeds

Algorithms = dict[str, list[Run]]
"""Runs of one environment, by the name of their group."""

TASKS = 12
"""Tasks with a figure of their own at most."""

INFORMATION = {
    "mi/global": ("Global information", "nats that z tells of the task, at least (InfoNCE)"),
    "mi/local": ("Local information", "nats that each agent's own z^i tells, at least"),
    "mi/gap": ("Gap from global to local", "L1Out bound minus the local objective, in nats"),
    "accuracy/fresh_global": (
        "Recognised by z",
        "share of contexts from new episodes, before anything was trained on them",
    ),
    "accuracy/fresh_local": ("Recognised by each z^i", "the same, from one agent's transitions"),
}

PHASES = ("rollout", "ppo", "encoder", "explore", "eval")


def lines(style: Style, algos: Algorithms, name: str, y: str, window: int) -> Any:
    """A metric over environment steps, mean and interval over seeds; None where nobody logs it."""
    shown, means = figure("environment steps", y), []
    drawn = {algo: curve(runs, name, window) for algo, runs in algos.items()}
    held = {algo: found for algo, found in drawn.items() if found is not None}
    for algo, of_algo in held.items():
        mean, low, high = of_algo.intervals
        if np.isfinite(low).any():
            shown.add_trace(style.band(algo, of_algo.env_steps, low, high, len(held)))
        hover = f"%{{x}} steps: %{{y:.4~g}}<br>%{{customdata}} of {seeds(len(of_algo.values))}"
        means.append(
            style.line(
                algo,
                of_algo.env_steps,
                mean,
                customdata=of_algo.counts,
                hovertemplate=f"{hover}<extra>{escape(algo)}</extra>",
            )
        )
    shown.add_traces(means)  # above all intervals
    return shown if means else None


def returns(style: Style, algos: Algorithms, last: int, window: int, cut: int | None) -> Section:
    """Learning curves, and where they end."""
    ends = {algo: end(runs, last, cut) for algo, runs in algos.items()}
    finals = {
        algo: found.interval for algo, found in ends.items() if found is not None and found.returns
    }
    within = "" if cut is None else f" within {cut:,} environment steps"
    section = Section(
        "Return while training",
        "Sum over an episode of the mean reward over agents. Intervals: 95 %, Student's t over "
        f"seeds; none for a single seed. Along curves they are drawn when at most {BANDS} "
        f"algorithms are shown. Curves: running mean of {window} iterations.",
    )
    drawn = lines(style, algos, "return", "return", window)
    caption = (
        "Mean over seeds at the same environment steps, as far as half of the seeds have come. "
        "Where one ends, the line is broken, and goes on as the mean of the others."
    )
    if drawn is not None:
        section.panels.append(Panel("Learning curves", caption, drawn, wide=True))
    if finals:
        section.panels.append(
            Panel(
                "At the end",
                f"Mean return of the last {last} iterations{within}, of all seeds of an algorithm "
                "at the same environment steps: see the table.",
                forest(style, finals, "return"),
                wide=True,
            )
        )
    return section


def tasks(style: Style, algos: Algorithms, window: int) -> Section:
    """Learning curves of each training task."""
    names = {
        task
        for runs in algos.values()
        for run in runs
        for row in run.rows[-1:]
        for task in row.get("return_by_task", {})
    }
    section = Section("Return by task", f"Of the first {TASKS} training tasks.")
    for task in sorted(names, key=lambda name: (len(name), name))[:TASKS]:
        found = lines(style, algos, f"return_by_task/{task}", "return", window)
        if found is not None:
            section.panels.append(Panel(f"Task {task}", "", found))
    return section


def information(style: Style, algos: Algorithms, window: int) -> Section:
    """Bounds on information, and recognition of new episodes."""
    section = Section(
        "What representations know, over time",
        "Logged by algorithms that infer the task from contexts.",
    )
    for name, (title, caption) in INFORMATION.items():
        found = lines(style, algos, name, name, window)
        if found is not None:
            section.panels.append(Panel(title, f"{caption[0].upper()}{caption[1:]}.", found))
    return section


def phases(algos: Algorithms) -> Section:
    """Where the time of an iteration goes."""
    found = figure("seconds per iteration", "", 110 + 22 * max(3, len(algos)), barmode="stack")
    found.update_layout(
        showlegend=True, legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"}
    )
    found.update_layout(margin={"l": 10, "t": 50})
    names = list(reversed(algos))
    for phase in PHASES:
        spent = [_seconds(algos[name], f"time/{phase}") for name in names]
        if any(spent):
            labels = [escape(name) for name in names]
            found.add_bar(x=spent, y=labels, orientation="h", name=phase)
    caption = "Means over the iterations and runs. Compare runs of one machine only."
    return Section("Time", panels=[Panel("Phases of an iteration", caption, found, wide=True)])


def _seconds(runs: Sequence[Run], name: str) -> float:
    """Mean over all iterations, also those that spent none."""
    spent = sum(float(run.curve(name)[1].sum()) for run in runs)
    return spent / sum(len(run.rows) for run in runs)
