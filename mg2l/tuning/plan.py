"""A search as planned by a command line of ``mg2l.tune``, validated before it starts."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mg2l.cli.jobs import THREADS
from mg2l.config.files import KINDS, load_config
from mg2l.config.keys import Schema
from mg2l.config.saved import family_of
from mg2l.config.sections import Config
from mg2l.core.schema import ConfigError
from mg2l.training import tree
from mg2l.training.choice import choose, stem
from mg2l.training.learner import Learner
from mg2l.tuning import space
from mg2l.tuning.schedulers import Objective, Rungs
from mg2l.tuning.space import Dimension
from mg2l.tuning.trial import Trial

GIVEN_OTHERWISE = {"main_save_path": "--folder"}
MEASURED = re.compile(r"eval/(?P<part>\w+)_(?P<shots>\d+)_shots")


def check_objective(metric: str, config: Config) -> int:
    """Validate a metric; returns the iterations between two values of it.

    Raises:
        ConfigError: a meta-test's metric that this configuration does not measure.
    """
    if not metric.startswith("eval/"):
        return 1
    found = MEASURED.fullmatch(metric)
    if found is None:
        raise ConfigError(f"--objective={metric}: expected eval/PART_K_shots, as eval/test_1_shots")
    if not config.eval_interval:
        raise ConfigError(f"--objective={metric} needs meta-tests: set eval_interval, got 0")
    if int(found["shots"]) not in config.eval_shots:
        raise ConfigError(
            f"--objective={metric}: eval_shots must have {found['shots']}, got {config.eval_shots}"
        )
    return config.eval_interval


def check_forks(dimensions: Sequence[Dimension], build: Callable[[dict[str, Any]], Config]) -> None:
    """Validate that a fork can take each value: shapes of its state must stay.

    Raises:
        ConfigError: one cannot.
    """

    def state(config: Config) -> dict[str, Any]:
        learner = Learner(config, torch.device("cpu"))
        try:
            held = learner.state_dict()
            return {name: held[name] for name in ("networks", "optimisers", "buffers")}
        finally:
            learner.close()

    first = {dimension.name: dimension.ends[0] for dimension in dimensions}
    before = state(build(first))
    for dimension in dimensions:
        for value in dimension.ends[1:]:
            difference = tree.first_difference(
                state(build({**first, dimension.name: value})), before
            )
            if difference:
                raise ConfigError(
                    f"--scheduler=pbt: {dimension.name}={space.text(value)} changes what a run "
                    f"holds, so that no fork can take it: {difference}"
                )


def fixed(arguments: argparse.Namespace, schema: Schema) -> dict[str, Any]:
    """Values by ``Key.path`` that the command line gives to all trials.

    Raises:
        ConfigError: a key or value that cannot be, or that the search sets itself.
    """
    found = schema.overrides(arguments.overrides)
    for name, option in GIVEN_OTHERWISE.items():
        if name in found:
            raise ConfigError(f"{name}={found[name]}: a search is given this by {option}")
    return found


def makes(
    arguments: argparse.Namespace, config: Config
) -> Callable[[int, dict[str, Any], bool], Trial]:
    """Factory of trials, see `mg2l.tuning.search.Search`."""
    names = {kind: getattr(arguments, kind) for kind in KINDS}
    general = [
        word for word in arguments.overrides if word.partition("=")[0] not in ("seed", THREADS)
    ]

    def make(number: int, params: dict[str, Any], fork: bool) -> Trial:
        seed = (config.seed + number * fork) % 2**32
        overrides = [*general, *space.words(params), f"seed={seed}"]
        trial = Trial(
            stem(names["algo"]),
            stem(names["env"]),
            seed,
            [*(f"--{kind}={name}" for kind, name in names.items()), *overrides],
            config.n_iters,
            arguments.folder / "trials" / f"{number:04d}",
            [],
            config.n_training_threads,
            number=number,
            params=params,
        )
        try:
            choose(names, overrides)
        except ConfigError as error:
            trial.state, trial.error = "failed", str(error)
        return trial

    return make


@dataclass(frozen=True)
class Plan:
    """A validated search.

    Attributes:
        names: of the experiment, the algorithm and the environment.
        config: of a trial, but for what is searched.
        fixed: values by ``Key.path`` that the command line gives to all trials.
        space: dimensions to search.
        rungs: where trials are compared.
        objective: the metric, and its direction.
    """

    names: dict[str, str]
    config: Config
    fixed: dict[str, Any]
    space: list[Dimension]
    rungs: Rungs
    objective: Objective


def plan(arguments: argparse.Namespace) -> Plan:
    """Validate a command line before anything is started.

    Raises:
        ConfigError: a mistake in it.
    """
    names = {kind: getattr(arguments, kind) for kind in KINDS}
    config = load_config(**names, overrides=arguments.overrides)
    schema = Schema(family_of(config.env), config.algo_name)
    given = fixed(arguments, schema)
    dimensions = space.read(arguments.search, schema, [*given])
    if config.n_env_steps:
        raise ConfigError(
            f"n_env_steps={config.n_env_steps}: give the budget of a search as n_iters"
        )
    if not config.save_model:
        raise ConfigError("save_model=false: a search continues from checkpoints")
    every = check_objective(arguments.objective, config)
    rungs = Rungs(
        arguments.scheduler, config.n_iters, arguments.interval or 0, arguments.reduction, every
    )
    if config.n_iters < every:
        raise ConfigError(
            f"--objective={arguments.objective}: n_iters={config.n_iters} must be at least "
            f"eval_interval={every}"
        )
    if arguments.interval and arguments.interval >= config.n_iters:
        raise ConfigError(
            f"--interval={arguments.interval} must be less than n_iters={config.n_iters}"
        )
    if arguments.scheduler == "pbt":
        if arguments.trials < 4:
            raise ConfigError(f"--trials={arguments.trials}: a population needs at least 4")
        overrides = arguments.overrides
        check_forks(
            dimensions,
            lambda values: load_config(**names, overrides=[*overrides, *space.words(values)]),
        )
    objective = Objective(arguments.objective, arguments.mode)
    return Plan(names, config, given, dimensions, rungs, objective)


def settings(arguments: argparse.Namespace, wanted: Plan) -> dict[str, Any]:
    """Settings that a continued search must share with its earlier part."""
    found: dict[str, Any] = {
        **wanted.names,
        "overrides": sorted(arguments.overrides),
        "search": sorted(arguments.search),
        "sampler": arguments.sampler,
        "scheduler": arguments.scheduler,
        "objective": [arguments.objective, arguments.mode],
        "rungs": wanted.rungs.iterations,
    }
    if arguments.scheduler == "pbt":
        found["trials"] = arguments.trials
    return found
