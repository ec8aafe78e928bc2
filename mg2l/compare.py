"""Compare runs: ``python -m mg2l.compare runs/mpe-spread --plot curves.png``.

Finds every ``metrics.jsonl`` below the given folders, groups the runs by algorithm (the folder
above the run's) and prints, over seeds, the mean return of the last iterations with its 95 %
interval (Student's t). ``--env-steps`` cuts every run at the same number of environment steps.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mg2l import statistics
from mg2l.run.metrics import read_metrics

Rows = list[dict[str, Any]]


def find_runs(folders: Iterable[Path]) -> dict[str, list[Rows]]:
    """Metrics of all runs below the folders, by algorithm."""
    runs: dict[str, list[Rows]] = defaultdict(list)
    for folder in folders:
        for path in sorted(folder.glob("**/metrics.jsonl")):
            rows = read_metrics(path)
            if rows:
                runs[path.parent.parent.name].append(rows)
    return dict(sorted(runs.items()))


def last_return(rows: Rows, last: int, env_steps: int | None = None) -> float:
    """Mean return of the last iterations, or of the last ones within ``env_steps``."""
    within = [row for row in rows if env_steps is None or row["env_steps"] <= env_steps]
    return float(np.mean([row["return"] for row in within[-last:]]))


def smooth(values: Sequence[float], window: int) -> NDArray[np.float64]:
    """Running mean over the window before each value."""
    sums = np.cumsum(np.insert(np.asarray(values, float), 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts), float)


def plot(runs: dict[str, list[Rows]], path: Path, window: int = 10) -> None:
    """Return over environment steps: mean over seeds, and the range of the seeds.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=120)
    for name, seeds in runs.items():
        length = min(len(rows) for rows in seeds)
        steps = [row["env_steps"] for row in seeds[0][:length]]
        curves = np.stack(
            [smooth([row["return"] for row in rows[:length]], window) for rows in seeds]
        )
        (line,) = axes.plot(steps, curves.mean(0), label=f"{name} ({len(seeds)} seeds)")
        axes.fill_between(
            steps, curves.min(0), curves.max(0), color=line.get_color(), alpha=0.2, linewidth=0
        )
    axes.set_xlabel("environment steps")
    axes.set_ylabel(f"return (mean of {window} iterations)")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Entry point of ``python -m mg2l.compare``."""
    parser = argparse.ArgumentParser(prog="python -m mg2l.compare", description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="folders with runs below them")
    parser.add_argument("--last", type=int, default=20, help="iterations averaged (default: 20)")
    parser.add_argument("--env-steps", type=int, help="cut every run at these steps")
    parser.add_argument("--plot", type=Path, help="picture to write")
    arguments = parser.parse_args()
    runs = find_runs(arguments.folders)
    if not runs:
        parser.error(f"no run lies below {', '.join(map(str, arguments.folders))}")
    print("| algorithm | seeds | iterations | environment steps | return | 95 % interval |")
    print("|---|---|---|---|---|---|")
    for name, seeds in runs.items():
        returns = [last_return(s, arguments.last, arguments.env_steps) for s in seeds]
        found = statistics.student(returns)
        iterations = min(len(rows) for rows in seeds)
        steps = min(rows[-1]["env_steps"] for rows in seeds)
        print(
            f"| {name} | {len(seeds)} | {iterations} | {steps:,} | {found.value:.1f} "
            f"| ± {found.high - found.value:.1f} |"
        )
    if arguments.plot:
        plot(runs, arguments.plot)


if __name__ == "__main__":
    main()
