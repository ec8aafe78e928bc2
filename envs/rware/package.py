"""Families with ``simulator: package``: every sub-environment is a warehouse of the package."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from rware.warehouse import Direction, RewardType, Warehouse

from mg2l.envs.base import BoolArray, FloatArray
from mg2l.envs.rware.warehouse import Integers, LayoutEnv, StationEnv, WarehouseEnv

_DIRECTIONS = list(Direction)


class PackageSimulator(WarehouseEnv):
    """The reference for the simulator in C++, at a hundredth of its speed."""

    def _reward_type(self) -> RewardType:
        """Reward type of the package itself."""
        return RewardType[self.reward.upper()]

    def _simulator(self) -> Any:
        """A warehouse per sub-environment, built once its layout is known."""
        self._layouts = np.full(self.num_envs, -1)
        return [None] * self.num_envs

    def _build(self, env_id: int) -> Any:
        """The warehouse of a sub-environment; a new one if its task has changed."""
        task = self.task_ids[env_id]
        if self._layouts[env_id] != task:
            config = self.config
            self._warehouses[env_id] = Warehouse(
                shelf_columns=3,
                column_height=8,
                shelf_rows=1,
                n_agents=config.n_agents,
                msg_bits=0,
                sensor_range=config.sensor_range,
                request_queue_size=config.requests,
                max_inactivity_steps=None,
                max_steps=None,
                reward_type=self._reward_type(),
                layout="\n".join("".join(row) for row in self.cells[task]),
            )
            self._layouts[env_id] = task
        return self._warehouses[env_id]

    def _begin(self, env_ids: NDArray[np.int64]) -> None:
        for env_id in env_ids:
            warehouse = self._build(env_id)
            warehouse.np_random = self._streams.generators[env_id]
            warehouse.reset()

    def _advance(self, actions: NDArray[np.int64]) -> tuple[FloatArray, BoolArray]:
        steps = zip(self._warehouses, actions.tolist(), strict=True)
        rewards = np.array([warehouse.step(chosen)[1] for warehouse, chosen in steps], np.float32)
        return rewards, np.zeros(rewards.shape, np.bool_)

    def _observe(self) -> FloatArray:
        rows = [[w._make_obs(agent) for agent in w.agents] for w in self._warehouses]
        return np.array(rows, np.float32)

    def state(self) -> tuple[Integers, Integers, Integers]:
        robots, places, requests = self._empty()
        for env_id, warehouse in enumerate(self._warehouses if self._started else ()):
            for row, robot in zip(robots[env_id], warehouse.agents, strict=True):
                carried = robot.carrying_shelf.id if robot.carrying_shelf else 0
                row[:] = robot.x, robot.y, robot.dir.value, carried, robot.has_delivered
            places[env_id, : len(warehouse.shelfs)] = [(s.x, s.y) for s in warehouse.shelfs]
            requests[env_id] = [shelf.id for shelf in warehouse.request_queue]
        return robots, places, requests

    def _restore(self, state: dict[str, NDArray[Any]]) -> None:
        for env_id in range(self.num_envs):
            warehouse = self._build(env_id)
            warehouse.np_random = np.random.default_rng(0)  # what reset draws is overwritten
            warehouse.reset()
            warehouse.np_random = self._streams.generators[env_id]
            for shelf, (x, y) in zip(warehouse.shelfs, state["shelves"][env_id].tolist()):  # noqa: B905
                shelf.x, shelf.y = x, y
            rows = zip(
                warehouse.agents,
                state["robots"][env_id].tolist(),
                state["delivered"][env_id].tolist(),
                strict=True,
            )
            for robot, (x, y, direction, carried), delivered in rows:
                robot.x, robot.y, robot.dir = x, y, _DIRECTIONS[direction]
                robot.carrying_shelf = warehouse.shelfs[carried - 1] if carried else None
                robot.has_delivered = delivered
            wanted = state["requests"][env_id].tolist()
            warehouse.request_queue = [warehouse.shelfs[shelf - 1] for shelf in wanted]
            warehouse._recalc_grid()


class PackageLayoutEnv(PackageSimulator, LayoutEnv):
    """``rware-layout`` on the package."""


class PackageStationEnv(PackageSimulator, StationEnv):
    """``rware-station`` on the package, whose rewards only say who brought a shelf to a goal."""

    def _reward_type(self) -> RewardType:
        return RewardType.INDIVIDUAL

    def _advance(self, actions: NDArray[np.int64]) -> tuple[FloatArray, BoolArray]:
        robots, _, requests = self.state()
        held = robots[..., 3]
        delivered, over = super()._advance(actions)
        robots = self.state()[0]
        holds = robots[..., 3]
        lifted, dropped = (held == 0) & (holds > 0), (held > 0) & (holds == 0)
        wanted = (np.maximum(held, holds)[..., None] == requests[:, None]).any(-1)
        paid = self.lift_pay * wanted * (lifted.astype(float) - dropped)
        for env_id, robot in np.argwhere(delivered > 0):
            task, (column, row) = self.task_ids[env_id], robots[env_id, robot, :2]
            goals = np.argwhere(self.cells[task] == "g")
            goal = np.flatnonzero((goals == (row, column)).all(1))[0]
            paid[env_id, robot] += self.pay[task][goal]
        team = paid.sum(1, keepdims=True).astype(np.float32)
        return np.repeat(team, self.num_agents, 1), over
