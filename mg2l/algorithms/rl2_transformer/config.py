"""Keys of RL^2 with a transformer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mg2l.config.algorithms import AlgorithmConfig, register_algorithm
from mg2l.core.schema import ConfigError, bounded

if TYPE_CHECKING:
    from mg2l.config.sections import Config


@dataclass
class RL2TransformerConfig(AlgorithmConfig):
    """A causal transformer over a task's history (Grigsby et al., 2024)."""

    memory_layers: int = bounded(2, ge=1, le=100)
    """Blocks of attention and feed forward."""

    memory_heads: int = bounded(4, ge=1, le=1024)
    """Heads of the attention; ``algo_hidden_size`` must be a multiple of twice as many."""

    memory_window: int = bounded(0, ge=0, le=1_000_000)
    """Steps that are attended to at most, the present one included; 0 is as many as a trial of
    training has. At meta-test what lies further back is forgotten."""

    def check_config(self, config: Config) -> None:
        policy = config.policy
        if not policy.use_naive_recurrent_policy or policy.recurrent_reset != "task":
            raise ConfigError(
                "rl2-transformer reads trials as a whole: it needs use_naive_recurrent_policy=true "
                "and recurrent_reset=task"
            )
        if not config.ppo.trial_gamma:
            raise ConfigError("rl2-transformer needs trial_gamma above 0, got 0")
        if policy.algo_hidden_size % (2 * self.memory_heads):
            raise ConfigError(
                f"algo_hidden_size={policy.algo_hidden_size} must be a multiple of twice "
                f"memory_heads={self.memory_heads}"
            )


register_algorithm(
    "rl2-transformer",
    "mg2l.algorithms.rl2_transformer.algorithm:RL2Transformer",
    RL2TransformerConfig,
)
