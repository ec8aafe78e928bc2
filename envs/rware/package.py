"""``rware-layout`` with ``simulator: package``: every copy is a warehouse of the package."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from rware.warehouse import Direction, RewardType, Warehouse

from mg2l.envs.base import BoolArray, FloatArray
from mg2l.envs.rware.warehouse import LayoutEnv

_DIRECTIONS = list(Direction)


class PackageLayoutEnv(LayoutEnv):
    """What `LayoutEnv` must equal, at a hundredth of its speed."""

    def _simulator(self) -> Any:
        """A warehouse of each copy, made when it is known in which layout."""
        self._layouts = np.full(self.num_envs, -1)
        return [None] * self.num_envs

    def _build(self, copy: int) -> Any:
        """The warehouse of a copy, a new one where its task has changed."""
        task = self.task_ids[copy]
        if self._layouts[copy] != task:
            config = self.config
            self._warehouses[copy] = Warehouse(
                shelf_columns=3,
                column_height=8,
                shelf_rows=1,
                n_agents=config.n_agents,
                msg_bits=0,
                sensor_range=config.sensor_range,
                request_queue_size=config.requests,
                max_inactivity_steps=None,
                max_steps=None,
                reward_type=RewardType[config.reward_type.upper()],
                layout=self.tasks.params[task]["layout"],
            )
            self._layouts[copy] = task
        return self._warehouses[copy]

    def _begin(self, copies: NDArray[np.int64]) -> None:
        for copy in copies:
            warehouse = self._build(copy)
            warehouse.np_random = self._streams.generators[copy]
            warehouse.reset()

    def _advance(self, actions: NDArray[np.int64]) -> tuple[FloatArray, BoolArray]:
        steps = zip(self._warehouses, actions.tolist(), strict=True)
        rewards = np.array([warehouse.step(chosen)[1] for warehouse, chosen in steps], np.float32)
        return rewards, np.zeros(rewards.shape, np.bool_)

    def _observe(self) -> FloatArray:
        rows = [[w._make_obs(agent) for agent in w.agents] for w in self._warehouses]
        return np.array(rows, np.float32)

    def _state(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        robots, places, requests = self._empty()
        for copy, warehouse in enumerate(self._warehouses if self._started else ()):
            for row, robot in zip(robots[copy], warehouse.agents, strict=True):
                carried = robot.carrying_shelf.id if robot.carrying_shelf else 0
                row[:] = robot.x, robot.y, robot.dir.value, carried, robot.has_delivered
            places[copy, : len(warehouse.shelfs)] = [(s.x, s.y) for s in warehouse.shelfs]
            requests[copy] = [shelf.id for shelf in warehouse.request_queue]
        return robots, places, requests

    def _restore(self, state: dict[str, NDArray[Any]]) -> None:
        for copy in range(self.num_envs):
            warehouse = self._build(copy)
            warehouse.np_random = np.random.default_rng(0)  # what reset draws is overwritten
            warehouse.reset()
            warehouse.np_random = self._streams.generators[copy]
            for shelf, (x, y) in zip(warehouse.shelfs, state["shelves"][copy].tolist()):  # noqa: B905
                shelf.x, shelf.y = x, y
            rows = zip(
                warehouse.agents,
                state["robots"][copy].tolist(),
                state["delivered"][copy].tolist(),
                strict=True,
            )
            for robot, (x, y, direction, carried), delivered in rows:
                robot.x, robot.y, robot.dir = x, y, _DIRECTIONS[direction]
                robot.carrying_shelf = warehouse.shelfs[carried - 1] if carried else None
                robot.has_delivered = delivered
            wanted = state["requests"][copy].tolist()
            warehouse.request_queue = [warehouse.shelfs[shelf - 1] for shelf in wanted]
            warehouse._recalc_grid()
