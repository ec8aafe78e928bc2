"""MAPPO (Yu et al., 2022, arXiv:2103.01955): actors and critics know nothing about the task."""

from __future__ import annotations

from mg2l.algorithms.base import TaskInference


class MAPPO(TaskInference):
    """The baseline that task inference must beat."""
