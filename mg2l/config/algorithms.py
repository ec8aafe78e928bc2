"""Every algorithm by the name that ``algo_name`` gives it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mg2l.algorithms.base import TaskInference

_ALGORITHMS = {
    "mg2l": "mg2l.algorithm:MG2L",
    "mappo": "mappo:MAPPO",
    "oracle": "oracle:Oracle",
    "ma-pearl": "ma_pearl:MAPearl",
    "focal": "focal:FOCAL",
    "corro": "corro:CORRO",
    "mate": "mate:MATE",
    "varibad": "varibad:VariBAD",
    "rl2": "rl2:RL2",
}
"""Where each class is, below ``mg2l.algorithms``. It is imported when it is asked for: algorithms
import the configuration, which reads their names here."""


def names() -> list[str]:
    """Names of all algorithms."""
    return list(_ALGORITHMS)


def load(name: str) -> type[TaskInference]:
    """The class of an algorithm.

    Raises:
        ValueError: there is no such algorithm.
    """
    if name not in _ALGORITHMS:
        raise ValueError(f"unknown algorithm {name!r}; choose one of {names()}")
    module, _, title = _ALGORITHMS[name].partition(":")
    found: type[TaskInference] = getattr(
        importlib.import_module(f"mg2l.algorithms.{module}"), title
    )
    return found
