"""The oracle has no keys of its own."""

from __future__ import annotations

from mg2l.config.algorithms import AlgorithmConfig, register_algorithm

register_algorithm("oracle", "mg2l.algorithms.oracle.algorithm:Oracle", AlgorithmConfig)
