"""How the actions of a team lie side by side, whatever kinds of action space its agents have."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from numpy.typing import NDArray

Space = Box | Discrete | MultiDiscrete | MultiBinary


class ActionLayout:
    """The action spaces of a team, padded to the widest agent's.

    An action of a ``Box`` is a row of numbers. One of a ``Discrete``, ``MultiDiscrete`` or
    ``MultiBinary`` is a row of choices: one, one per component, or one of two per bit.

    Actions of N teams are ``[N, A]`` integers where all spaces are ``Discrete``, else
    ``[N, A, W]``: an agent's numbers or choices come first, the rest is padding and is ignored.
    They are integers where no space is a ``Box``.

    A mask of actions is ``[N, A, options]``: the options of an agent's choices one after the other.

    Within a transition, an action is ``[width]``: the numbers of a ``Box``, then the options of the
    choices, one-hot; what an agent does not have is 0.

    Args:
        spaces: spaces of each agent.

    Attributes:
        equal: all agents have the same space.
        sizes: ``[A]`` numbers of each agent, 0 where it has choices.
        counts: numbers of options of each agent's choices, none where it has numbers.
        numbers: widest row of numbers.
        choices: longest row of choices.
        options: most options of an agent.
        low, high: ``[A, numbers]`` float32 bounds; 0 where there is no number.
        limits: ``[A, choices]`` int64, options of each choice; 1 where there is no choice.
        own_numbers, own_choices: ``[A, numbers]`` and ``[A, choices]`` bool, what is no padding.
        columns: ``[A, choices, largest count]`` int64, where an option lies in a mask;
            ``options`` where there is none.

    Raises:
        ValueError: there is no agent, or a space is none of these, or is a ``Box`` of other
            than one axis.
    """

    def __init__(self, spaces: Sequence[Any]) -> None:
        self.spaces: tuple[Any, ...] = tuple(spaces)
        agents = len(self.spaces)
        if not agents:
            raise ValueError("a team must have at least one agent, got no action space")
        self.equal = all(space == self.spaces[0] for space in self.spaces)
        self.counts = [_counts(space) for space in self.spaces]
        boxes = [space if isinstance(space, Box) else None for space in self.spaces]
        self.sizes = [0 if box is None else box.shape[0] for box in boxes]
        self.numbers, self.choices = max(self.sizes), max(map(len, self.counts))
        self.options = max(map(sum, self.counts))
        self.low, self.high = np.zeros((2, agents, self.numbers), np.float32)
        self.limits = np.ones((agents, self.choices), np.int64)
        largest = max((n for counts in self.counts for n in counts), default=0)
        self.columns = np.full((agents, self.choices, largest), self.options)
        self.own_numbers = np.arange(self.numbers) < np.array(self.sizes)[:, None]
        lengths = np.array([len(counts) for counts in self.counts])
        self.own_choices = np.arange(self.choices) < lengths[:, None]
        for agent, (box, counts) in enumerate(zip(boxes, self.counts, strict=True)):
            if box is not None:
                self.low[agent, : box.shape[0]] = box.low
                self.high[agent, : box.shape[0]] = box.high
            self.limits[agent, : len(counts)] = counts
            for choice, (n, end) in enumerate(zip(counts, np.cumsum(counts), strict=True)):
                self.columns[agent, choice, :n] = np.arange(end - n, end)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Shape of an agent's action: ``()`` or ``(W,)``."""
        if all(isinstance(space, Discrete) for space in self.spaces):
            return ()
        return (max(self.numbers, self.choices),)

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """int64, or float64 where an agent has numbers."""
        return np.dtype(np.float64 if self.numbers else np.int64)

    @property
    def width(self) -> int:
        """Width of an action within a transition."""
        return self.numbers + self.options

    def allows(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """``[*, A]`` whether a mask ``[*, A, options]`` allows an option of each own choice."""
        # Behind the last option lies what padding points to.
        padded = np.concatenate([mask, np.zeros((*mask.shape[:-1], 1), np.bool_)], -1)
        agents = np.arange(len(self.spaces))[:, None, None]
        allowed = np.any(padded[..., agents, self.columns], axis=-1) | ~self.own_choices
        every: NDArray[np.bool_] = np.all(allowed, axis=-1)
        return every

    def within(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Actions in their spaces: a new array, checked, numbers clipped and padding 0.

        Args:
            actions: ``[*, A]`` or ``[*, A, W]``.

        Raises:
            ValueError: a number is NaN, or a choice is not an integer from 0 to below its options.
        """
        if not self.numbers and not np.issubdtype(actions.dtype, np.integer):
            raise ValueError(f"actions must be integers, got {actions.dtype}")
        if not self.choices:
            return self._clipped(actions)
        if not self.numbers and not self.shape:  # one choice each, as most suites have
            wrong = (actions < 0) | (actions >= self.limits[:, 0])
            if not wrong.any():
                return actions.astype(self.dtype)
        rows = actions if self.shape else actions[..., None]
        chosen = np.where(self.own_choices, rows[..., : self.choices], 0)
        wrong = ~((chosen >= 0) & (chosen < self.limits) & (chosen == np.floor(chosen)))
        if wrong.any():
            agent, choice = np.argwhere(wrong)[0, -2:]
            limit, got = self.limits[agent, choice], chosen[wrong][0]
            raise ValueError(
                f"actions must be in [0, {limit}), got {got} of agent {agent}"
                + (f", choice {choice}" if self.shape else "")
            )
        joined = np.zeros(rows.shape, self.dtype)
        if self.numbers:
            joined[..., : self.numbers] = self._clipped(rows[..., : self.numbers])
        joined[..., : self.choices] += chosen.astype(joined.dtype)
        return joined.reshape(actions.shape)

    def _clipped(self, numbers: NDArray[Any]) -> NDArray[np.float64]:
        if np.isnan(numbers).any():
            raise ValueError("actions must be numbers, got NaN")
        return np.clip(numbers.astype(np.float64), self.low, self.high)


def _counts(space: Any) -> list[int]:
    """Options of each choice of a space; none where an action is numbers."""
    counts: list[int] = []
    if isinstance(space, Discrete):
        counts = [int(space.n)]
    elif isinstance(space, MultiDiscrete):
        counts = np.ravel(space.nvec).tolist()
    elif isinstance(space, MultiBinary):
        counts = [2] * int(np.prod(space.shape))
    elif not (isinstance(space, Box) and len(space.shape) == 1 and space.shape[0]):
        raise ValueError(
            "action space must be Box of one axis, Discrete, MultiDiscrete or MultiBinary, got "
            f"{space}"
        )
    return counts
