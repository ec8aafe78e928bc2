"""``rware-layout`` and ``rware-station``: robots in warehouses of which something is hidden."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

from mg2l.envs.base import BoolArray, FloatArray, TaskSet
from mg2l.envs.batched import BatchedEnv
from mg2l.envs.rware.draw import draw_warehouse
from mg2l.envs.rware.layouts import LayoutConfig, WarehouseConfig, layout_tasks, parse
from mg2l.envs.rware.stations import LAYOUT, StationConfig, station_tasks

Integers = NDArray[np.int64]


class WarehouseEnv(BatchedEnv):
    """Robots bring requested shelves to goals.

    All sub-environments are stepped in C++, equal step by step to the package ``rware`` 2 with the
    same random numbers.

    Action space: ``Discrete(5)`` per robot: 0 stay, 1 one cell forward, 2 turn left, 3 turn
    right, 4 lift the shelf it stands under, or put down the one it carries (not on a corridor).
    A robot with a shelf cannot enter a cell where a shelf stands; of several robots that want the
    same cell, one moves.

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

    Start: robots on different cells and in directions drawn uniformly, all shelves in their
    places, some of them requested. Where a requested shelf has come to a goal, another one is
    requested at once.

    End: truncated after ``max_ep_len`` steps, which the package calls ``max_steps`` and an end of
    the task; never terminated.
    """

    def __init__(
        self,
        config: WarehouseConfig,
        tasks: TaskSet,
        layouts: Sequence[str],
        reward: str,
        lift_pay: float,
        num_envs: int,
        seed: int,
    ) -> None:
        self.config = config
        self.reward, self.lift_pay = reward, lift_pay
        side = 2 * config.sensor_range + 1
        super().__init__(
            tasks,
            num_envs,
            config.n_agents,
            Box(-np.inf, np.inf, (8 + 7 * side * side,), np.float32),
            Discrete(5),
            config.max_ep_len,
            seed,
        )
        self.cells = [parse(layout) for layout in layouts]  # of each task
        # What a delivery to each goal pays, goals row by row.
        self.pay = [
            np.asarray(params.get("pay", np.ones((cells == "g").sum())), np.float32)
            for params, cells in zip(tasks.params, self.cells, strict=True)
        ]
        self._shelves = [int((cells == "x").sum()) for cells in self.cells]
        self._warehouses = self._simulator()

    def _simulator(self) -> Any:
        """Simulator of all sub-environments."""
        from mg2l.envs.rware.simulator import Warehouses

        config = self.config
        return Warehouses(
            self.cells,
            self.pay,
            self.num_envs,
            config.n_agents,
            config.sensor_range,
            config.requests,
            self.reward,
            self.lift_pay,
        )

    def _begin(self, env_ids: NDArray[np.int64]) -> None:
        robots, requests = self.num_agents, self.config.requests
        for env_id in env_ids:
            rng, task = self._streams.generators[env_id], self.task_ids[env_id]
            self._warehouses.begin(
                env_id,
                task,
                rng.choice(self.cells[task].size, robots, replace=False),
                rng.choice(4, robots),
                rng.choice(self._shelves[task], requests, replace=False) + 1,
                rng,
            )

    def _advance(self, actions: NDArray[np.int64]) -> tuple[FloatArray, BoolArray]:
        rewards = self._warehouses.step(actions)
        return rewards, np.zeros(rewards.shape, np.bool_)

    def _observe(self) -> FloatArray:
        found: FloatArray = self._warehouses.observe()
        return found

    def state(self) -> tuple[Integers, Integers, Integers]:
        """Robots ``[N, A, 5]`` (column, row, direction, shelf carried or 0, has delivered).

        Also shelves ``[N, S, 2]`` (column, row), and the ``[N, requests]`` requested, from 1.
        """
        if not self._started:
            return self._empty()
        robots, places, requests = self._warehouses.state()
        return robots, places, requests

    def _empty(self) -> tuple[Integers, Integers, Integers]:
        """Zeros in the shapes of `state`."""
        robots = np.zeros((self.num_envs, self.num_agents, 5), np.int64)
        places = np.zeros((self.num_envs, max(self._shelves), 2), np.int64)
        return robots, places, np.zeros((self.num_envs, self.config.requests), np.int64)

    def _simulation(self) -> dict[str, NDArray[Any]]:
        robots, shelves, requests = self.state()
        return {
            "robots": robots[..., :4],
            "delivered": robots[..., 4] > 0,
            "shelves": shelves,
            "requests": requests,
        }

    def _restore(self, state: dict[str, NDArray[Any]]) -> None:
        robots = np.concatenate([state["robots"], state["delivered"][..., None]], -1)
        for env_id, task in enumerate(self.task_ids):
            self._warehouses.restore(
                env_id,
                task,
                robots[env_id],
                state["shelves"][env_id],
                state["requests"][env_id],
                self._streams.generators[env_id],
            )

    def render(self, index: int = 0) -> NDArray[np.uint8]:
        """See ``VectorEnv.render``."""
        self._check_index(index)
        if not self._started:
            raise RuntimeError("call reset() before render()")
        task = self.task_ids[index]
        cells = self.cells[task]
        robots, shelves, requests = (values[index] for values in self.state())
        wanted = np.isin(np.arange(1, len(shelves) + 1), requests)
        return draw_warehouse(
            cells != "x",
            np.argwhere(cells == "g")[:, ::-1],
            self.pay[task],
            np.column_stack([shelves, wanted])[: self._shelves[task]],
            robots[:, :4],
        )


class LayoutEnv(WarehouseEnv):
    """Robots must find out in which layout shelves stand.

    Action space, observation space, start and end: see ``WarehouseEnv``; ``n_agents`` times 2, 1
    or 0.5 shelves are requested (``difficulty``).

    Reward: with ``reward_type: individual`` 1 to a robot that brings a requested shelf to a goal,
    with ``global`` 1 to every robot, with ``two_stage`` 0.5 to the robot that brings it and 0.5
    when it has put it back.

    Tasks: the layout. Five to train on, as in the original, and four to test on; features are the
    cells in which they differ.
    """

    def __init__(self, config: LayoutConfig, num_envs: int, seed: int = 0) -> None:
        tasks = layout_tasks(config)
        layouts = [str(params["layout"]) for params in tasks.params]
        super().__init__(config, tasks, layouts, config.reward_type, 0.0, num_envs, seed)


class StationEnv(WarehouseEnv):
    """Robots must find out which of four stations pays for shelves.

    Action space, observation space, start and end: see ``WarehouseEnv``; the goals are the
    stations, in the corners of a warehouse of 5 x 7 cells, and ``2 n_agents`` of its nine shelves
    are requested.

    Reward: the same for all robots, the sum over robots of the station's pay for a requested shelf
    that a robot has brought there, 0.25 for lifting a requested shelf, and -0.25 for putting one
    down that is still requested. A robot sees little of the others: what it is paid for may be
    what another one did elsewhere, and only the experience of all says what all stations pay.

    Tasks: features are the stations' pay, row by row. In training and test tasks one station pays
    between 0.5 and 1, and the others cost between 0 and 1; in ``ood`` tasks two pay.
    """

    def __init__(self, config: StationConfig, num_envs: int, seed: int = 0) -> None:
        tasks = station_tasks(config)
        layouts = [LAYOUT] * len(tasks)
        super().__init__(config, tasks, layouts, "global", config.lift_pay, num_envs, seed)
