"""Keys of FOCAL."""

from __future__ import annotations

from dataclasses import dataclass

from mg2l.algorithms.config import ContextConfig
from mg2l.config.algorithms import register_algorithm
from mg2l.core.schema import bounded


@dataclass
class FOCALConfig(ContextConfig):
    """Distance metric learning (Li et al., 2021)."""

    distance_power: float = bounded(2.0, gt=0)
    """Exponent n of the term that separates tasks, 1 / (distance^n + ``distance_floor``)."""

    distance_floor: float = bounded(0.1, gt=0)
    """Bounds that term where two tasks coincide."""

    distance_weight: float = bounded(1.0, ge=0)
    """Weight of separating tasks against keeping the contexts of one task together."""


register_algorithm("focal", "mg2l.algorithms.focal.algorithm:FOCAL", FOCALConfig)
