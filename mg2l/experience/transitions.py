"""Transitions ``(o, a, r, o')`` as task inference reads them."""

from __future__ import annotations

import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn import functional as F

from mg2l.experience.problem import ProblemSpec
from mg2l.experience.replay import active_transitions
from mg2l.experience.rollout import Rollout


class Transitions:
    """Joins observations, actions and rewards to rows of width F.

    Args:
        spec: the sizes, and the action space.
    """

    def __init__(self, spec: ProblemSpec) -> None:
        self.space, self.width = spec.action_space, spec.transition
        self.observation, self.action = spec.observation, spec.action

    def actions(self, actions: Tensor) -> Tensor:
        """Actions as the environment takes them: clipped to their space, or one-hot."""
        if isinstance(self.space, spaces.Discrete):
            return F.one_hot(actions, self.action).float()
        assert isinstance(self.space, spaces.Box)
        low, high = (
            torch.as_tensor(bound, device=actions.device)
            for bound in (self.space.low, self.space.high)
        )
        return actions.clamp(low, high)

    def join(
        self, observations: Tensor, actions: Tensor, rewards: Tensor, final_observations: Tensor
    ) -> Tensor:
        """``[*, F]`` of observations ``[*, O]``, actions as drawn and rewards ``[*]``."""
        parts = [observations, self.actions(actions), rewards.unsqueeze(-1), final_observations]
        return torch.cat(parts, -1)

    def __call__(self, rollout: Rollout, episodes: int | None = None) -> Tensor:
        """All transitions of a rollout, ``[T, N, A, F]``, none of them of the dead.

        With ``episodes`` of the first episodes of each environment alone, which are repeated where
        they end early.
        """
        transitions = self.join(
            rollout.observations[:-1], rollout.actions, rollout.rewards, rollout.final_observations
        )
        kept = rollout.active
        if episodes is not None:
            within = rollout.within(episodes).unsqueeze(-1).expand_as(rollout.rewards)
            kept = within if kept is None else kept & within
        return active_transitions(transitions, kept)

    def split(self, transitions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``[*, F]`` split: ``[*, O]``, ``[*, action]``, ``[*, 1]``, ``[*, O]``."""
        sizes = [self.observation, self.action, 1, self.observation]
        observations, actions, rewards, final_observations = transitions.split(sizes, -1)
        return observations, actions, rewards, final_observations
