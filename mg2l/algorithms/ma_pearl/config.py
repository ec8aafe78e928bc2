"""Keys of MA-PEARL."""

from __future__ import annotations

from dataclasses import dataclass

from mg2l.algorithms.config import ContextConfig
from mg2l.config.algorithms import register_algorithm
from mg2l.core.schema import bounded


@dataclass
class MAPearlConfig(ContextConfig):
    """Products of Gaussian factors (Rakelly et al., 2019)."""

    kl_weight: float = bounded(0.1, ge=0)
    """Weight of KL(q(z|c) || N(0, I)) [nats]."""


register_algorithm("ma-pearl", "mg2l.algorithms.ma_pearl.algorithm:MAPearl", MAPearlConfig)
