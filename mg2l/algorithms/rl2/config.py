"""What RL^2 requires of a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mg2l.config.algorithms import AlgorithmConfig, register_algorithm
from mg2l.core.schema import ConfigError

if TYPE_CHECKING:
    from mg2l.config.sections import Config


@dataclass
class RL2Config(AlgorithmConfig):
    """No keys of its own."""

    def check_config(self, config: Config) -> None:
        if not (config.policy.use_recurrent_policy or config.policy.use_naive_recurrent_policy):
            raise ConfigError(
                "rl2 needs use_naive_recurrent_policy=true or use_recurrent_policy=true, got false"
            )


register_algorithm("rl2", "mg2l.algorithms.rl2.algorithm:RL2", RL2Config)
