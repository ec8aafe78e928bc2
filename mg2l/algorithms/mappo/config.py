"""MAPPO has no keys of its own."""

from __future__ import annotations

from mg2l.config.algorithms import AlgorithmConfig, register_algorithm

register_algorithm("mappo", "mg2l.algorithms.mappo.algorithm:MAPPO", AlgorithmConfig)
