"""Walkers on a ring that must find out where its goal is: an environment in C++, by pybind11.

Compile ``cpp_environment.cpp`` beside this file, as its first lines say, and train by
``python -m mg2l.train --env=examples/cpp_environment.yaml``.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

from mg2l.core.schema import bounded
from mg2l.envs import EnvConfig, TaskSet, registry
from mg2l.envs.base import BoolArray, FloatArray
from mg2l.envs.batched import BatchedEnv


@dataclass
class RingConfig(EnvConfig):
    """Walkers on a ring."""

    n_agents: int = bounded(3, ge=1, le=1000)
    """Walkers."""

    n_cells: int = bounded(12, ge=4, le=1000)
    """Cells of the ring; every other is the goal of a training task, the rest are test tasks."""


class RingEnv(BatchedEnv):
    """``N`` rings.

    Action space: ``Discrete(3)``: back, stay, forward.

    Observation space: 2 numbers, sine and cosine of the walker's own angle.

    Reward: minus the distance to the goal along the ring, between -1 and 0.

    Start: every walker on a cell drawn uniformly. End: truncated after ``max_ep_len`` steps.

    Tasks: features are sine and cosine of the goal's angle.
    """

    def __init__(self, config: RingConfig, num_envs: int, seed: int = 0) -> None:
        sys.path.insert(0, str(Path(__file__).parent))  # of the compiled module
        try:
            module = importlib.import_module("ring")
        finally:
            sys.path.pop(0)
        self.config = config
        self._goals = np.r_[0 : config.n_cells : 2, 1 : config.n_cells : 2]  # of each task
        tasks = TaskSet(
            names=[f"goal at {goal}" for goal in self._goals],
            features=self._angles(self._goals),
            params=[{"goal": int(goal)} for goal in self._goals],
            n_train=len(range(0, config.n_cells, 2)),
        )
        space = Box(-1, 1, (2,), np.float32)
        agents, actions = config.n_agents, Discrete(3)
        super().__init__(tasks, num_envs, agents, space, actions, config.max_ep_len, seed)
        self._ring: Any = module.Ring(num_envs, agents, config.n_cells)

    def _angles(self, cells: NDArray[np.int64]) -> FloatArray:
        angles = 2 * np.pi * cells / self.config.n_cells
        return np.stack([np.sin(angles), np.cos(angles)], -1).astype(np.float32)

    def _begin(self, env_ids: NDArray[np.int64]) -> None:
        for env_id in env_ids:
            rng = self._streams.generators[env_id]
            self._ring.place(env_id, rng.integers(self.config.n_cells, size=self.num_agents))

    def _advance(self, actions: NDArray[np.int64]) -> tuple[FloatArray, BoolArray]:
        rewards: FloatArray = self._ring.step(actions, self._goals[self.task_ids])
        return rewards, np.zeros(rewards.shape, np.bool_)

    def _observe(self) -> FloatArray:
        return self._angles(self._ring.cells())

    def _simulation(self) -> dict[str, NDArray[Any]]:
        return {"cells": self._ring.cells()}

    def _restore(self, state: dict[str, NDArray[Any]]) -> None:
        for env_id, cells in enumerate(state["cells"]):
            self._ring.place(env_id, cells)

    def render(self, index: int = 0) -> NDArray[np.uint8]:
        """The ring unrolled: the goal's cell is red, those of walkers blue."""
        self._check_index(index)
        cells = np.full((1, self.config.n_cells, 3), 230, np.uint8)
        cells[0, self._goals[self.task_ids[index]]] = (220, 60, 60)
        cells[0, self._ring.cells()[index]] = (60, 90, 220)
        return cells.repeat(16, 0).repeat(16, 1)


registry.register("ring", RingConfig, RingEnv)
