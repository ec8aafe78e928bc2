"""Write one page about runs: ``python -m mg2l.report RUN_OR_SWEEP...``.

Finds every run in or below the folders, finished or not, and writes a page of HTML that needs
nothing else, also no network: learning curves, tasks, few shots, aggregates over runs with their
uncertainty, what representations know, where the time goes, how configurations differ, films. What
was not measured is left out: ``mg2l.evaluate`` and ``mg2l.probe`` measure it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mg2l import cli
from mg2l.packages import require
from mg2l.results import find
from mg2l.schema import ConfigError

PACKAGES = ("plotly", "scipy")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    words = cli.Parser(prog="python -m mg2l.report", description=__doc__)
    words.add_argument("folders", type=Path, nargs="+", metavar="RUN_OR_SWEEP")
    words.add_argument("--out", type=Path, help="page to write (default: report.html in the first)")
    words.add_argument("--last", type=int, default=20, help="iterations at the end (default: 20)")
    words.add_argument("--window", type=int, default=10, help="of running means (default: 10)")
    words.add_argument("--env-steps", type=int, help="cut every run's end at these steps")
    words.add_argument(
        "--film-mb", type=float, default=30, help="films held at most, in MB (default: 30)"
    )
    return words


@cli.command
def main() -> None:
    """Entry point of ``python -m mg2l.report``."""
    words = parser()
    arguments = words.parse_args()
    for name, least in (("last", 1), ("window", 1), ("env_steps", 1), ("film_mb", 0)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            option = name.replace("_", "-")
            words.error(f"--{option} must be at least {least}, got {value}")
    with cli.report_errors():
        require("a report", *PACKAGES, extra="report")
        runs = find(arguments.folders)
        if not runs:
            raise ConfigError(f"no run lies below {', '.join(map(str, arguments.folders))}")
        from mg2l.report.contents import write

        path = arguments.out or arguments.folders[0] / "report.html"
        left = write(
            path,
            runs,
            last=arguments.last,
            window=arguments.window,
            env_steps=arguments.env_steps,
            film_bytes=int(arguments.film_mb * 1e6),
        )
    print(f"{path}: {len(runs)} runs, {path.stat().st_size / 1e6:.1f} MB")
    for film in left:
        print(f"left out, see --film-mb: {film}")


if __name__ == "__main__":
    main()
