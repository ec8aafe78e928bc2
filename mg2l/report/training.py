"""Figures of the metrics of training."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from mg2l.evaluation.groups import POINTS, curve, end
from mg2l.evaluation.results import Run
from mg2l.report.panels import BANDS, Panel, Section, Style, figure, forest, plain, seeds

Algorithms = dict[str, list[Run]]
"""Runs of one environment, by the name of their group."""

TASKS = 12
"""Tasks with a figure of their own at most."""

AXES = ("environment steps", "iterations", "minutes")
"""What curves are drawn over."""

Clocks = dict[str, dict[str, list[float]]]
"""By algorithm, `AXES` of its mean run at the same moments."""

INFORMATION = {
    "mi/global": (
        "Global information",
        "information [nats]",
        "lower bound on the nats of z about the task (InfoNCE)",
    ),
    "mi/local": (
        "Local information",
        "information [nats]",
        "lower bound on the nats of each agent's own z^i",
    ),
    "mi/gap": (
        "Gap from global to local",
        "information [nats]",
        "L1Out bound minus the local objective",
    ),
    "accuracy/fresh_global": (
        "Recognised by z",
        "fraction of contexts",
        "from new episodes, before anything was trained on them",
    ),
    "accuracy/fresh_local": (
        "Recognised by each z^i",
        "fraction of contexts",
        "the same, from one agent's transitions",
    ),
}

DIAGNOSTICS = {
    "explained_variance": (
        "Explained variance",
        "fraction of the variance",
        "of returns that the critics' values explain; 1 is perfect, below 0 worse than a constant",
    ),
    "clip_fraction": (
        "Clip fraction",
        "fraction of steps",
        "whose probability ratio is beyond the trust interval",
    ),
    "kl": (
        "Policy change",
        "KL divergence [nats]",
        "from the policy that acted to the updated one",
    ),
    "entropy": ("Entropy", "entropy [nats]", "of the policies, mean over agents"),
    "grad_norm/actor": ("Gradient of actors", "norm", "before clipping"),
    "grad_norm/critic": ("Gradient of critics", "norm", "before clipping"),
}
"""Metrics of PPO: title, y-axis, and what they are."""

PHASES = ("rollout", "ppo", "encoder", "explore", "eval")


def lines(style: Style, algos: Algorithms, name: str, y: str, window: int) -> Any:
    """A metric over environment steps, mean and interval over seeds; None where no run logs it."""
    shown, means = figure(AXES[0], y), []
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
                mode="lines" if np.isfinite(mean).sum() > 1 else "markers",
                customdata=plain(of_algo.counts),
                hovertemplate=f"{hover}<extra>{escape(algo)}</extra>",
            )
        )
    shown.add_traces(means)  # above all intervals
    return shown if means else None


def returns(style: Style, algos: Algorithms, last: int, window: int, cut: int | None) -> Section:
    """Learning curves, and final returns."""
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
        "Mean over seeds at the same environment steps, up to where half of the seeds have come. "
        "Where one ends, the line is broken, and continues as the mean of the others."
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
            section.panels.append(Panel(named(algos, task), "", found))
    return section


def named(algos: Algorithms, task: str) -> str:
    """Name of a task, by its number where that is what is logged."""
    names = next((run.tasks for runs in algos.values() for run in runs if run.tasks), [])
    if not task.isdecimal():
        return task
    return names[int(task)] if int(task) < len(names) else f"Task {task}"


def information(style: Style, algos: Algorithms, window: int) -> Section:
    """Bounds on information, and task recognition on new episodes."""
    section = Section(
        "Information in representations over time",
        "Logged by algorithms that infer the task from contexts.",
    )
    section.panels += _metrics(style, algos, INFORMATION, window)
    return section


def diagnostics(style: Style, algos: Algorithms, window: int) -> Section:
    """How the policy updates went."""
    section = Section("PPO", "Of the updates of actors and critics, mean over agents and epochs.")
    section.panels += _metrics(style, algos, DIAGNOSTICS, window)
    return section


def _metrics(
    style: Style, algos: Algorithms, named: dict[str, tuple[str, str, str]], window: int
) -> list[Panel]:
    panels = []
    for name, (title, y, caption) in named.items():
        found = lines(style, algos, name, y, window)
        if found is not None:
            panels.append(Panel(title, f"{caption[0].upper()}{caption[1:]}.", found))
    return panels


def clocks(algos: Algorithms) -> Clocks:
    """Iterations and minutes of training at environment steps, mean over an algorithm's runs."""
    found: Clocks = {}
    for algo, runs in algos.items():
        grid = np.unique(np.concatenate([run.env_steps for run in runs]))
        grid = grid[np.unique(np.linspace(0, len(grid) - 1, POINTS).astype(int))]
        iterations = [[row["iteration"] for row in run.rows] for run in runs]
        held = {"environment steps": grid, "iterations": _mean(runs, iterations, grid)}
        spent = [
            [r.get("time/iteration", 0) + r.get("time/eval", 0) for r in run.numbers]
            for run in runs
        ]
        if all(any(times) for times in spent):
            held["minutes"] = _mean(runs, [np.cumsum(times) / 60 for times in spent], grid)
        found[algo] = {name: plain(values) for name, values in held.items()}
    return found


def _mean(runs: Sequence[Run], values: Sequence[Any], grid: Any) -> Any:
    return np.mean(
        [np.interp(grid, run.env_steps, of) for run, of in zip(runs, values, strict=True)], axis=0
    )


def phases(algos: Algorithms) -> Section:
    """Time of an iteration by phase."""
    found = figure("seconds per iteration", "", 150 + 22 * max(3, len(algos)), barmode="stack")
    found.update_layout(
        showlegend=True, legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"}
    )
    found.update_layout(margin={"l": 10, "t": 90})  # on a phone the legend has three rows
    names = list(reversed(algos))
    for phase in PHASES:
        spent = [_seconds(algos[name], f"time/{phase}") for name in names]
        if any(spent):
            labels = [escape(name) for name in names]
            found.add_bar(x=spent, y=labels, orientation="h", name=phase)
    caption = "Means over the iterations and runs. Compare runs of one machine only."
    return Section("Time", panels=[Panel("Phases of an iteration", caption, found, wide=True)])


def _seconds(runs: Sequence[Run], name: str) -> float:
    """Mean over all iterations, including those that spent none."""
    spent = sum(float(run.curve(name)[1].sum()) for run in runs)
    return spent / sum(len(run.rows) for run in runs)
