"""FOCAL: pulls embeddings of the same task together and pushes those of different tasks apart.

Li, Yang, Luo, *FOCAL: Efficient Fully-Offline Meta-Reinforcement Learning via Distance Metric
Learning and Behavior Regularization*, ICLR 2021, arXiv:2010.01112; its inference, for several
agents. (The regularisation of the policy is for offline data, of which there is none here.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mg2l.algorithms.agent import ContextAgent, slice_agent
from mg2l.algorithms.base import Encoding
from mg2l.algorithms.context import ContextInference
from mg2l.algorithms.focal.config import FOCALConfig
from mg2l.algorithms.transition_encoder import TransitionEncoder, TransitionMoments
from mg2l.core.distributed import world
from mg2l.estimators.gaussian import Gaussian
from mg2l.experience.problem import ProblemSpec
from mg2l.experience.replay import Context


def distance_metric_loss(
    z: Tensor, tasks: Tensor, config: FOCALConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """The distance metric loss (eq. 12 of the paper).

    The mean of ``|z_i - z_j|^2`` over pairs of contexts of one task, plus the mean of
    ``distance_weight / (|z_i - z_j|^n + distance_floor)`` over pairs of different tasks: with many
    tasks there are few pairs of the first kind, which count as much as all of the second.

    Args:
        z: ``[*, B, D]``.
        tasks: ``[B]`` int64.
        config: n and the other constants.

    Returns:
        The loss, and the mean squared distance within a task and between tasks.
    """
    squares = (z.unsqueeze(-2) - z.unsqueeze(-3)).square().sum(-1)  # [*, B, B]
    same = tasks.unsqueeze(0) == tasks.unsqueeze(1)
    pair = ~torch.eye(len(tasks), dtype=torch.bool, device=tasks.device)
    power = squares.clamp(min=1e-12).pow(config.distance_power / 2)
    repulsion = config.distance_weight / (power + config.distance_floor)

    def mean(x: Tensor, kept: Tensor) -> Tensor:
        return (x * kept).sum((-2, -1)).mean() / kept.sum().clamp(min=1)

    within, between = pair & same, ~same
    loss = mean(squares, within) + mean(repulsion, between)
    return loss, mean(squares, within), mean(squares, between)


class FOCAL(ContextInference):
    """``z^i``: the mean of a bounded embedding over agent i's transitions; z: over joint ones.

    The distance metric loss of the agents' ``z^i`` trains the embedding, and nothing else does.

    Decentralised: an actor's latent is ``z^i``, inferred from its own agent's transitions only.
    """

    config_class = FOCALConfig
    options: FOCALConfig

    def __init__(self, spec: ProblemSpec) -> None:
        super().__init__(spec)
        self.embedding = TransitionEncoder(
            self.options.hidden_sizes_mlp, spec.transition, self.options.context_dim, spec.vision
        ).to(spec.device)
        self.train_with(list(self.embedding.parameters()))

    def moments(self) -> list[TransitionMoments]:
        return [self.embedding.moments]

    def infer(self, context: Context) -> Encoding:
        local = torch.tanh(self.embedding(context)).mean(2)  # [B, A, D]
        joint = local.mean(1)
        return Encoding(
            Gaussian(joint, torch.zeros_like(joint)), Gaussian(local, torch.zeros_like(local))
        )

    def agent_network(self, agent: int) -> FOCALAgent:
        return FOCALAgent(self, agent)

    def loss(self, measure_gap: bool) -> tuple[Tensor, dict[str, Tensor], dict[str, Any]]:
        tasks = self.update_tasks()
        context = self.short_contexts(world.own(tasks))
        z = world.gather(self.infer(context).local.mean).transpose(0, 1)
        loss, within, between = distance_metric_loss(z, tasks.to(z.device), self.options)
        metrics = {"focal/loss": loss, "focal/within": within, "focal/between": between}
        return loss, metrics, {"context": context, "tasks": tasks}


class FOCALAgent(ContextAgent):
    """The embedding, applied to the transitions of one agent."""

    def __init__(self, inference: FOCAL, agent: int) -> None:
        super().__init__(inference.embedding.moments)
        self.embedding = slice_agent(inference.embedding, agent)

    def infer(self, context: Tensor) -> Gaussian:
        mean = torch.tanh(self.embedding(context)).mean(2)
        return Gaussian(mean, torch.zeros_like(mean))
