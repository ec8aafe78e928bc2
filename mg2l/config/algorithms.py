"""Algorithms by the name that ``algo_name`` gives them, and their keys.

The package's own are registered by the ``config.py`` of their folders in ``mg2l.algorithms``, with
the place of a class that is imported when it is needed, so that keys are read without torch.
Installed packages register theirs, too (entry points of the group ``mg2l.algorithms``), and so does
what an algo file names under ``module``.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from mg2l.core.registry import Registry
from mg2l.core.schema import Section

if TYPE_CHECKING:
    from mg2l.algorithms.base import TaskInference
    from mg2l.config.sections import Config

GROUP = "mg2l.algorithms"
"""Package of the algorithms, and group of entry points."""


@dataclass
class AlgorithmConfig(Section):
    """Base of the algorithms' own keys: none."""

    def check_config(self, config: Config) -> None:
        """Validate the configuration that the algorithm is to run with, before anything is built.

        Args:
            config: of the whole run; its ``algo`` is this section.

        Raises:
            ConfigError: values with which it cannot run; the message names their keys.
        """


@dataclass(frozen=True)
class Algorithm:
    """A registered algorithm."""

    config_class: type[AlgorithmConfig]
    """Dataclass of its own keys."""

    place: str
    """Where its class is: ``package.module:Class``."""

    imported: type[TaskInference] | None = field(default=None, compare=False)
    """The class, where it was imported when it was registered."""

    @property
    def inference(self) -> type[TaskInference]:
        """Its class, imported now if it has not been before."""
        if self.imported is not None:
            return self.imported
        module, _, name = self.place.partition(":")
        return cast("type[TaskInference]", getattr(importlib.import_module(module), name))


@functools.cache
def _load_builtin() -> None:
    """Import the keys of every algorithm of the package, whose modules register them.

    They import what asks here for their names: hence not at the top.
    """
    package = importlib.import_module(GROUP)
    for module in pkgutil.iter_modules(package.__path__, f"{GROUP}."):
        if module.ispkg:
            importlib.import_module(f"{module.name}.config")


algorithms: Registry[Algorithm] = Registry("algorithm", GROUP, _load_builtin)


def register_algorithm(
    name: str,
    algorithm: type[TaskInference] | str,
    config_class: type[AlgorithmConfig] | None = None,
) -> None:
    """Register an algorithm.

    Args:
        name: what ``algo_name:`` in a file of ``configs/algo`` refers to.
        algorithm: subclass of `mg2l.algorithms.base.TaskInference`, or its place as
            ``package.module:Class``, which is imported when a run needs it.
        config_class: dataclass derived from `AlgorithmConfig` that holds its own keys: their types,
            bounds (`mg2l.core.schema.bounded`), and help, the string literal below each. None is
            the class's ``config_class``.

    Raises:
        ValueError: the name is taken by another algorithm, or ``algorithm`` is no such class, or
            has a ``check_config`` of its own.

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
    keys = getattr(algorithm, "config_class", None) if config_class is None else config_class
    if not (isinstance(keys, type) and issubclass(keys, AlgorithmConfig)):
        raise ValueError(
            f"algorithm {name!r} must be a subclass of TaskInference whose config_class derives "
            f"from AlgorithmConfig, got {algorithm!r}"
        )
    if hasattr(algorithm, "check_config"):
        raise ValueError(
            f"algorithm {name!r} has check_config, which nothing calls: it is a method of "
            f"{keys.__name__}, its config_class"
        )
    if isinstance(algorithm, str):
        found = Algorithm(keys, algorithm)
    else:
        found = Algorithm(keys, f"{algorithm.__module__}:{algorithm.__qualname__}", algorithm)
    algorithms.add(name, found)
