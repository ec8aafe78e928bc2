"""Transitions ``(o, a, r, o')`` as task inference reads them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mg2l.experience.problem import ProblemSpec
from mg2l.experience.replay import active_transitions
from mg2l.experience.rollout import Rollout


class Transitions:
    """Joins observations, actions and rewards to rows of width F.

    Args:
        spec: the sizes, and the action spaces.
    """

    def __init__(self, spec: ProblemSpec) -> None:
        self.layout, self.width = spec.actions, spec.transition
        self.observation, self.action = spec.observation, spec.action
        layout, device = self.layout, spec.device
        self.low, self.high = (torch.as_tensor(x, device=device) for x in (layout.low, layout.high))
        # Where the one-hot of a choice lies; behind the last option where there is no choice.
        first = layout.columns.min(-1, initial=layout.options)
        self.first = torch.as_tensor(first, device=device)
        self.own = torch.as_tensor(layout.own_choices, device=device)

    def actions(self, actions: Tensor) -> Tensor:
        """Actions ``[*, A]`` or ``[*, A, W]`` as in a transition: clipped to their spaces, one-hot.

        Returns:
            ``[*, A, action]``.
        """
        layout = self.layout
        if not layout.choices:
            return actions.clamp(self.low, self.high)
        if layout.equal and not layout.shape:
            return F.one_hot(actions, self.action).float()
        rows = actions if layout.shape else actions.unsqueeze(-1)
        chosen = rows[..., : layout.choices].long().masked_fill(~self.own, 0) + self.first
        one_hot = self.low.new_zeros(*rows.shape[:-1], layout.options + 1)
        one_hot = one_hot.scatter(-1, chosen, 1.0)[..., :-1]
        if not layout.numbers:
            return one_hot
        numbers = rows[..., : layout.numbers].clamp(self.low, self.high)  # padding is in [0, 0]
        return torch.cat([numbers, one_hot], -1)

    def join(
        self, observations: Tensor, actions: Tensor, rewards: Tensor, final_observations: Tensor
    ) -> Tensor:
        """``[*, F]`` of observations ``[*, O]``, actions as drawn and rewards ``[*]``."""
        parts = [observations, self.actions(actions), rewards.unsqueeze(-1), final_observations]
        return torch.cat(parts, -1)

    def __call__(self, rollout: Rollout, episodes: int | None = None) -> Tensor:
        """All transitions of a rollout, ``[T, N, A, F]``, without those of dead agents.

        With ``episodes``, only those of the first episodes of each environment, which are repeated
        where they end early.
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
