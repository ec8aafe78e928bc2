"""``rware-layout``: robots in warehouses whose layout they must find out."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

from mg2l.envs.base import BoolArray, FloatArray
from mg2l.envs.copies import CopiesEnv
from mg2l.envs.rware.draw import draw_warehouse
from mg2l.envs.rware.layouts import LayoutConfig, layout_tasks, parse


class LayoutEnv(CopiesEnv):
    """Robots bring requested shelves to the goals of a warehouse, whose layout they must find out.

    All copies are stepped in C++, equal step by step to the package ``rware`` 2 with the same
    random numbers.

    Action space: ``Discrete(5)`` per robot: 0 stay, 1 one cell forward, 2 turn left, 3 turn
    right, 4 lift the shelf it stands under, or put down the one it carries (not on a corridor).
    A robot with a shelf cannot enter a cell where a shelf stands; of robots that want the same
    cell one moves.

    Observation space: ``8 + 7 (2 r + 1)^2`` numbers per robot, ``r = sensor_range``, all 0 or 1
    but for the position:

    | numbers | meaning |
    |---|---|
    | 2 | own column and row [cells] |
    | 1 | carries a shelf |
    | 4 | direction: up, down, left, right, one-hot |
    | 1 | stands on a corridor or goal |
    | 7 per cell seen, row by row: 1 | a robot is there |
    | 4 | its direction, one-hot; up where there is none |
    | 2 | a shelf is there; it is requested |

    The goals are not seen.

    Reward: with ``reward_type: individual`` 1 to a robot that brings a requested shelf to a goal,
    with ``global`` 1 to every robot, with ``two_stage`` 0.5 to the robot that brings it and 0.5
    when it has put it back. Another shelf is requested at once.

    Start: robots on different cells and in directions drawn uniformly, all shelves in their
    places, ``n_agents`` times 2, 1 or 0.5 of them requested (``difficulty``).

    End: truncated after ``max_ep_len`` steps, which the package calls ``max_steps`` and an end of
    the task; never terminated.

    Tasks: the layout. Five to train on, as in the original, and four to test on; features are the
    cells in which they differ.
    """

    def __init__(self, config: LayoutConfig, num_envs: int, seed: int = 0) -> None:
        self.config = config
        side = 2 * config.sensor_range + 1
        super().__init__(
            layout_tasks(config),
            num_envs,
            config.n_agents,
            Box(-np.inf, np.inf, (8 + 7 * side * side,), np.float32),
            Discrete(5),
            config.max_ep_len,
            seed,
        )
        self._cells = [parse(str(params["layout"])) for params in self.tasks.params]
        self._shelves = [int((cells == "x").sum()) for cells in self._cells]
        self._warehouses = self._simulator()

    def _simulator(self) -> Any:
        """What steps the copies."""
        from mg2l._warehouse import Warehouses

        config = self.config
        layouts = [cells.astype("S1").view(np.uint8) for cells in self._cells]
        return Warehouses(
            layouts,
            self.num_envs,
            config.n_agents,
            config.sensor_range,
            config.requests,
            config.reward_type,
        )

    def _begin(self, copies: NDArray[np.int64]) -> None:
        robots, requests = self.num_agents, self.config.requests
        for copy in copies:
            rng, task = self._streams.generators[copy], self.task_ids[copy]
            self._warehouses.begin(
                copy,
                task,
                rng.choice(self._cells[task].size, robots, replace=False),
                rng.choice(4, robots),
                rng.choice(self._shelves[task], requests, replace=False) + 1,
            )

    def _advance(self, actions: NDArray[np.int64]) -> tuple[FloatArray, BoolArray]:
        rewards = self._warehouses.step(actions, self._draw)
        return rewards, np.zeros(rewards.shape, np.bool_)

    def _draw(self, copy: int, count: int) -> int:
        """Which of the shelves that are not requested is requested next."""
        return int(self._streams.generators[copy].choice(count))

    def _observe(self) -> FloatArray:
        found: FloatArray = self._warehouses.observe()
        return found

    def _state(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Robots ``[N, A, 5]`` (column, row, direction, shelf carried or 0, has delivered).

        Also shelves ``[N, S, 2]`` (column, row), and the ``[N, requests]`` requested, from 1.
        """
        if not self._started:
            return self._empty()
        robots, places, requests = self._warehouses.state()
        return robots, places, requests

    def _empty(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Zeros in the shapes of `_state`."""
        robots = np.zeros((self.num_envs, self.num_agents, 5), np.int64)
        places = np.zeros((self.num_envs, max(self._shelves), 2), np.int64)
        return robots, places, np.zeros((self.num_envs, self.config.requests), np.int64)

    def _simulation(self) -> dict[str, NDArray[Any]]:
        robots, shelves, requests = self._state()
        return {
            "robots": robots[..., :4],
            "delivered": robots[..., 4] > 0,
            "shelves": shelves,
            "requests": requests,
        }

    def _restore(self, state: dict[str, NDArray[Any]]) -> None:
        robots = np.concatenate([state["robots"], state["delivered"][..., None]], -1)
        for copy, task in enumerate(self.task_ids):
            self._warehouses.restore(
                copy, task, robots[copy], state["shelves"][copy], state["requests"][copy]
            )

    def render(self, index: int = 0) -> NDArray[np.uint8]:
        """See ``VectorEnv.render``."""
        self._check_index(index)
        if not self._started:
            raise RuntimeError("call reset() before render()")
        task = self.task_ids[index]
        cells = self._cells[task]
        robots, shelves, requests = (values[index] for values in self._state())
        wanted = np.isin(np.arange(1, len(shelves) + 1), requests)
        return draw_warehouse(
            cells != "x",
            np.argwhere(cells == "g")[:, ::-1],
            np.column_stack([shelves, wanted])[: self._shelves[task]],
            robots[:, :4],
        )
