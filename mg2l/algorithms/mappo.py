"""MAPPO (Yu et al., 2022, arXiv:2103.01955): actors and critics know nothing of the task."""

from __future__ import annotations

from mg2l.algorithms.base import TaskInference
from mg2l.config.algorithms import register_algorithm


class MAPPO(TaskInference):
    """The baseline that task inference must beat."""


register_algorithm("mappo", MAPPO)
