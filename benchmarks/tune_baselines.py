"""The same grid for every baseline, on validation tasks: ``python -m benchmarks.tune_baselines``.

Learning rate, epochs and entropy bonus of PPO, which all algorithms have: a full factorial grid, so
that none of them is tuned more than another. The tasks by which points are compared are set aside
from those of training (``n_validation_tasks``); held-out tasks are not looked at. Each point of the
grid is a `mg2l.sweep` in a folder of its own, so that the same command, killed at any moment,
continues where it was. The table, ``results/tuning.csv``, has a row for each algorithm,
environment and point.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
import subprocess
import sys
from pathlib import Path

from mg2l.core.files import FileError
from mg2l.training.metrics import read_metrics

GRID: dict[str, list[float]] = {
    "actor_lr": [2.5e-4, 5e-4, 1e-3],
    "ppo_epoch": [5, 15],
    "entropy_coef": [0.0, 0.01],
}
"""Values of each key; ``critic_lr`` is that of the actors."""

ALGORITHMS = [
    *("mappo", "oracle", "mg2l", "rl2", "rl2-transformer", "varibad"),
    *("ma-pearl", "mate-mix", "focal", "corro"),
]
SHOTS = 5
VALIDATION = f"eval/validation_{SHOTS}_shots"
COLUMNS = ["env", "algo", *GRID, "seeds", "validation", "env_steps"]


def points() -> list[dict[str, float]]:
    """All points of the grid."""
    return [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]


def name_of(point: dict[str, float]) -> str:
    """Name of its folder."""
    return "-".join(f"{key}={value:g}" for key, value in point.items())


def command(point: dict[str, float], arguments: argparse.Namespace) -> list[str]:
    """The sweep of a point."""
    return [
        *(sys.executable, "-m", "mg2l.sweep", "--folder", str(arguments.folder / name_of(point))),
        *("--algos", *arguments.algos, "--envs", *arguments.envs),
        *("--seeds", *map(str, arguments.seeds), "--jobs", str(arguments.jobs)),
        *(f"{key}={value:g}" for key, value in point.items()),
        f"critic_lr={point['actor_lr']:g}",
        *("n_validation_tasks=8", f"n_env_steps={arguments.env_steps}"),
        *("eval_interval=5", "eval_episodes=4", f"eval_shots=[{SHOTS}]"),
        *("n_training_threads=1", "log_tensorboard=false", *arguments.overrides),
    ]


def validated(run: Path) -> tuple[float, int] | None:
    """Return of a run on validation tasks, the mean of its last two tests, and its steps."""
    try:
        rows = [row for row in read_metrics(run / "metrics.jsonl") if VALIDATION in row]
    except FileError:
        return None
    if not rows:
        return None
    return statistics.mean(row[VALIDATION] for row in rows[-2:]), rows[-1]["env_steps"]


def table(folder: Path) -> list[dict[str, object]]:
    """A row for each environment, algorithm and point that has run, the best point first."""
    rows: list[dict[str, object]] = []
    for point in points():
        for runs in sorted(folder.glob(f"{name_of(point)}/*/*/")):
            found = [result for run in sorted(runs.glob("*/")) if (result := validated(run))]
            if found:
                returns = statistics.mean(value for value, _ in found)
                steps = min(count for _, count in found)
                row = {"env": runs.parent.name, "algo": runs.name, **point}
                rows.append(row | {"seeds": len(found), "validation": returns, "env_steps": steps})
    return sorted(rows, key=lambda row: (row["env"], row["algo"], -float(str(row["validation"]))))


def write(rows: list[dict[str, object]], path: Path) -> None:
    """Write the table, and print the best point of each algorithm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(row | {"validation": f"{row['validation']:.2f}"})
    best: dict[object, dict[str, object]] = {}
    for row in rows:
        best.setdefault((row["env"], row["algo"]), row)
    for row in best.values():
        print("  ".join(f"{key} {row[key]}" for key in COLUMNS))


def main() -> int:
    """Run what is missing of the grid, and write the table after every point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("sweeps/tuning"))
    parser.add_argument("--out", type=Path, default=Path("results/tuning.csv"))
    parser.add_argument("--algos", nargs="+", default=ALGORITHMS)
    parser.add_argument("--envs", nargs="+", default=["mpe-goals", "mpe-weights"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--jobs", type=int, default=1, help="runs at once (default: 1)")
    parser.add_argument("--env-steps", type=int, default=200_000)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for mg2l.train")
    arguments = parser.parse_intermixed_args()
    for point in points():
        code = subprocess.run(command(point, arguments), check=False).returncode
        write(table(arguments.folder), arguments.out)
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
