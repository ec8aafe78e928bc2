"""FOCAL: contexts of one task lie close together, those of different tasks far apart.

Li, Yang, Luo, *FOCAL: Efficient Fully-Offline Meta-Reinforcement Learning via Distance Metric
Learning and Behavior Regularization*, ICLR 2021, arXiv:2010.01112; its inference, for several
agents. (The regularisation of the policy is for offline data, of which there is none here.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mg2l.algorithms.context import ContextInference
from mg2l.algorithms.encoder import Encoding, TransitionEncoder, TransitionMoments
from mg2l.config.sections import EncoderConfig
from mg2l.estimators.gaussian import Gaussian
from mg2l.experience.problem import ProblemSpec
from mg2l.experience.replay import Context


def distance_metric_loss(
    z: Tensor, tasks: Tensor, config: EncoderConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean over all pairs of the distance metric loss (eq. 12 of the paper).

    ``|z_i - z_j|^2`` for two contexts of one task, ``distance_weight / (|z_i - z_j|^n +
    distance_floor)`` for two of different tasks.

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
    apart = config.distance_weight / (power + config.distance_floor)
    losses = torch.where(same, squares, apart)

    def mean(x: Tensor, kept: Tensor) -> Tensor:
        return (x * kept).sum((-2, -1)).mean() / kept.sum().clamp(min=1)

    return mean(losses, pair), mean(squares, pair & same), mean(squares, ~same)


class FOCAL(ContextInference):
    """``z^i``: the mean over agent i's transitions of a bounded embedding; z: over everybody's.

    The distance metric loss of the agents' ``z^i`` trains the embedding, and nothing else does.

    Decentralised: an actor is told ``z^i`` of its own agent's transitions alone.
    """

    def __init__(self, spec: ProblemSpec) -> None:
        super().__init__(spec)
        self.embedding = TransitionEncoder(
            self.options, spec.transition, self.options.context_dim, spec.vision
        ).to(spec.device)
        self.train_with(list(self.embedding.parameters()))

    def moments(self) -> list[TransitionMoments]:
        return [self.embedding.moments]

    def infer(self, context: Context) -> Encoding:
        local = torch.tanh(self.embedding(context)).mean(2)  # [B, A, D]
        everybodys = local.mean(1)
        return Encoding(
            Gaussian(everybodys, torch.zeros_like(everybodys)),
            Gaussian(local, torch.zeros_like(local)),
        )

    def loss(self, measure_gap: bool) -> tuple[Tensor, dict[str, Tensor], dict[str, Any]]:
        tasks = self.update_tasks()
        context = self.short_contexts(tasks)
        z = self.infer(context).local.mean.transpose(0, 1)
        loss, within, between = distance_metric_loss(z, tasks.to(z.device), self.options)
        metrics = {"focal/loss": loss, "focal/within": within, "focal/between": between}
        return loss, metrics, {"context": context, "tasks": tasks}
