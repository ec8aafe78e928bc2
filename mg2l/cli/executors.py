"""Options of sweeps and searches that say where their runs are to run."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from mg2l import cli
from mg2l.core.files import parse_yaml
from mg2l.core.schema import ConfigError
from mg2l.launch.cluster import Ray
from mg2l.launch.local import Local
from mg2l.launch.slurm import Slurm
from mg2l.launch.work import Executor, Resources

MANY = 1000
"""Tasks that are queued on a cluster at once, where ``--jobs`` says nothing."""


def add_executor(words: argparse.ArgumentParser) -> None:
    """Add the options."""
    more = words.add_argument_group("on a cluster, whose machines share the folder and have mg2l")
    more.add_argument(
        "--on",
        default="local",
        metavar="WHERE",
        help="local: processes of this machine (default); ray://HOST:PORT, or auto for the Ray "
        "cluster that this machine belongs to; slurm",
    )
    more.add_argument(
        "--cpus",
        type=cli.at_least(1),
        help="of each run on a cluster, and its threads (default: 1)",
    )
    more.add_argument("--gpus", type=cli.at_least(0, float), help="of each run (default: 0)")
    more.add_argument("--memory", type=cli.at_least(0, float), help="of each run [GB]")
    more.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="an option of sbatch, such as partition=gpu or time=240",
    )


@contextmanager
def executor(arguments: argparse.Namespace) -> Iterator[Executor]:
    """The executor that the command line chooses.

    Raises:
        ConfigError: it names no such place, nothing answers there, or it lacks what a run needs.
    """
    where = arguments.on
    given = [name for name in ("cpus", "gpus", "memory") if getattr(arguments, name) is not None]
    if where == "local" and given:
        raise ConfigError(f"--{given[0]} needs a cluster: choose one by --on")
    if arguments.slurm and where != "slurm":
        raise ConfigError(f"--slurm needs --on=slurm, got --on={where}")
    resources = Resources(arguments.cpus or 1, arguments.gpus or 0, arguments.memory or 0)
    folder, jobs = arguments.folder.resolve(), arguments.jobs or MANY
    made: Executor
    if where == "local":
        made = Local(arguments.jobs or 1)
    elif where == "auto" or where.startswith("ray://"):
        made = Ray(where, resources, folder, jobs)
    elif where == "slurm":
        made = Slurm(resources, folder, jobs, slurm_options(arguments.slurm))
    else:
        raise ConfigError(f"--on must be local, ray://HOST:PORT, auto or slurm, got {where!r}")
    try:
        yield made
    finally:
        made.close()


def slurm_options(words: list[str]) -> dict[str, str | int]:
    """Options of sbatch, from ``OPTION=VALUE``.

    Raises:
        ConfigError: a word is something else.
    """
    found: dict[str, str | int] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not name or not equals or not text:
            raise ConfigError(f"--slurm: expected OPTION=VALUE, got {word!r}")
        value = parse_yaml(text)
        found[name] = value if isinstance(value, int) else text
    return found
