"""Environment families by name.

>>> from mg2l.envs import registry
>>> env = registry.make("mpe-spread", num_envs=4, seed=0)
>>> obs, info = env.reset()
>>> obs.shape
(4, 2, 10)
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mg2l.core import plugins
from mg2l.core.schema import ConfigError
from mg2l.envs.base import EnvConfig, VectorEnv

GROUP = "mg2l.envs"
"""Group of entry points: ``family-name = "package.module"``, a module that registers it."""


@dataclass(frozen=True)
class _Family:
    config_class: type[EnvConfig]
    factory: Callable[[Any, int, int], VectorEnv]
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


_families: dict[str, _Family] = {}
_replayers: list[Replayer] = []
_origins: dict[str, tuple[str, str]] = {}


def register(
    name: str,
    config_class: type[EnvConfig],
    factory: Callable[[Any, int, int], VectorEnv],
    scripted: Callable[[], Any] | None = None,
) -> None:
    """Make a family known.

    Args:
        name: what ``family:`` in a file of ``configs/env`` says.
        config_class: the family's own keys; the class of a config tells its family.
        factory: ``(config, num_envs, seed) -> VectorEnv``. Imports of optional packages belong
            inside it.
        scripted: makes the family's ``ScriptedTeams`` (``mg2l.envs.gate``), if it has any.

    Raises:
        ValueError: the name or the config class is taken.
    """
    for known, family in _families.items():
        if known == name or family.config_class is config_class:
            raise ValueError(f"env {name!r} ({config_class.__name__}) clashes with {known!r}")
    _families[name] = _Family(config_class, factory, scripted)
    if (origin := plugins.origin()) is not None:
        _origins[name] = origin


def knows(name: str) -> bool:
    """Whether a family is registered, here or by an installed package; imports nothing."""
    return name in _families or name in _plugins()


def load(module: str, sha256: str | None = None) -> None:
    """Import what registers families: a Python file, by its path, or a module, by its name.

    What has been imported before is not imported again. An error in it is raised as it is. What is
    imported, and from where, is printed on stderr.

    Args:
        module: ends in ``.py`` where it is a file.
        sha256: what its source must have; None is any.

    Raises:
        ConfigError: its source has another hash.
    """
    plugins.import_source(module, sha256)


def origin(name: str) -> tuple[str, str] | None:
    """What `load` imported a family from, if it did.

    Returns:
        The absolute path of a file or the name of a module, and the SHA-256 of its source.
    """
    return _origins.get(name)


def _plugins() -> dict[str, EntryPoint]:
    """Families of installed packages, by name: entry points of the group ``mg2l.envs``."""
    return plugins.entries(GROUP)


def _load_plugin(name: str) -> None:
    """Import the package that registers a family, if one says so.

    Raises:
        ConfigError: its import fails, or does not register the family.
    """
    entry = _plugins().get(name)
    if entry is None or name in _families:
        return
    named = plugins.import_entry(f"env {name!r}", entry)
    if name not in _families:
        raise ConfigError(f"{named} is not registered by {entry.module}, which should do so")


def offers(name: str) -> bool:
    """Whether there is a family of this name, here or in an installed package."""
    return name in _families or name in _plugins()


def names() -> list[str]:
    """Names of all families that have been registered, here or by an installed package."""
    for name in _plugins():
        with suppress(ConfigError):  # said when the family is asked for
            _load_plugin(name)
    return sorted(_families)


def config_class(name: str) -> type[EnvConfig]:
    """Config class of a family.

    Raises:
        ValueError: there is no such family.
    """
    _load_plugin(name)
    if name not in _families:
        near = difflib.get_close_matches(name, _families, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown env {name!r}; choose one of {names()}{hint}")
    return _families[name].config_class


def make(config: EnvConfig | str, num_envs: int, seed: int = 0) -> VectorEnv:
    """Build ``num_envs`` copies of an environment.

    Args:
        config: the config of a family, or a family's name for its defaults.
        num_envs: copies, at least 1.
        seed: seed of all streams of random numbers, until ``reset`` is given another.

    Raises:
        ValueError: unknown family, or ``num_envs`` below 1.
    """
    if isinstance(config, str):
        config = config_class(config)()
    if num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, got {num_envs}")
    for family in _families.values():
        if type(config) is family.config_class:
            return family.factory(config, num_envs, seed)
    raise ValueError(f"{type(config).__name__} is the config of no env; choose one of {names()}")


def scripted(config: EnvConfig) -> Any:
    """The hand-written teams of a config's family (``mg2l.envs.gate.ScriptedTeams``).

    Raises:
        ConfigError: it has none.
    """
    for family in _families.values():
        if type(config) is family.config_class and family.scripted is not None:
            return family.scripted()
    known = sorted(name for name, family in _families.items() if family.scripted is not None)
    raise ConfigError(
        f"{type(config).__name__}: the family has no scripted teams; these have: {', '.join(known)}"
    )


def register_replayer(replayer: Replayer) -> None:
    """Let ``mg2l.envs.replay`` replay a suite's recordings."""
    _replayers.append(replayer)


def replayers() -> list[Replayer]:
    """The suites that can replay recordings."""
    return list(_replayers)
