"""Compare runs: ``python -m mg2l.compare runs/mpe-spread --plot curves.png``.

Finds every ``metrics.jsonl`` below the given folders and prints a row for each environment,
algorithm and configuration: over seeds, the mean return of the last iterations with its 95 %
interval (Student's t). All seeds of a row are measured at the same environment steps, the most that
half of them have reached; ``--env-steps`` cuts every run at the same ones. Of runs that
``mg2l.evaluate`` has tested a second table has adaptation scores, 0 mappo and 1 the oracle.
``--plot`` needs matplotlib.
"""

from __future__ import annotations

from pathlib import Path

from mg2l import cli
from mg2l.evaluation import plots
from mg2l.evaluation.adaptation import of_groups
from mg2l.evaluation.groups import groups_below
from mg2l.evaluation.tables import LAST, plot, score_table, table


def parser() -> cli.Parser:
    """The command line."""
    words = cli.Parser(prog="python -m mg2l.compare", description=__doc__)
    words.add_argument("folders", type=Path, nargs="+", help="folders with runs below them")
    words.add_argument(
        "--last", type=cli.at_least(1), default=LAST, help="iterations averaged (default: 20)"
    )
    words.add_argument("--env-steps", type=cli.at_least(1), help="cut every run at these steps")
    words.add_argument("--plot", type=Path, help="picture to write")
    return words


@cli.command
def main() -> None:
    """Entry point of ``python -m mg2l.compare``."""
    arguments = parser().parse_args()
    if arguments.plot is not None:
        plots.check("--plot", arguments.plot)
    groups, notes = groups_below(arguments.folders, measured=True)
    print("\n".join(table(groups, notes, arguments.last, arguments.env_steps)))
    for found in of_groups(groups):
        print("\n".join(["", *score_table(found)]))
    if arguments.plot is not None:
        plot(groups, arguments.plot)


if __name__ == "__main__":
    main()
