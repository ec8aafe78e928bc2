"""Some of the agents of an environment as the team, with a policy for the others."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import infos
from .players import Outcome, Player
from .spaces import InterfaceError, choices


class Team(Player):
    """A player whose team is a subset of its agents.

    Args:
        whole: the environment with all of its agents.
        team: names of the team's agents, in the order in which they are numbered.
        policy: ``policy(agent, observation, action_space)`` acts for each of the others; None draws
            their actions from their spaces, or from what their masks allow. Each environment has a
            copy of it, whose ``reset()`` is called, if it has one, when an episode begins.

    Raises:
        InterfaceError: the environment has no agent of such a name, or one is named twice.
    """

    def __init__(self, whole: Player, team: Sequence[Any], policy: Any) -> None:
        super().__init__(whole.env)
        known = list(whole.names)
        unknown = [name for name in team if name not in known]
        if unknown or not team or len(set(team)) != len(team):
            raise InterfaceError(
                f"team must be names of agents, all different, of {known}, got {list(team)}"
            )
        self.whole, self.policy = whole, copy.deepcopy(policy)
        self.members = [known.index(name) for name in team]
        self.others = [index for index in range(len(known)) if index not in self.members]
        self.names = list(team)
        self.observations, self.actions = self._own(whole.observations), self._own(whole.actions)

    def _own(self, values: Sequence[Any]) -> list[Any]:
        return [values[index] for index in self.members]

    def reset(self, seed: int) -> tuple[list[Any], list[Any]]:
        """See ``Player.reset``."""
        if hasattr(self.policy, "reset"):
            self.policy.reset()
        self.seen, self.masks = self.whole.reset(seed)
        return self._own(self.seen), self._own(self.masks)

    def step(self, actions: list[Any]) -> Outcome:
        """See ``Player.step``."""
        joint: list[Any] = [None] * len(self.whole.actions)
        for index, action in zip(self.members, actions):  # noqa: B905
            joint[index] = action
        present = self.whole.present()
        for index in self.others:
            if present[index]:
                joint[index] = self._act(index)
        outcome = self.whole.step(joint)
        self.seen, self.masks = outcome.seen, outcome.masks
        return Outcome(*map(self._own, outcome))

    def present(self) -> list[bool]:
        """See ``Player.present``."""
        return self._own(self.whole.present())

    def _act(self, index: int) -> Any:
        name, space = self.whole.names[index], self.whole.actions[index]
        if self.policy is not None:
            return self.policy(name, self.seen[index], space)
        counts = choices(space)
        if self.masks[index] is None or not counts:
            return space.sample()
        allowed = infos.allowed(self.masks[index], counts)
        return space.sample(mask=_sample_mask(space, allowed, counts))

    def _spaces(self) -> Iterator[Any]:
        yield from self.whole._spaces()


def _sample_mask(space: Any, allowed: NDArray[Any], counts: list[int]) -> Any:
    """Mask for gymnasium's ``sample``: an array, one per component, or per bit 0, 1 or 2."""
    parts = [part.astype(np.int8) for part in np.split(allowed, np.cumsum(counts)[:-1])]
    if hasattr(space, "nvec"):
        return tuple(parts)
    if len(parts) > 1 or not hasattr(space, "n"):
        return np.array([2 if part.all() else part[1] for part in parts], np.int8).reshape(
            space.shape
        )
    return parts[0]
