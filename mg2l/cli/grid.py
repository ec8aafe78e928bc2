"""The runs that a command line of ``mg2l.sweep`` asks for."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence

from mg2l import cli
from mg2l.cli.jobs import THREADS, Job
from mg2l.cli.suite import FULL, Suite, cross, read
from mg2l.config.algorithms import algorithms
from mg2l.config.options import Options
from mg2l.config.sections import Config
from mg2l.core.schema import ConfigError

GIVEN_OTHERWISE = {"seed": "--seeds", "main_save_path": "--folder"}
"""Keys that a sweep sets itself, and the options that choose them."""

BUDGETS = {"n_iters", "n_env_steps"}


def _leaf(word: str) -> str:
    """The key of an override, without its group."""
    return word.partition("=")[0].rpartition(".")[2]


def merged(general: Sequence[str], *special: Sequence[str]) -> list[str]:
    """Overrides, of which special ones replace general ones.

    ``n_iters`` and ``n_env_steps`` are one budget: either replaces both.
    """
    found = list(general)
    for words in special:
        keys = {*map(_leaf, words)}
        if keys & BUDGETS:
            keys |= BUDGETS
        found = [word for word in found if _leaf(word) not in keys]
        found += words
    return found


def chosen(arguments: argparse.Namespace) -> Suite:
    """Cells to train: a suite's runs, or algorithms x environments x seeds.

    Raises:
        ConfigError: there is no such suite or size, neither it nor a grid, or a size without it.
    """
    if arguments.suite is not None:
        suite = read(arguments.suite, arguments.size or FULL)
        return suite.only(arguments.algos, arguments.envs, arguments.seeds)
    if arguments.size is not None:
        raise ConfigError(f"--size={arguments.size}: needs --suite")
    for option in ("algos", "envs"):
        if getattr(arguments, option) is None:
            raise ConfigError(f"--{option} is missing, or --suite in its place")
    cells = cross(arguments.algos, arguments.envs, arguments.seeds or [0])
    return Suite(cells, [], {}, {})


def grid(arguments: argparse.Namespace) -> list[Job]:
    """The runs, seed by seed.

    Raises:
        ConfigError: a command line that ``mg2l.train`` refuses, or one that saves nothing.
    """
    suite = chosen(arguments)
    names = {name for cell in suite.cells for name in (cell.algo, cell.env)}
    special: dict[str, list[str]] = {name: [] for name in names}
    for word in arguments.set:
        name, colon, override = word.partition(":")
        if not colon or name not in names:
            raise ConfigError(f"--set={word}: expected NAME:KEY=VALUE, NAME one of {sorted(names)}")
        special[name].append(override)
    jobs, read_once = [], functools.cache(_read)  # seeds do not matter
    for cell in suite.cells:
        of_suite = [suite.special.get(name, []) for name in (cell.env, cell.algo)]
        general = merged(suite.overrides, *of_suite)
        given = merged(arguments.overrides, special[cell.env], special[cell.algo])
        overrides = merged(general, given)
        for word in overrides:
            if option := GIVEN_OTHERWISE.get(word.partition("=")[0]):
                raise ConfigError(f"{word}: a sweep is given this by {option}")
        words = [f"--algo={cell.algo}", f"--env={cell.env}", *overrides]
        config, options = read_once(tuple(words))
        if suite.budget < 1 and not BUDGETS & {*map(_leaf, given)}:
            budget = "n_env_steps" if config.n_env_steps else "n_iters"
            part = max(1, round(suite.budget * getattr(config, budget)))
            words = merged(words, [f"{budget}={part}"])
            config, options = read_once(tuple(words))
        algorithm = algorithms.get(config.algo_name).inference
        infers = algorithm.latent_source == "context"
        analyses = [name for name in (*suite.then, *arguments.then) if infers or name != "probe"]
        job = Job(
            options.algo,
            options.env,
            cell.seed,
            [*(word for word in words if _leaf(word) != THREADS), f"seed={cell.seed}"],
            config.n_iters,
            arguments.folder if arguments.on == "local" else arguments.folder.resolve(),
            list(dict.fromkeys(analyses)),
            config.n_training_threads,
            config.n_env_steps,
            options=suite.then,
        )
        jobs.append(job)
    if len({job.name for job in jobs}) < len(jobs):
        raise ConfigError("--algos, --envs and --seeds must not name anything twice")
    return jobs


def _read(words: tuple[str, ...]) -> tuple[Config, Options]:
    """Config and options of a command line of ``mg2l.train``."""
    found = cli.read(words)
    if found is None:
        raise ConfigError("--help is an option of its own")
    if not found[0].save_model:
        raise ConfigError("save_model=false: a sweep resumes from checkpoints")
    return found
