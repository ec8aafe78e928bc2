"""``rware-layout``: the package moves the robots, all copies are observed at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray
from rware.warehouse import (
    Direction,
    ObservationType,
    RewardType,
    Warehouse,
)

from mg2l.envs.base import BoolArray, FloatArray
from mg2l.envs.copies import CopiesEnv
from mg2l.envs.rware.draw import draw_warehouse
from mg2l.envs.rware.layouts import LayoutConfig, layout_tasks

_DIRECTIONS = list(Direction)
_SELF, _CELL = 8, 7  # numbers about the robot itself, and about each cell it sees


class _Warehouse(Warehouse):  # type: ignore[misc]  # the package has no types
    """A warehouse that makes no observations of its own; half of its time goes there."""

    def _make_obs(self, agent: Any) -> None:
        return None


class LayoutEnv(CopiesEnv):
    """Robots bring requested shelves to the goals of a warehouse, whose layout they must find out.

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
        reach = config.sensor_range
        self.config = config
        side = 2 * reach + 1
        super().__init__(
            layout_tasks(config),
            num_envs,
            config.n_agents,
            Box(-np.inf, np.inf, (_SELF + _CELL * side * side,), np.float32),
            Discrete(5),
            config.max_ep_len,
            seed,
        )
        cells = [str(params["layout"]).split("\n") for params in self.tasks.params]
        height = max(len(rows) for rows in cells)
        width = max(len(rows[0]) for rows in cells)
        self._shelves = max("".join(rows).count("x") for rows in cells)
        # The grids of all warehouses lie in one array, with a border as wide as robots see.
        shape = (num_envs, height + 2 * reach, width + 2 * reach)
        self._grids = np.zeros((2, *shape), np.int32)
        self._highways = np.zeros(shape, np.float32)
        row, column = np.divmod(np.arange(side * side), side)
        self._window = row * shape[2] + column
        self._warehouses: list[Any] = [None] * num_envs
        self._layouts = np.full(num_envs, -1)

    # Episodes.

    def _build(self, copy: int) -> Any:
        """The warehouse of a copy, a new one where its task has changed."""
        task = self.task_ids[copy]
        if self._layouts[copy] == task:
            return self._warehouses[copy]
        config, reach = self.config, self.config.sensor_range
        warehouse = _Warehouse(
            shelf_columns=3,
            column_height=8,
            shelf_rows=1,
            n_agents=config.n_agents,
            msg_bits=0,
            sensor_range=reach,
            request_queue_size=config.requests,
            max_inactivity_steps=None,
            max_steps=None,
            reward_type=RewardType[config.reward_type.upper()],
            layout=self.tasks.params[task]["layout"],
            observation_type=ObservationType.IMAGE,  # whose spaces are the cheapest to describe
        )
        height, width = warehouse.grid_size
        rows, columns = slice(reach, reach + height), slice(reach, reach + width)
        self._grids[:, copy] = 0
        self._highways[copy] = 0
        self._highways[copy, rows, columns] = warehouse.highways
        warehouse.grid = self._grids[:, copy, rows, columns]
        self._warehouses[copy], self._layouts[copy] = warehouse, task
        return warehouse

    def _begin(self, copies: NDArray[np.int64]) -> None:
        for copy in copies:
            warehouse = self._build(copy)
            warehouse.np_random = self._streams.generators[copy]
            warehouse.reset()

    def _advance(self, actions: NDArray[np.int64]) -> tuple[FloatArray, BoolArray]:
        steps = zip(self._warehouses, actions.tolist(), strict=True)
        rewards = np.array([warehouse.step(chosen)[1] for warehouse, chosen in steps], np.float32)
        return rewards, np.zeros(rewards.shape, np.bool_)

    def _robots(self) -> NDArray[np.int64]:
        """``[N, A, 4]`` column, row, direction, shelf carried (its id, or 0)."""
        rows = [
            (a.x, a.y, a.dir.value, a.carrying_shelf.id if a.carrying_shelf else 0)
            for warehouse in self._warehouses
            for a in warehouse.agents
        ]
        return np.array(rows, np.int64).reshape(self.num_envs, self.num_agents, 4)

    def _requests(self) -> NDArray[np.int64]:
        """``[N, requests]`` ids of the shelves that are requested."""
        rows = [[shelf.id for shelf in w.request_queue] for w in self._warehouses]
        return np.array(rows, np.int64)

    def _observe(self) -> FloatArray:
        """Equal to the package's own observations."""
        envs, agents = self.num_envs, self.num_agents
        copy = np.arange(envs)[:, None]
        robots = self._robots()
        x, y, direction, carried = np.moveaxis(robots, 2, 0)
        one_hot = np.eye(4, dtype=np.float32)[direction]

        obs = np.empty((envs, agents, self.observation_spaces[0].shape[0]), np.float32)
        obs[..., 0], obs[..., 1], obs[..., 2] = x, y, carried > 0
        obs[..., 3:7] = one_hot
        reach = self.config.sensor_range
        obs[..., 7] = self._highways[copy, y + reach, x + reach]

        # What a cell shows, by the id of the robot or shelf in it; id 0 is nothing there.
        robot = np.zeros((envs, 1 + agents, 5), np.float32)
        robot[:, 0, 1] = 1
        robot[:, 1:, 0] = 1
        robot[:, 1:, 1:] = one_hot
        shelf = np.zeros((envs, 1 + self._shelves, 2), np.float32)
        shelf[:, 1:, 0] = 1
        shelf[copy, self._requests(), 1] = 1

        _, height, width = self._highways.shape
        seen = ((copy * height + y) * width + x)[..., None] + self._window  # [N, A, cells]
        copy = copy[..., None]
        cells = obs[..., _SELF:].reshape(envs, agents, -1, _CELL)
        cells[..., :5] = robot[copy, self._grids[0].reshape(-1)[seen]]
        cells[..., 5:] = shelf[copy, self._grids[1].reshape(-1)[seen]]
        obs[..., _SELF:] = cells.reshape(envs, agents, -1)
        return obs

    # Saved state.

    def _simulation(self) -> dict[str, NDArray[Any]]:
        envs, agents = self.num_envs, self.num_agents
        if not self._started:
            return {
                "robots": np.zeros((envs, agents, 4), np.int64),
                "delivered": np.zeros((envs, agents), np.bool_),
                "shelves": np.zeros((envs, self._shelves, 2), np.int64),
                "requests": np.zeros((envs, self.config.requests), np.int64),
            }
        shelves = np.zeros((envs, self._shelves, 2), np.int64)
        for rows, warehouse in zip(shelves, self._warehouses, strict=True):
            rows[: len(warehouse.shelfs)] = [(shelf.x, shelf.y) for shelf in warehouse.shelfs]
        delivered = [[bool(a.has_delivered) for a in w.agents] for w in self._warehouses]
        return {
            "robots": self._robots(),
            "delivered": np.array(delivered),
            "shelves": shelves,
            "requests": self._requests(),
        }

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

    def render(self, index: int = 0) -> NDArray[np.uint8]:
        """See ``VectorEnv.render``."""
        self._check_index(index)
        if not self._started:
            raise RuntimeError("call reset() before render()")
        warehouse = self._warehouses[index]
        return draw_warehouse(
            np.array(warehouse.highways, np.bool_),
            np.array(warehouse.goals),
            np.array([(s.x, s.y, s in warehouse.request_queue) for s in warehouse.shelfs]),
            self._robots()[index],
        )
