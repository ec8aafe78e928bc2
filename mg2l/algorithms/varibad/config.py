"""Keys of variBAD."""

from __future__ import annotations

from dataclasses import dataclass

from mg2l.algorithms.config import BeliefConfig
from mg2l.config.algorithms import register_algorithm
from mg2l.core.schema import bounded


@dataclass
class VariBADConfig(BeliefConfig):
    """Beliefs that explain past and future (Zintgraf et al., 2020)."""

    elbo_terms: int = bounded(10, ge=1, le=1_000_000)
    """Steps of a trajectory at whose beliefs the bound is evaluated in an update."""

    decoded_steps: int = bounded(20, ge=1, le=1_000_000)
    """Steps, past and to come, that are decoded from each of these beliefs."""


register_algorithm("varibad", "mg2l.algorithms.varibad.algorithm:VariBAD", VariBADConfig)
