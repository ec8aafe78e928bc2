"""Pictures of a suite's results, from its tables alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mg2l.evaluation import plots
from mg2l.evaluation.adaptation import PARTS, Adaptation, adaptation
from mg2l.evaluation.frames import Frames, Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 3
"""Families side by side."""

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#7f7f7f", "#8c564b")
DASHES = ("-", "--", ":")


def draw(folder: Path, name: str, frames: Frames) -> list[Path]:
    """Draw scores over episodes of exploration, and meta-tests and returns over environment steps.

    Args:
        folder: where the pictures go.
        name: of the results, with which their names begin.
        frames: the tables.

    Returns:
        Paths of the pictures, of those of which there is anything to draw.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        WriteError: one cannot be written.
    """
    found = [x for x in adaptation(frames.returns, frames.bounds) if x.part == "test" and x.scores]
    algos = list(dict.fromkeys(record.algo for record in frames.records))
    looks = {
        algo: {"color": COLOURS[k % len(COLOURS)], "linestyle": DASHES[k // len(COLOURS) % 3]}
        for k, algo in enumerate(algos)
    }
    drawn = []
    if found:
        path = folder / f"{name}_shots.png"
        _grid(path, [x.env for x in found], lambda axes, k: _shots(axes, found[k], looks))
        drawn.append(path)
    metrics = sorted({x.metric for x in frames.points if x.metric.startswith("eval/test_")})
    for metric, what in [*((m, m.removeprefix("eval/")) for m in metrics), ("return", "return")]:
        points = [x for x in frames.points if x.metric == metric]
        envs = list(dict.fromkeys(x.env for x in points))
        if envs:
            path = folder / f"{name}_curves_{what}.png"

            def curves(axes: Axes, k: int, points: list[Point] = points, what: str = what) -> None:
                _curves(axes, [x for x in points if x.env == envs[k]], what, looks)  # noqa: B023

            _grid(path, envs, curves)
            drawn.append(path)
    return drawn


def _grid(path: Path, names: Sequence[str], panel: Any) -> None:
    """A picture with a panel for each name."""
    from matplotlib import pyplot

    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    size = (4.5 * columns, 3.4 * rows)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=size, dpi=100, squeeze=False, layout="constrained"
    )
    labels: dict[str, Any] = {}
    for k, part in enumerate(axes.ravel()):
        if k >= len(names):
            part.axis("off")
            continue
        panel(part, k)
        part.set_title(names[k])
        part.spines[["top", "right"]].set_visible(False)
        handles, found = part.get_legend_handles_labels()
        labels.update(zip(found, handles, strict=True))
    figure.legend(
        labels.values(), labels.keys(), loc="outside lower center", ncols=2 * columns, frameon=False
    )
    plots.write(figure, path)


def _shots(axes: Axes, found: Adaptation, looks: dict[str, dict[str, str]]) -> None:
    """Scores over episodes of exploration."""
    shots = [name for name in found.shots if name.isdigit()]
    for algo, look in looks.items():
        held = [(k, found.interval(algo, name)) for k, name in enumerate(shots)]
        points = [(k, *interval) for k, interval in held if interval is not None]
        if points:
            x, value, low, high = np.array(points, float).T
            axes.plot(x, value, marker="o", markersize=3, label=algo, **look)  # type: ignore[arg-type]
            axes.fill_between(x, low, high, color=look["color"], alpha=0.12, linewidth=0)
    axes.set_xticks(range(len(shots)), shots)
    axes.set_xlabel("episodes of exploration")
    axes.set_ylabel(f"score, {PARTS[found.part]}")


def _curves(
    axes: Axes, points: Sequence[Point], what: str, looks: dict[str, dict[str, str]]
) -> None:
    """A metric over environment steps: mean over seeds, where at least half of them have come."""
    for algo, look in looks.items():
        seeds: dict[int, list[tuple[float, float]]] = {}
        for x in points:
            if x.algo == algo:
                seeds.setdefault(x.seed, []).append((x.env_steps, x.value))
        if not seeds:
            continue
        curves = [np.array(sorted(held), float).T for held in seeds.values()]
        grid = np.unique(np.concatenate([steps for steps, _ in curves]))
        nan = float("nan")
        values = np.stack([np.interp(grid, x, y, left=nan, right=nan) for x, y in curves])
        kept = 2 * np.isfinite(values).sum(0) >= len(curves)
        axes.plot(grid[kept], np.nanmean(values[:, kept], 0), label=algo, **look)  # type: ignore[arg-type]
    axes.set_xlabel("environment steps")
    axes.set_ylabel(what.replace("_", " "))
