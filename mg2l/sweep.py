"""Train a grid of runs: ``python -m mg2l.sweep --algos mg2l mappo --envs mpe-spread --seeds 0 1``.

Algorithms x environments x seeds, all of one seed before any of the next. What is done is read from
the runs themselves, so the same command, killed at any moment, goes on where it was; with more
seeds or a larger ``n_iters`` it continues. ``sweep.jsonl`` in the folder has a line per run.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from mg2l import cli
from mg2l.cli.jobs import RESULTS, THREADS, Job
from mg2l.cli.scheduler import Sweep, own
from mg2l.config import algorithms as registry
from mg2l.core.schema import ConfigError

GIVEN_OTHERWISE = {"seed": "--seeds", "main_save_path": "--folder"}
"""Keys that a sweep sets itself, and by what they are chosen."""


def merged(general: Sequence[str], *special: Sequence[str]) -> list[str]:
    """Overrides in which those that are special to something replace the general ones."""
    found = list(general)
    for words in special:
        keys = {word.partition("=")[0].rpartition(".")[2] for word in words}
        found = [w for w in found if w.partition("=")[0].rpartition(".")[2] not in keys]
        found += words
    return found


def grid(arguments: argparse.Namespace) -> list[Job]:
    """The runs, seed by seed.

    Raises:
        ConfigError: a command line that ``mg2l.train`` refuses, or one that saves nothing.
    """
    names = {*arguments.algos, *arguments.envs}
    special: dict[str, list[str]] = {name: [] for name in names}
    for word in arguments.set:
        name, colon, override = word.partition(":")
        if not colon or name not in names:
            raise ConfigError(f"--set={word}: expected NAME:KEY=VALUE, NAME one of {sorted(names)}")
        special[name].append(override)
    jobs = []
    for seed in arguments.seeds:
        for env in arguments.envs:
            for algo in arguments.algos:
                overrides = merged(arguments.overrides, special[env], special[algo])
                for word in overrides:
                    if option := GIVEN_OTHERWISE.get(word.partition("=")[0]):
                        raise ConfigError(f"{word}: a sweep is given this by {option}")
                words = [f"--algo={algo}", f"--env={env}", *overrides, f"seed={seed}"]
                found = cli.read(words)
                if found is None:
                    raise ConfigError("--help is an option of its own")
                config, options = found
                if not config.save_model:
                    raise ConfigError("save_model=false: a sweep goes on from checkpoints")
                algorithm = registry.load(config.algo_name)
                infers = algorithm.latent_source == "context"
                analyses = [name for name in arguments.then if infers or name != "probe"]
                job = Job(
                    options.algo,
                    options.env,
                    seed,
                    [word for word in words if word.partition("=")[0] != THREADS],
                    config.n_iters,
                    arguments.folder,
                    analyses,
                    config.n_training_threads,
                    config.n_env_steps,
                )
                jobs.append(job)
    if len({job.name for job in jobs}) < len(jobs):
        raise ConfigError("--algos, --envs and --seeds must not name anything twice")
    return jobs


def parser() -> argparse.ArgumentParser:
    """The command line."""
    words = cli.Parser(prog="python -m mg2l.sweep", description=__doc__)
    words.add_argument("--algos", nargs="+", required=True, help="as for mg2l.train --algo")
    words.add_argument("--envs", nargs="+", required=True, help="as for mg2l.train --env")
    words.add_argument("--seeds", nargs="+", type=int, default=[0], help="(default: 0)")
    words.add_argument("--jobs", type=cli.at_least(1), default=1, help="runs at once (default: 1)")
    words.add_argument("--folder", type=Path, required=True, help="where all of it is kept")
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
        help="what is done with each run when it is trained; probe where a task is inferred",
    )
    words.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for mg2l.train")
    return words


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line; overrides may stand anywhere, also after options that take many words."""
    known, own, overrides = parser(), list[str](), list[str]()
    for before, word in zip(["", *words], words, strict=False):
        override = re.match(r"\w[\w.]*=", word) and before not in ("--set", "--folder")
        (overrides if override else own).append(word)
    arguments = known.parse_args(own)
    arguments.overrides += overrides
    return arguments


@cli.command
def main() -> int:
    """Entry point of ``python -m mg2l.sweep``; returns the exit status."""
    arguments = parse(sys.argv[1:])
    jobs = grid(arguments)
    with own(arguments.folder):
        return Sweep(jobs, arguments.folder, arguments.jobs).go()


if __name__ == "__main__":
    sys.exit(main())
