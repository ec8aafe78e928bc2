"""All estimators on all distributions of known information: the table of ``docs/estimators.md``.

``python -m mg2l.estimators.table RESULTS.jsonl [--write docs/estimators.md]``. Every estimate is
appended to the file as soon as it is made; a run that was stopped resumes where it was.
"""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from pathlib import Path

from rich.progress import track

from mg2l.cli import Parser, at_least, command
from mg2l.core.files import FileError, MissingFileError, parse_json, read_text, require, write_text
from mg2l.estimators import distributions
from mg2l.estimators.checks import MAX_STEPS, MIN_PAIRS
from mg2l.estimators.fit import ESTIMATORS, fit_mi

SEEDS, SAMPLES, STEPS = 5, 10_000, 500
START, END = "<!-- table: python -m mg2l.estimators.table -->", "<!-- end of table -->"

Estimates = dict[tuple[str, str], list[float]]


def load(path: Path) -> dict[tuple[str, str, int], float]:
    """Estimates made so far by distribution, estimator and seed.

    Raises:
        FileError: the file holds something else.
    """
    try:
        lines = read_text(path).splitlines()
    except MissingFileError:
        return {}
    shape = {"distribution": str, "estimator": str, "seed": int, "mi": float}
    rows = [require(parse_json(line, path), shape, path) for line in lines if line.endswith("}")]
    return {(row["distribution"], row["estimator"], row["seed"]): row["mi"] for row in rows}


def around_table(page: Path) -> tuple[str, str]:
    """The text before and after the table of a page.

    Raises:
        FileError: the page cannot be read, or has no place for a table.
    """
    before, start, rest = read_text(page).partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise FileError(f"{page}: has no place for the table: {START!r} to {END!r}")
    return before, after


def run(path: Path, seeds: int = SEEDS, samples: int = SAMPLES, steps: int = STEPS) -> Estimates:
    """Compute the estimates that are missing in the file; returns all."""
    done = load(path)
    cells = [
        (known, name, seed)
        for seed in range(seeds)
        for known in distributions.known()
        for name in ESTIMATORS
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    for known, name, seed in track(cells, "estimates"):
        key = (known.name, name, seed)
        if key in done:
            continue
        x, y = known.sample(samples, seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where they fail is in the table
            estimate = fit_mi(x, y, name, steps=steps, seed=seed, progress=False, check=False)
        done[key] = estimate.mi
        row = {"distribution": known.name, "estimator": name, "seed": seed, "mi": done[key]}
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
    grouped: Estimates = {}
    for known, name, seed in cells:
        key = (known.name, name, seed)
        grouped.setdefault((known.name, name), []).append(done[key])
    return grouped


def markdown(estimates: Estimates) -> str:
    """Bias and standard deviation of every cell, and how consistent each estimator is."""
    names = list(ESTIMATORS)

    def row(title: str, truth: str, cells: list[str]) -> str:
        return f"| {title} | {truth} | " + " | ".join(cells) + " |"

    lines = [
        row("distribution", "MI", [f"`{name}`" for name in names]),
        "|---|---|" + "---|" * len(names),
    ]
    for known in distributions.known():
        cells = []
        for name in names:
            found = estimates[known.name, name]
            bias = statistics.mean(found) - known.mi
            spread = statistics.stdev(found) if len(found) > 1 else 0.0
            cells.append(f"{bias:+.2f} ± {spread:.2f}")
        lines.append(row(known.name, f"{known.mi:.4f}", cells))
    normal = "normal 5x5, MI 2"
    mean = {key: statistics.mean(found) for key, found in estimates.items()}
    lines += ["", row("consistency", "truth", [f"`{name}`" for name in names])]
    lines.append("|---|---|" + "---|" * len(names))
    independent = [mean["independent", name] for name in names]
    part = [mean[f"{normal}, 2 coordinates of y", name] / mean[normal, name] for name in names]
    twice = [mean["normal 10x10, MI 4", name] / mean[normal, name] for name in names]
    for title, truth, values in (
        ("independence: I(x; y)", "0", independent),
        ("data processing: I(x; 2 of 5 coordinates of y) / I(x; y)", "0.40", part),
        ("additivity: I of two copies / I of one", "2.00", twice),
    ):
        lines.append(row(title, truth, [f"{value:.2f}" for value in values]))
    return "\n".join(lines)


@command
def main() -> None:
    """Entry point of ``python -m mg2l.estimators.table``."""
    parser = Parser(
        prog="python -m mg2l.estimators.table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", type=Path, help="file of estimates, appended to")
    parser.add_argument("--write", type=Path, help="page whose table is replaced")
    parser.add_argument("--seeds", type=at_least(1), default=SEEDS)
    parser.add_argument("--samples", type=at_least(MIN_PAIRS + 2), default=SAMPLES)
    parser.add_argument("--steps", type=at_least(1, most=MAX_STEPS), default=STEPS)
    arguments = parser.parse_args()
    around = None if arguments.write is None else around_table(arguments.write)
    text = markdown(run(arguments.results, arguments.seeds, arguments.samples, arguments.steps))
    if around is None:
        print(text)
    else:
        before, after = around
        write_text(arguments.write, f"{before}{START}\n\n{text}\n\n{END}{after}")


if __name__ == "__main__":
    main()
