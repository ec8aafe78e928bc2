"""A custom algorithm outside the package: representations that predict rewards.

``python -m mg2l.train --algo=examples/custom_algorithm.yaml``; its own key is in the ``--help`` of
that line. An agent's z^i is the mean embedding of its transitions; it must predict the rewards of
other transitions of the same task from their observations and actions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mg2l.algorithms.agent import ContextAgent, slice_agent
from mg2l.algorithms.base import Encoding
from mg2l.algorithms.config import ContextConfig
from mg2l.algorithms.context import ContextInference
from mg2l.algorithms.transition_encoder import TransitionEncoder, TransitionMoments
from mg2l.config.algorithms import register_algorithm
from mg2l.core.schema import bounded
from mg2l.estimators.gaussian import Gaussian
from mg2l.experience.problem import ProblemSpec
from mg2l.experience.replay import Context


@dataclass
class RewardPredictionConfig(ContextConfig):
    """Representations that predict rewards."""

    reward_hidden: int = bounded(32, ge=1, le=4096)
    """Width of the hidden layer that predicts a reward."""


class RewardPrediction(ContextInference):
    """``L = |r - f(o, a, z^i)|^2``, with z^i from other transitions of the same task."""

    config_class = RewardPredictionConfig
    options: RewardPredictionConfig

    def __init__(self, spec: ProblemSpec) -> None:
        super().__init__(spec)
        width, hidden = self.options.context_dim, self.options.reward_hidden
        self.embedding = TransitionEncoder(self.options.hidden_sizes_mlp, spec.transition, width)
        inputs = spec.observation + spec.action + width
        self.reward = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.to(spec.device).train_with(list(self.parameters()))

    def moments(self) -> list[TransitionMoments]:
        return [self.embedding.moments]

    def infer(self, context: Context) -> Encoding:
        local = torch.tanh(self.embedding(context)).mean(2)  # [B, A, T, D] -> [B, A, D]
        return Encoding(*(Gaussian(z, torch.zeros_like(z)) for z in (local.mean(1), local)))

    def loss(self, measure_gap: bool) -> tuple[Tensor, dict[str, Tensor], dict[str, Any]]:
        drawn = self.short_contexts(self.update_tasks()).gather()  # [B, T, A, F]
        known, asked = drawn.chunk(2, 1)
        z = self.infer(Context(known)).local.mean.unsqueeze(1).expand(-1, asked.shape[1], -1, -1)
        o, a, r, _ = self.transitions.split(self.embedding.moments.standardise(asked))
        error = (self.reward(torch.cat([o, a, z], -1)) - r).square().mean()
        return error, {"loss/reward": error}, {"transitions": drawn}

    def agent_network(self, agent: int) -> RewardPredictionAgent:
        return RewardPredictionAgent(self.embedding, agent)


class RewardPredictionAgent(ContextAgent):
    """The embedding, applied to the transitions of one agent."""

    def __init__(self, embedding: TransitionEncoder, agent: int) -> None:
        super().__init__(embedding.moments)
        self.embedding = slice_agent(embedding, agent)

    def infer(self, context: Tensor) -> Gaussian:
        z = torch.tanh(self.embedding(context)).mean(2)
        return Gaussian(z, torch.zeros_like(z))


register_algorithm("reward-prediction", RewardPrediction)
