"""Search for good values of any keys: ``python -m mg2l.tune --search ppo.actor_lr=log:1e-4..1e-2``.

Optuna proposes trials, which are ordinary runs below the folder; at rungs they are compared, and
stopped (asha, median) or replaced by perturbed forks of better ones (pbt). The same command, killed
at any moment, continues where it was, bit for bit; more ``--trials`` extend it, and with
``--on`` it runs on a cluster. It ends with a table, ``report.html`` and ``best.yaml``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mg2l import cli
from mg2l.cli.executors import add_executor, executor
from mg2l.cli.scheduler import own
from mg2l.config.files import DEFAULTS, KINDS
from mg2l.core.packages import require
from mg2l.tuning.plan import makes, plan, settings
from mg2l.tuning.schedulers import SCHEDULERS

WITH_VALUE = ("--folder", "--slurm", "--search")
"""Options whose value may look like an override."""


def parser() -> cli.Parser:
    """The command line."""
    number = cli.at_least
    words = cli.Parser(prog="python -m mg2l.tune", description=__doc__)
    for kind in KINDS:
        words.add_argument(
            f"--{kind}",
            default=DEFAULTS[kind],
            help=f"as for mg2l.train (default: {DEFAULTS[kind]})",
        )
    words.add_argument(
        "--search",
        nargs="+",
        required=True,
        metavar="KEY=VALUES",
        help="LOW..HIGH, log:LOW..HIGH on a logarithmic scale, or A,B,...",
    )
    words.add_argument("--trials", type=number(1), default=20, help="(default: 20); of pbt at once")
    words.add_argument(
        "--sampler", choices=["tpe", "random"], default="tpe", help="of values (default: tpe)"
    )
    words.add_argument(
        "--scheduler",
        choices=SCHEDULERS,
        default="none",
        help="who is stopped early (default: none)",
    )
    words.add_argument(
        "--objective", default="return", metavar="METRIC", help="of metrics.jsonl (default: return)"
    )
    words.add_argument("--mode", choices=["max", "min"], default="max", help="(default: max)")
    words.add_argument(
        "--interval",
        type=number(1),
        help="iterations before the first comparison, and of median and pbt between two (default: "
        "a ninth of the run for asha, else a tenth)",
    )
    words.add_argument(
        "--reduction",
        type=number(2),
        default=3,
        help="of asha: one trial in so many reaches the next rung, so many times further "
        "(default: 3)",
    )
    words.add_argument(
        "--jobs", type=number(1), help="trials at once (default: 1, on a cluster all)"
    )
    words.add_argument("--folder", type=Path, required=True, help="where all of it is kept")
    add_executor(words)
    words.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="fixed, for all trials")
    return words


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; overrides may stand anywhere.

    After ``--search`` they begin where there is no ``..`` and no comma in a word.
    """

    def is_value(option: str, first: bool, word: str) -> bool:
        searched = option == "--search" and ("," in word or ".." in word)
        return searched or (first and option in WITH_VALUE)

    return parser().parse_overrides(argv, is_value)


def run(arguments: argparse.Namespace) -> int:
    """Search; returns the exit status."""
    require("a search", "optuna", "sklearn", "plotly", extra="tune")
    from mg2l.report.tuning import write as write_report
    from mg2l.tuning import summary
    from mg2l.tuning.search import Search
    from mg2l.tuning.study import Journal, Study

    wanted = plan(arguments)
    seed, trials = wanted.config.seed, arguments.trials
    if arguments.on != "local":
        arguments.folder = arguments.folder.resolve()
    folder = arguments.folder
    with own(folder, "search"), executor(arguments) as where:
        search = Search(
            makes(arguments, wanted.config),
            wanted.space,
            wanted.rungs,
            wanted.objective,
            trials,
            Study(wanted.space, arguments.sampler, seed, arguments.mode, wanted.rungs.pruner()),
            Journal(folder, settings(arguments, wanted)),
            seed,
            folder,
            where,
        )
        compared = ", ".join(map(str, wanted.rungs.iterations))
        search.note(f"{folder}: {trials} trials, {where.where}, compared at iterations {compared}")
        if status := search.work():
            return status
        result = summary.summarise(search.trials, wanted.space, wanted.objective, folder)
        search.note("\n".join(summary.table(result)))
        best, command = summary.write_best(search.trials, wanted, folder)
        write_report(folder / "report.html", result)
        search.note(f"best: trial {best.number}; {command}")
        search.note(f"{folder / 'report.html'}: what mattered")
    return 0


@cli.command
def main() -> int:
    """Entry point of ``python -m mg2l.tune``; returns the exit status."""
    return run(parse(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
