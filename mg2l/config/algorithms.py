"""Algorithms by the name that ``algo_name`` gives them.

Modules of ``mg2l.algorithms`` register theirs; so do installed packages (entry points of the group
``mg2l.algorithms``), and what an algo file names under ``module``.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mg2l.core import plugins
from mg2l.core.schema import ConfigError, Section, nearest

if TYPE_CHECKING:
    from mg2l.algorithms.base import TaskInference

GROUP = "mg2l.algorithms"
"""Group of entry points: ``algo-name = "package.module"``, a module that registers it; and the
package whose own modules do."""


@dataclass
class AlgorithmConfig(Section):
    """Base of the algorithms' own keys: none."""


_algorithms: dict[str, type[TaskInference]] = {}
_origins: dict[str, tuple[str, str]] = {}


def register_algorithm(name: str, algorithm: type[TaskInference]) -> None:
    """Make an algorithm known.

    Args:
        name: what ``algo_name:`` in a file of ``configs/algo`` says.
        algorithm: subclass of `mg2l.algorithms.base.TaskInference`. Its ``config_class``, a
            dataclass derived from `AlgorithmConfig`, holds its own keys: their types, bounds
            (`mg2l.core.schema.bounded`), and help, the string literal below each.

    Raises:
        ValueError: the name is taken by another algorithm, or ``algorithm`` is no such class.

    Example::

        @dataclass
        class MineConfig(ContextConfig):
            '''My own algorithm.'''

            margin: float = bounded(1.0, gt=0)
            '''Distance that contexts of different tasks must keep.'''

        class Mine(ContextInference):
            config_class = MineConfig

        register_algorithm("mine", Mine)
    """
    config_class = getattr(algorithm, "config_class", None)
    if not (isinstance(config_class, type) and issubclass(config_class, AlgorithmConfig)):
        raise ValueError(
            f"algorithm {name!r} must be a subclass of TaskInference whose config_class derives "
            f"from AlgorithmConfig, got {algorithm!r}"
        )
    if name in _algorithms:
        raise ValueError(f"algorithm {name!r} is registered already, as {_algorithms[name]!r}")
    _algorithms[name] = algorithm
    if (origin := plugins.origin()) is not None:
        _origins[name] = origin


@functools.cache
def _load_builtin() -> None:
    """Import every module of the package, each of which registers what it is.

    They import the configuration, which asks here for their names: hence not at the top.
    """
    package = importlib.import_module(GROUP)
    for module in pkgutil.walk_packages(package.__path__, f"{GROUP}."):
        importlib.import_module(module.name)


def _load(name: str) -> None:
    """Import what registers an algorithm, if it is built in or an installed package says so.

    Raises:
        ConfigError: a package's import fails, or does not register it.
    """
    _load_builtin()
    entry = None if name in _algorithms else plugins.entries(GROUP).get(name)
    if entry is None:
        return
    named = plugins.import_entry(f"algorithm {name!r}", entry)
    if name not in _algorithms:
        raise ConfigError(f"{named} is not registered by {entry.module}, which should do so")


def knows(name: str) -> bool:
    """Whether an algorithm is built in, registered, or one of an installed package."""
    _load_builtin()
    return name in _algorithms or name in plugins.entries(GROUP)


def names() -> list[str]:
    """Names of all algorithms that have been registered, here or by an installed package."""
    for name in ["", *plugins.entries(GROUP)]:
        with suppress(ConfigError):  # raised when the algorithm is asked for
            _load(name)
    return sorted(_algorithms)


def load(name: str) -> type[TaskInference]:
    """The class of an algorithm.

    Raises:
        ConfigError: there is no such algorithm; the message names the nearest.
    """
    _load(name)
    if name not in _algorithms:
        known = names()
        raise ConfigError(
            f"unknown algorithm {name!r}; choose one of {', '.join(known)}{nearest(name, known)}"
        )
    return _algorithms[name]


def load_module(module: str, sha256: str | None = None) -> None:
    """Import what registers algorithms: a Python file, by its path, or a module, by its name.

    Args:
        module: see `mg2l.core.plugins.import_source`.
        sha256: what its source must have; None is any.

    Raises:
        ConfigError: its source has another hash.
    """
    plugins.import_source(module, sha256)


def origin(name: str) -> tuple[str, str] | None:
    """What `load_module` imported an algorithm from, if it did.

    Returns:
        The absolute path of a file or the name of a module, and the SHA-256 of its source.
    """
    return _origins.get(name)
