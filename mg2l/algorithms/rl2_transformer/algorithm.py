"""RL^2 with a transformer for memory: attention to all that happened in the episodes of a task.

Grigsby, Fan, Zhu, *AMAGO: Scalable In-Context Reinforcement Learning for Adaptive Agents*, ICLR
2024, arXiv:2310.09971, has the memory; on-policy here, and for several agents. Melo, *Transformers
are Meta-Reinforcement Learners*, ICML 2022, arXiv:2206.06614, does so with PPO.
"""

from __future__ import annotations

from torch import nn

from mg2l.algorithms.rl2.algorithm import RL2
from mg2l.algorithms.rl2_transformer.config import RL2TransformerConfig
from mg2l.experience.problem import ProblemSpec
from mg2l.nn.transformer import StackedTransformer


class RL2Transformer(RL2):
    """`RL2` whose actors and critics attend to all earlier steps of the task.

    Decentralised: an agent attends to its own steps alone. The critic reads those of all agents.
    """

    config_class = RL2TransformerConfig
    options: RL2TransformerConfig

    def __init__(self, spec: ProblemSpec) -> None:
        super().__init__(spec)
        self.window = self.options.memory_window or spec.config.rollout_steps

    def make_memory(self, groups: int, width: int) -> nn.Module:
        options = self.options
        return StackedTransformer(
            groups, width, options.memory_layers, options.memory_heads, self.window
        )
