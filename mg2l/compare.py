"""Compare runs: ``python -m mg2l.compare runs/mpe-spread --plot curves.png``.

Finds every ``metrics.jsonl`` below the given folders, groups the runs by algorithm (the folder
above the run's) and prints, over seeds, the mean return of the last iterations with its 95 %
interval (Student's t). ``--env-steps`` cuts every run at the same number of environment steps.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mg2l import cli, statistics
from mg2l.results import Run, by_algorithm, find, smooth


def plot(runs: dict[str, list[Run]], path: Path, window: int = 10) -> None:
    """Return over environment steps: mean over seeds, and the range of the seeds.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=120)
    for name, seeds in runs.items():
        curves = [run.curve("return") for run in seeds]
        length = min(len(steps) for steps, _ in curves)
        steps = curves[0][0][:length]
        smoothed = np.stack([smooth(values[:length], window) for _, values in curves])
        (line,) = axes.plot(steps, smoothed.mean(0), label=f"{name} ({len(seeds)} seeds)")
        axes.fill_between(
            steps, smoothed.min(0), smoothed.max(0), color=line.get_color(), alpha=0.2, linewidth=0
        )
    axes.set_xlabel("environment steps")
    axes.set_ylabel(f"return (mean of {window} iterations)")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)


@cli.command
def main() -> None:
    """Entry point of ``python -m mg2l.compare``."""
    parser = cli.Parser(prog="python -m mg2l.compare", description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="folders with runs below them")
    parser.add_argument("--last", type=int, default=20, help="iterations averaged (default: 20)")
    parser.add_argument("--env-steps", type=int, help="cut every run at these steps")
    parser.add_argument("--plot", type=Path, help="picture to write")
    arguments = parser.parse_args()
    runs = by_algorithm(find(arguments.folders))
    if not runs:
        parser.error(f"no run lies below {', '.join(map(str, arguments.folders))}")
    print("| algorithm | seeds | iterations | environment steps | return | 95 % interval |")
    print("|---|---|---|---|---|---|")
    for name, seeds in runs.items():
        returns = [run.last_return(arguments.last, arguments.env_steps) for run in seeds]
        found = statistics.student(returns)
        iterations = min(len(run.rows) for run in seeds)
        steps = min(run.rows[-1]["env_steps"] for run in seeds)
        print(
            f"| {name} | {len(seeds)} | {iterations} | {steps:,} | {found.value:.1f} "
            f"| ± {found.high - found.value:.1f} |"
        )
    if arguments.plot:
        plot(runs, arguments.plot)


if __name__ == "__main__":
    main()
