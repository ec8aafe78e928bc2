"""Rewards predicted from representations: a second bound on their information about the task."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mg2l.algorithms.base import Encoding
from mg2l.algorithms.mg2l.config import MG2LConfig
from mg2l.experience.problem import ProblemSpec
from mg2l.experience.transitions import Transitions
from mg2l.nn.decoder import Decoder


class RewardPrediction(nn.Module):
    """Predicts an agent's reward from ``(o, a, o', z^i)``, and all rewards from everything and z.

    The mean squared error of a Gaussian with unit variance bounds the information from below:
    ``I(z; r | o, a, o') >= H(r | o, a, o') - E[-log q(r | o, a, o', z)]`` (Barber and Agakov,
    2003, *The IM Algorithm*). InfoNCE over keys asks only which training task it is; rewards of
    tasks that are alike are alike, and so become their representations.

    Args:
        options: sizes and weight.
        spec: the sizes of the problem.
        share: all agents have one network.
    """

    def __init__(self, options: MG2LConfig, spec: ProblemSpec, share: bool) -> None:
        super().__init__()
        self.transitions, self.share = Transitions(spec), share
        own = 2 * spec.observation + spec.action
        sizes, width = options.prediction_sizes_mlp, options.context_dim
        self.local: Decoder | None = None
        if options.aggregator != "regression":  # which predicts an agent's rewards itself
            self.local = Decoder(1 if share else spec.agents, own + width, sizes, 1)
        self.joint = Decoder(1, spec.agents * own + width, sizes, spec.agents)

    def forward(
        self, encoding: Encoding, rows: Tensor, own_errors: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics.

        Args:
            encoding: encoding of B contexts.
            rows: ``[B, T, A, F]`` standardised transitions of the same tasks.
            own_errors: ``[B, T, A]``, of each agent's rewards as a regression predicts them.
        """
        count, steps, agents, _ = rows.shape
        observations, actions, rewards, finals = self.transitions.split(rows)
        happened = torch.cat([observations, actions, finals], -1)
        if own_errors is None:
            own_errors = self._own(encoding.local.mean, happened) - rewards.squeeze(-1)
        own_error = own_errors.square().mean((0, 1))
        task = encoding.task.mean.unsqueeze(1).expand(-1, steps, -1)
        everything = torch.cat([happened.flatten(2), task], -1)
        joint = self.joint(everything.unsqueeze(0)).view(count, steps, agents, 1)
        joint_error = (joint - rewards).square().mean((0, 1, 3))
        total = own_error.mean() if self.share else own_error.sum()
        metrics = {"predict/local": own_error.mean(), "predict/global": joint_error.mean()}
        return total + joint_error.sum(), metrics

    def _own(self, z: Tensor, happened: Tensor) -> Tensor:
        """Each agent's rewards ``[B, T, A]`` by its ``z^i`` ``[B, A, D]``."""
        assert self.local is not None
        count, steps, agents, _ = happened.shape
        local = z.unsqueeze(1).expand(-1, steps, -1, -1)
        inputs = torch.cat([happened, local], -1).permute(2, 0, 1, 3)  # [A, B, T, *]
        if self.share:
            own = self.local(inputs.flatten(0, 1).unsqueeze(0)).view(agents, count, steps, 1)
        else:
            own = self.local(inputs)
        predicted: Tensor = own.squeeze(-1).permute(1, 2, 0)
        return predicted
