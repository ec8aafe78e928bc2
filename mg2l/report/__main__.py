"""Write one page about runs: ``python -m mg2l.report RUN_OR_SWEEP...``.

Finds every run in or below the folders, finished or not, and writes a page of HTML that needs
nothing else, also no network: learning curves, tasks, few shots, aggregates over runs with their
uncertainty, information in representations, time per phase, differences of configurations, videos.
Measurements of ``mg2l.evaluate`` and ``mg2l.probe`` are shown where there are any.

``--watch`` serves the page to this machine, and follows runs that are still training.

``--frames FOLDER`` writes what the runs have shown as a few small tables instead, beside what the
tables in that folder hold of other runs, such as those of another machine; and ``--results FOLDER``
makes of these the results of a suite, a page of Markdown with pictures beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from mg2l import cli
from mg2l.cli import suite as suites
from mg2l.core.packages import require
from mg2l.core.schema import ConfigError
from mg2l.evaluation import frames, plots
from mg2l.evaluation.groups import groups_below
from mg2l.evaluation.results import printable
from mg2l.report import results
from mg2l.report.watch import Watch

PACKAGES = ("plotly",)


def parser() -> cli.Parser:
    """The command line."""
    number = cli.at_least
    words = cli.Parser(prog="python -m mg2l.report", description=__doc__)
    words.add_argument("folders", type=Path, nargs="*", metavar="RUN_OR_SWEEP")
    words.add_argument(
        "--out",
        type=Path,
        help="page to write (default: FOLDER/report.html; of --results FOLDER/results.md)",
    )
    words.add_argument(
        "--frames", type=Path, help="folder of tables to write into instead of a page"
    )
    words.add_argument(
        "--results", type=Path, help="folder of such tables to make a page of Markdown of"
    )
    words.add_argument("--suite", help="whose order of families, and groups of them, --results has")
    words.add_argument(
        "--last", type=number(1), default=20, help="iterations at the end (default: 20)"
    )
    words.add_argument(
        "--window", type=number(1), default=10, help="iterations of running means (default: 10)"
    )
    words.add_argument("--env-steps", type=number(1), help="cut every run's end at these steps")
    words.add_argument(
        "--video-mb",
        "--film-mb",
        type=number(0, float),
        default=30,
        help="videos held at most, in MB (default: 30)",
    )
    words.add_argument("--watch", action="store_true", help="serve the page and follow the runs")
    words.add_argument(
        "--port", type=number(0), default=8017, help="of --watch (default: 8017; 0: any)"
    )
    return words


def write_frames(folders: Sequence[Path], out: Path) -> None:
    """Write the tables of all runs below folders into those that are there, and say their sizes."""
    groups, notes = groups_below(folders, measured=True)
    tables = frames.collect(groups, folders)
    if out.is_dir() and any(out.iterdir()):
        tables = frames.merge(frames.read(out), tables)
    for path in frames.write(out, tables):
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")
    for line in notes:
        print(printable(line))


def write_results(tables: Path, out: Path, suite: suites.Suite | None) -> None:
    """Write the results of a folder of tables as Markdown, with pictures beside the page."""
    plots.check("--results", out.with_suffix(".png"))
    from mg2l.report import charts

    found = frames.read(tables)
    if suite is not None:
        found = frames.arrange(found, [cell.env for cell in suite.cells])
    name = tables.resolve().name
    pictures = charts.draw(out.parent, name, found)
    results.write(out, name, found, pictures, None if suite is None else suite.groups)
    for path in (out, *pictures):
        print(path)


@cli.command
def main() -> None:
    """Entry point of ``python -m mg2l.report``."""
    arguments = parser().parse_args()
    if arguments.results is not None:
        if arguments.folders or arguments.frames is not None:
            raise ConfigError("--results reads tables alone: give neither runs nor --frames")
        suite = None if arguments.suite is None else suites.read(arguments.suite)
        out = arguments.out or arguments.results / "results.md"
        write_results(arguments.results, out, suite)
        return
    if arguments.suite is not None:
        raise ConfigError(f"--suite={arguments.suite}: needs --results")
    if not arguments.folders:
        raise ConfigError("a folder of runs is missing, or --results in its place")
    if arguments.frames is not None:
        write_frames(arguments.folders, arguments.frames)
        return
    require("a report", *PACKAGES, extra="report")
    from mg2l.report.contents import write

    path = arguments.out or arguments.folders[0] / "report.html"

    def write_page() -> None:
        groups, notes = groups_below(arguments.folders, measured=True)
        notes += write(
            path,
            groups,
            notes,
            last=arguments.last,
            window=arguments.window,
            env_steps=arguments.env_steps,
            video_bytes=int(arguments.video_mb * 1e6),
        )
        count = sum(len(group.runs) for group in groups)
        for line in [f"{path}: {count} runs, {path.stat().st_size / 1e6:.1f} MB", *notes]:
            print(printable(line), flush=True)

    write_page()
    if arguments.watch:
        follow(arguments.folders, path, write_page, arguments.port)


def follow(folders: Sequence[Path], page: Path, write: Callable[[], object], port: int) -> None:
    """Serve a page and follow its runs until Ctrl-C."""
    try:
        watch = Watch(folders, page, write, port)
    except OSError as error:
        raise ConfigError(f"--port={port}: cannot listen there: {error.strerror}") from None
    print(f"{watch.url} follows the runs until Ctrl-C", flush=True)
    watch.run()


if __name__ == "__main__":
    main()
