"""Rewards predicted from representations: a second bound on their information about the task."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mg2l.algorithms.base import Encoding
from mg2l.algorithms.mg2l.config import MG2LConfig
from mg2l.algorithms.mg2l.regression import Regressed
from mg2l.experience.problem import ProblemSpec
from mg2l.experience.replay import Distinct
from mg2l.experience.transitions import Transitions
from mg2l.nn.decoder import Decoder

CHANGE_WEIGHT = 0.1
"""Weight of the errors of changes of observations against those of rewards, which matter more."""

RECOGNITION_WEIGHT = 0.3
"""Weight of the contrast with what coefficients of other tasks predict."""


class RewardPrediction(nn.Module):
    """Predicts an agent's reward from ``(o, a, o', z^i)``, and all rewards from everything and z.

    The mean squared error of a Gaussian with unit variance bounds the information from below:
    ``I(z; r | o, a, o') >= H(r | o, a, o') - E[-log q(r | o, a, o', z)]`` (Barber and Agakov,
    2003, *The IM Algorithm*). InfoNCE over keys asks only which training task it is; rewards of
    tasks that are alike are alike, and so become their representations.

    Args:
        options: sizes and weight.
        spec: the sizes of the problem.
        agents: whose rewards are predicted together.
        share: all agents have one network.
    """

    def __init__(self, options: MG2LConfig, spec: ProblemSpec, agents: int, share: bool) -> None:
        super().__init__()
        self.transitions, self.share = Transitions(spec), share
        own = 2 * spec.observation + spec.action
        sizes, width = options.prediction_sizes_mlp, options.context_dim
        self.local: Decoder | None = None
        if options.aggregator != "regression":  # which predicts an agent's rewards itself
            self.local = Decoder(1 if share else agents, own + width, sizes, 1)
        self.joint = Decoder(1, agents * own + width, sizes, agents)

    def forward(
        self, encoding: Encoding, drawn: Distinct, regressed: Regressed | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics.

        Args:
            encoding: encoding of B contexts.
            drawn: standardised transitions of other contexts of the same tasks.
            regressed: what a regression predicts of each agent's transitions.
        """
        observations, actions, rewards, finals = self.transitions.split(drawn.rows.flatten(0, -3))
        happened = torch.cat([observations, actions, finals], -1)
        rewards = rewards.squeeze(-1)
        metrics: dict[str, Tensor] = {}
        if regressed is None:
            own = self._own(drawn.repeat(encoding.local.mean), happened)
            errors = local = drawn.mean((own - rewards).square())
        else:
            local, changes = regressed.errors[:, 0], regressed.errors[:, 1:].mean(1)
            errors = local + CHANGE_WEIGHT * changes - RECOGNITION_WEIGHT * regressed.log_share
            metrics["predict/changes"] = changes.mean()
            metrics["predict/accuracy"] = regressed.accuracy.mean()
        task = drawn.repeat(encoding.task.mean)
        joint = self.joint(torch.cat([happened.flatten(1), task], -1).unsqueeze(0)).squeeze(0)
        joint_errors = drawn.mean((joint - rewards).square())
        total = errors.mean() if self.share else errors.sum()
        metrics |= {"predict/local": local.mean(), "predict/global": joint_errors.mean()}
        return total + joint_errors.sum(), metrics

    def _own(self, z: Tensor, happened: Tensor) -> Tensor:
        """Each agent's rewards ``[U, A]`` by its ``z^i`` ``[U, A, D]``."""
        assert self.local is not None
        inputs = torch.cat([happened, z], -1).transpose(0, 1)  # [A, U, *]
        rows = inputs.flatten(0, 1).unsqueeze(0) if self.share else inputs
        own: Tensor = self.local(rows).view(inputs.shape[:2])
        return own.t()
