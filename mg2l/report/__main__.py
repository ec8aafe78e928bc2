"""Write one page about runs: ``python -m mg2l.report RUN_OR_SWEEP...``.

Finds every run in or below the folders, finished or not, and writes a page of HTML that needs
nothing else, also no network: learning curves, tasks, few shots, aggregates over runs with their
uncertainty, what representations know, where the time goes, how configurations differ, films. What
was not measured is left out: ``mg2l.evaluate`` and ``mg2l.probe`` measure it.
"""

from __future__ import annotations

from pathlib import Path

from mg2l import cli
from mg2l.core.packages import require
from mg2l.evaluation.groups import groups_below
from mg2l.evaluation.results import printable

PACKAGES = ("plotly",)


def parser() -> cli.Parser:
    """The command line."""
    number = cli.at_least
    words = cli.Parser(prog="python -m mg2l.report", description=__doc__)
    words.add_argument("folders", type=Path, nargs="+", metavar="RUN_OR_SWEEP")
    words.add_argument("--out", type=Path, help="page to write (default: report.html in the first)")
    words.add_argument(
        "--last", type=number(1), default=20, help="iterations at the end (default: 20)"
    )
    words.add_argument(
        "--window", type=number(1), default=10, help="of running means (default: 10)"
    )
    words.add_argument("--env-steps", type=number(1), help="cut every run's end at these steps")
    words.add_argument(
        "--film-mb",
        type=number(0, float),
        default=30,
        help="films held at most, in MB (default: 30)",
    )
    return words


@cli.command
def main() -> None:
    """Entry point of ``python -m mg2l.report``."""
    arguments = parser().parse_args()
    require("a report", *PACKAGES, extra="report")
    groups, notes = groups_below(arguments.folders, measured=True)
    from mg2l.report.contents import write

    path = arguments.out or arguments.folders[0] / "report.html"
    notes += write(
        path,
        groups,
        notes,
        last=arguments.last,
        window=arguments.window,
        env_steps=arguments.env_steps,
        film_bytes=int(arguments.film_mb * 1e6),
    )
    count = sum(len(group.runs) for group in groups)
    for line in [f"{path}: {count} runs, {path.stat().st_size / 1e6:.1f} MB", *notes]:
        print(printable(line))


if __name__ == "__main__":
    main()
