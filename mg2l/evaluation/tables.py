"""Groups of runs side by side: a table of their returns, and a plot of their curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mg2l.evaluation import plots
from mg2l.evaluation.adaptation import PARTS, Adaptation
from mg2l.evaluation.groups import End, Group, curve, different_steps, end
from mg2l.evaluation.results import printable

HEADER = (
    *("environment", "algorithm", "seeds", "iterations", "environment steps", "return"),
    "95 % interval",
)

LAST = 20
"""Iterations that are averaged at the end of a run."""


def table(
    groups: Sequence[Group], notes: Sequence[str], last: int = LAST, cut: int | None = None
) -> list[str]:
    """Lines of a table of groups, with remarks below it.

    Args:
        groups: a row each.
        notes: lines on the runs that are in no group.
        last: iterations whose returns are averaged.
        cut: environment steps after which nothing counts.
    """
    rows, notes = [row(HEADER), "|---" * len(HEADER) + "|"], list(notes)
    ends: dict[str, list[End]] = {}
    for group in groups:
        found = end(group.runs, last, cut)
        if found is None:
            notes.append(f"{group.algo} on {group.env}: no run has an iteration within {cut:,}")
            continue
        value, _, high = found.interval
        cells = [group.env, group.algo, str(len(found.runs)), str(found.iterations)]
        interval = f"± {high - value:.1f}" if len(found.runs) > 1 else "one seed"
        cells += [f"{found.env_steps:,.0f}", f"{value:.1f}", interval]
        rows.append(row(cells))
        notes += found.lines
        ends.setdefault(group.env, []).append(found)
    notes += [f"{env}: {line}" for env in ends for line in different_steps(ends[env])]
    return [printable(line) for line in [*rows, *([""] if notes else []), *notes]]


def score_table(found: Adaptation) -> list[str]:
    """Lines of a table of adaptation scores, a row per algorithm and a column per way of acting.

    A cell is the interquartile mean with its interval, and the mean return; of a part of the tasks
    without scores the return alone.
    """
    lines = [f"{found.env}, {PARTS[found.part]}: {'; '.join(found.notes)}", ""]
    shots = found.shots
    header = [f"K = {name}" if name.isdigit() else name for name in shots]
    lines += [row(["algorithm", "seeds", *header]), "|---" * (len(shots) + 2) + "|"]
    for algo, by_shots in found.returns.items():
        seeds = max(len(held) for held in by_shots.values())
        cells = [_score_cell(found, algo, name) for name in shots]
        lines.append(row([algo, str(seeds), *cells]))
    return [printable(line) for line in lines]


def _score_cell(found: Adaptation, algo: str, shots: str) -> str:
    held, interval = found.returns[algo].get(shots), found.interval(algo, shots)
    if held is None:
        return ""
    if interval is None:
        return f"{held.mean():.1f}"
    value, low, high = interval
    return f"{value:.2f} [{low:.2f}, {high:.2f}] ({held.mean():.1f})"


def row(cells: Sequence[str]) -> str:
    """A line of a table in Markdown."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def plot(groups: Sequence[Group], path: Path, window: int = 10) -> None:
    """Return over environment steps, a part for each environment: mean and range of the seeds.

    Raises:
        WriteError: it cannot be written.
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib import pyplot

    envs = list(dict.fromkeys(group.env for group in groups))
    figure, parts = pyplot.subplots(
        len(envs), figsize=(7, 4 * len(envs)), dpi=120, squeeze=False, layout="constrained"
    )
    for env, axes in zip(envs, parts[:, 0], strict=True):
        for group in groups:
            found = curve(group.runs, "return", window) if group.env == env else None
            if found is None:
                continue
            values = np.ma.masked_invalid(found.values)
            low, mean, high = (
                reduced.filled(np.nan) for reduced in (values.min(0), values.mean(0), values.max(0))
            )
            label = f"{group.algo} ({len(values)} seeds)".replace("$", r"\$")
            (line,) = axes.plot(found.env_steps, mean, label=label)
            axes.fill_between(
                found.env_steps, low, high, color=line.get_color(), alpha=0.2, linewidth=0
            )
        axes.set_title(env.replace("$", r"\$"))
        axes.set_xlabel("environment steps")
        axes.set_ylabel(f"return (mean of {window} iterations)")
        if axes.lines:
            axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    plots.write(figure, path)
