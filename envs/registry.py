"""Environment families by name.

>>> from mg2l.envs import registry
>>> env = registry.make("mpe-spread", num_envs=4, seed=0)
>>> obs, info = env.reset()
>>> obs.shape
(4, 2, 10)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mg2l.core.registry import Registry
from mg2l.core.schema import ConfigError
from mg2l.envs.base import EnvConfig, Seed, VectorEnv


@dataclass(frozen=True)
class Family:
    """Arguments of `register`."""

    config_class: type[EnvConfig]
    factory: Callable[[Any, int, Any], VectorEnv]
    scripted: Callable[[], Any] | None = None


_Arrays = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Replayer:
    """How a suite replays recorded trajectories (``mg2l.envs.replay``)."""

    replays: Callable[[_Arrays], bool]
    """Whether the arrays of a file are one of the suite's recordings, whatever its name."""

    replay: Callable[[_Arrays, int | None], tuple[str, dict[str, float]]]
    """``(recording, steps) -> (description, largest deviation of each array)``; raises
    ``ValueError`` with one line where an array is missing or does not fit."""


families: Registry[Family] = Registry("env", "mg2l.envs")
_replayers: list[Replayer] = []


def register(
    name: str,
    config_class: type[EnvConfig],
    factory: Callable[[Any, int, Any], VectorEnv],
    scripted: Callable[[], Any] | None = None,
) -> None:
    """Register a family.

    Args:
        name: what ``family:`` in a file of ``configs/env`` refers to.
        config_class: the family's own keys; the class of a config determines its family.
        factory: ``(config, num_envs, seed) -> VectorEnv``, the seed as `Streams` takes it. Imports
            of optional packages belong inside it.
        scripted: makes the family's ``ScriptedTeams`` (``mg2l.envs.gate``), if it has any.

    Raises:
        ValueError: another family has the name or the config class.
    """
    for known, family in families.registered().items():
        if family.config_class is config_class and known != name:
            raise ValueError(f"env {name!r} ({config_class.__name__}) clashes with {known!r}")
    families.add(name, Family(config_class, factory, scripted))


def names() -> list[str]:
    """Names of all families that have been registered, here or by an installed package."""
    return families.names()


def config_class(name: str) -> type[EnvConfig]:
    """Config class of a family.

    Raises:
        ConfigError: there is no such family.
    """
    return families.get(name).config_class


def make(config: EnvConfig | str, num_envs: int, seed: Seed = 0) -> VectorEnv:
    """Build ``num_envs`` sub-environments.

    Args:
        config: the config of a family, or a family's name for its defaults.
        num_envs: sub-environments, at least 1.
        seed: seed of all streams of random numbers, until ``reset`` is given another.

    Raises:
        ValueError: unknown family, or ``num_envs`` below 1.
        ConfigError: the family cannot set ``n_validation_tasks`` aside.
    """
    if isinstance(config, str):
        config = config_class(config)()
    if num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, got {num_envs}")
    for name, family in families.registered().items():
        if type(config) is family.config_class:
            env = family.factory(config, num_envs, seed)
            found, wanted = env.tasks.n_validation, config.n_validation_tasks
            if found != wanted:
                env.close()
                raise ConfigError(
                    f"n_validation_tasks={wanted}: env {name!r} sets {found} tasks aside; its "
                    "TaskSet needs with_validation(config)"
                )
            return env
    raise ValueError(f"{type(config).__name__} is the config of no env; choose one of {names()}")


def has_scripted(config: EnvConfig) -> bool:
    """Whether a config's family has hand-written teams."""
    return any(
        type(config) is family.config_class and family.scripted is not None
        for family in families.registered().values()
    )


def scripted(config: EnvConfig) -> Any:
    """The hand-written teams of a config's family (``mg2l.envs.gate.ScriptedTeams``).

    Raises:
        ConfigError: it has none.
    """
    known = families.registered()
    for family in known.values():
        if type(config) is family.config_class and family.scripted is not None:
            return family.scripted()
    have = sorted(name for name, family in known.items() if family.scripted is not None)
    raise ConfigError(
        f"{type(config).__name__}: the family has no scripted teams; these have: {', '.join(have)}"
    )


def register_replayer(replayer: Replayer) -> None:
    """Register how ``mg2l.envs.replay`` replays a suite's recordings."""
    _replayers.append(replayer)


def replayers() -> list[Replayer]:
    """The suites that can replay recordings."""
    return list(_replayers)
