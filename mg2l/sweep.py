"""Train a grid of runs: ``python -m mg2l.sweep --algos mg2l mappo --envs mpe-spread --seeds 0 1``.

Algorithms x environments x seeds, all of one seed before any of the next. What is done is read from
the runs themselves, so the same command, killed at any moment, resumes where it was; with more
seeds or a larger ``n_iters`` it continues, and with ``--on`` it runs on a cluster. ``sweep.jsonl``
in the folder has a line per run.

``--suite adaptation --size small`` trains and measures what a file of ``configs/suite`` says.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mg2l import cli
from mg2l.cli.executors import add_executor, executor
from mg2l.cli.grid import grid
from mg2l.cli.jobs import RESULTS
from mg2l.cli.scheduler import Sweep, own
from mg2l.cli.suite import FULL
from mg2l.cli.suite import names as suites

WITH_VALUE = ("--set", "--slurm", "--folder")
"""Options whose value may look like an override."""


def parser() -> cli.Parser:
    """The command line."""
    words = cli.Parser(prog="python -m mg2l.sweep", description=__doc__)
    words.add_argument("--algos", nargs="+", help="as for mg2l.train --algo")
    words.add_argument("--envs", nargs="+", help="as for mg2l.train --env")
    words.add_argument("--seeds", nargs="+", type=int, help="(default: 0)")
    words.add_argument(
        "--suite",
        help=f"one of {', '.join(suites())}, or a YAML file; the three above choose from it",
    )
    words.add_argument("--size", help=f"of the suite, as its file names them (default: {FULL})")
    words.add_argument(
        "--jobs",
        type=cli.at_least(1),
        help="runs at once (default: 1, on a cluster as many as it has room for)",
    )
    words.add_argument("--folder", type=Path, required=True, help="folder of all runs")
    words.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME:KEY=VALUE",
        help="override for one environment or algorithm only",
    )
    words.add_argument(
        "--then",
        nargs="+",
        choices=RESULTS,
        default=[],
        help="analyses of each trained run; probe only where a task is inferred",
    )
    add_executor(words)
    words.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for mg2l.train")
    return words


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line; overrides may stand anywhere."""
    return parser().parse_overrides(words, lambda option, first, _: first and option in WITH_VALUE)


@cli.command
def main() -> int:
    """Entry point of ``python -m mg2l.sweep``; returns the exit status."""
    arguments = parse(sys.argv[1:])
    jobs = grid(arguments)
    with own(arguments.folder), executor(arguments) as where:
        return Sweep(jobs, arguments.folder, where).go()


if __name__ == "__main__":
    sys.exit(main())
