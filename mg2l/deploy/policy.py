"""The policy of a single agent, sliced out of those of all."""

from __future__ import annotations

import torch
from torch import Tensor

from mg2l.algorithms.agent import AgentNetwork, slice_agent
from mg2l.nn.normaliser import LayerNorm
from mg2l.nn.policy import Actor


class Policy(AgentNetwork):
    """``pi^i(a^i | o^i, z^i)``.

    Args:
        actor: policies of all agents.
        agent: i.
    """

    def __init__(self, actor: Actor, agent: int) -> None:
        super().__init__()
        self.body = slice_agent(actor.body, agent)
        self.head = slice_agent(actor.head.of_agent(agent), 0)
        if self.body.identity is not None:
            self.body.identity = self.body.identity[agent : agent + 1].clone()
        norm = self.body.normalise
        if isinstance(norm, LayerNorm) and norm.own is not None:
            norm.own = norm.own[agent : agent + 1].clone()
        drawn_from = self.head.outputs
        self.outputs = drawn_from if self.body.memory is None else (*drawn_from, "next_state")

    def forward(
        self, observation: Tensor, latent: Tensor | None = None, state: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Parameters of the action distribution, and the next recurrent state.

        Args:
            observation: ``[B, O]``.
            latent: ``[B, D]`` latent, if the policy is conditioned on one.
            state: ``[B, *state_shape]``, if it remembers; zeros at the beginning.

        Returns:
            Logits ``[B, n]`` of its choices one after the other, or mean and standard deviation
            ``[B, size]`` of its numbers.
        """
        joined = self.body.inputs(
            observation.unsqueeze(0), None if latent is None else latent.unsqueeze(0)
        )
        reset = None
        if state is not None:  # an episode starts with a state of zeros
            reset = torch.zeros(1, observation.shape[0], dtype=torch.bool)
            state = state.unsqueeze(0)
        features, state = self.body(joined, state, reset)
        drawn_from = [value[0] for value in self.head.raw(features)]
        return (*drawn_from, *([] if state is None else [state[0]]))
