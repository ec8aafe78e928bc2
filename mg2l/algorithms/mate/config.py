"""Keys of MATE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mg2l.algorithms.config import BeliefConfig
from mg2l.config.algorithms import register_algorithm


@dataclass
class MATEConfig(BeliefConfig):
    """Multi-agent task embeddings (Schaefer et al., 2022)."""

    mate_encoding: Literal["own", "joint", "mixed"] = "own"
    """What is encoded and decoded: each agent's own transitions (``own``); the joint transitions of
    the team (``joint``); or each agent's own, with joint ones decoded from a mixture of embeddings
    (``mixed``)."""


register_algorithm("mate", "mg2l.algorithms.mate.algorithm:MATE", MATEConfig)
