"""A grid world of the package, whose library reads and writes memory that all worlds share.

The package's own calls look up a group's size each time, and allocate and convert what they return:
that took three quarters of a step.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from magent2 import GridWorld, gridworld
from magent2.c_lib import _LIB
from numpy.typing import NDArray

from mg2l.envs.base import FloatArray

IntArray = NDArray[np.int64]


class Memory:
    """Buffers for one world at a time."""

    def __init__(self, world: GridWorld, sizes: Sequence[int]) -> None:
        """``world`` gives the shapes, ``sizes`` the units of its groups."""
        team, most = world.get_handles()[0], max(sizes)
        view = int(np.prod(world.get_view_space(team)))
        self.ids = np.zeros(most, np.int32)
        self.places = np.zeros((most, 2), np.int32)
        self.actions = np.zeros(most, np.int32)
        self.rewards = np.zeros(sizes[0], np.float32)
        self.views = np.zeros((sizes[0], view), np.float32)
        self.features = np.zeros((sizes[0], int(world.get_feature_space(team)[0])), np.float32)
        self.count, self.done = ctypes.c_int32(), ctypes.c_int32()
        self.count_pointer = ctypes.byref(self.count)
        self.done_pointer = ctypes.byref(self.done)
        self.ids_pointer = _pointer(self.ids)
        self.places_pointer = _pointer(self.places)
        self.actions_pointer = _pointer(self.actions)
        self.rewards_pointer = _pointer(self.rewards)
        self.seen_pointer = (ctypes.c_void_p * 2)(self.views.ctypes.data, self.features.ctypes.data)


class World:
    """One grid world and the ids of its groups' living units, in the package's order."""

    def __init__(self, rules: gridworld.Config, memory: Memory) -> None:
        self._world = GridWorld(rules)
        self._game, self._handles = self._world.game, self._world.get_handles()
        self._memory = memory
        self.living: list[IntArray] = []

    def start(self, seed: int, places: Sequence[IntArray]) -> None:
        """Begin an episode with the units of each group at ``[units, 2]`` places."""
        self._world.set_seed(seed)
        self._world.reset()
        for handle, pos in zip(self._handles, places, strict=True):
            self._world.add_agents(handle, "custom", pos=pos)
        self.living = [np.arange(0)] * len(self._handles)
        self.count()

    def count(self) -> list[int]:
        """Update ``living``; returns the groups whose size has changed."""
        memory, changed = self._memory, []
        for group, handle in enumerate(self._handles):
            _LIB.env_get_info(self._game, handle, b"num", memory.count_pointer)
            if memory.count.value != len(self.living[group]):
                _LIB.env_get_info(self._game, handle, b"id", memory.ids_pointer)
                self.living[group] = memory.ids[: memory.count.value].astype(np.int64)
                changed.append(group)
        return changed

    def places(self, group: int) -> NDArray[np.int32]:
        """``[living, 2]`` of a group; overwritten by the next call."""
        memory = self._memory
        _LIB.env_get_info(self._game, self._handles[group], b"pos", memory.places_pointer)
        return memory.places[: len(self.living[group])]

    def step(self, actions: NDArray[np.int32], acting: int) -> NDArray[np.float32]:
        """Step with the actions of all units of the first groups; the dead are removed.

        Returns:
            Rewards of those of group 0 that were alive before; overwritten by the next call.
        """
        memory = self._memory
        for handle, units in zip(self._handles[:acting], self.living[:acting], strict=True):
            if len(units):
                np.take(actions, units, out=memory.actions[: len(units)])
                _LIB.env_set_action(self._game, handle, memory.actions_pointer)
        _LIB.env_step(self._game, memory.done_pointer)
        _LIB.env_get_reward(self._game, self._handles[0], memory.rewards_pointer)
        _LIB.gridworld_clear_dead(self._game)
        return memory.rewards[: len(self.living[0])]

    def observe(self) -> tuple[FloatArray, FloatArray]:
        """Cells ``[living, view]`` and features of group 0; overwritten by the next call.

        The minimap shows a group of which none is left as 0 / 0, which is given as 0.
        """
        memory, count = self._memory, len(self.living[0])
        if count:
            _LIB.env_get_observation(self._game, self._handles[0], memory.seen_pointer)
        views = memory.views[:count]
        if not all(map(len, self.living)):
            np.nan_to_num(views, copy=False)
        return views, memory.features[:count]


def _pointer(array: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
