"""Warehouses of robots in C++ (``csrc/warehouse``), all sub-environments stepped at once."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mg2l.envs import compiled
from mg2l.envs.compiled import INTEGER, POINTER, address, bounded, function

_new = function(
    "warehouse_new", INTEGER, *[POINTER] * 3, *[INTEGER] * 4, ctypes.c_int32, ctypes.c_float,
    returns=POINTER,
)  # fmt: skip
_delete = function("warehouse_delete", POINTER)
_begin = function("warehouse_begin", POINTER, INTEGER, INTEGER, *[POINTER] * 4)
_restore = function("warehouse_restore", POINTER, INTEGER, INTEGER, *[POINTER] * 4)
_step = function("warehouse_step", *[POINTER] * 3, returns=INTEGER)
_observe = function("warehouse_observe", POINTER, POINTER)
_state = function("warehouse_state", *[POINTER] * 4)

_ACTIONS, _DIRECTIONS = 5, 4
_REWARDS = ("individual", "global", "two_stage")

Integers = NDArray[np.int64]


class Warehouses(compiled.Simulator):
    """Warehouses, each in one of several layouts.

    Args:
        layouts: ``[height, width]`` each, of the characters x (shelf), g (goal) and . (free).
        pay: of each layout's goals, row by row, for a delivery (two_stage pays 1).
        envs: sub-environments, N.
        robots: A, of each.
        reach: cells that a robot sees in each direction.
        requests: shelves requested at a time, Q.
        reward: ``individual``, ``global`` or ``two_stage``.
        lift_pay: for lifting a requested shelf; taken back when it is put down undelivered.

    Raises:
        ValueError: these do not fit each other, or a number is out of its range.
    """

    def __init__(
        self,
        layouts: Sequence[NDArray[np.str_]],
        pay: Sequence[ArrayLike],
        envs: int,
        robots: int,
        reach: int,
        requests: int,
        reward: str,
        lift_pay: float = 0.0,
    ) -> None:
        compiled.check_positive(layouts=len(layouts), envs=envs, robots=robots, requests=requests)
        if reach < 0:
            raise ValueError(f"reach must be at least 0, got {reach}")
        if reward not in _REWARDS:
            raise ValueError(f"reward must be one of {list(_REWARDS)}, got {reward!r}")
        if len(pay) != len(layouts):
            raise ValueError(f"pay must have one row per layout, {len(layouts)}, got {len(pay)}")
        for cells, paid in zip(layouts, pay, strict=True):
            _check_layout(np.asarray(cells), np.shape(paid), robots, requests)
        self.envs, self.robots, self.requests = envs, robots, requests
        self.sides = [np.shape(cells) for cells in layouts]
        self.shelves = [int((np.asarray(cells) == "x").sum()) for cells in layouts]
        self._acting = (envs, robots)
        self._seen = (envs, robots, 8 + 7 * (2 * reach + 1) ** 2)
        self._generators: list[Any] = [None] * envs  # what they draw from must live
        sides = np.array(self.sides, np.int32)
        cells = compiled.joined(layouts, "S1")
        paid = compiled.joined(pay, np.float32)
        handle = _new(
            len(layouts), address(sides), address(cells), address(paid), envs, robots, reach,
            requests, _REWARDS.index(reward), lift_pay,
        )  # fmt: skip
        super().__init__(handle, _delete)

    def begin(
        self,
        env: int,
        layout: int,
        cells: ArrayLike,
        directions: ArrayLike,
        requests: ArrayLike,
        generator: np.random.Generator,
    ) -> None:
        """Put a sub-environment into a layout, all shelves in their places.

        Args:
            env: which sub-environment.
            layout: which layout.
            cells: ``[A]`` of robots, row * width + column, all different.
            directions: ``[A]`` 0 up, 1 down, 2 left, 3 right.
            requests: ``[Q]`` shelves, counted from 1, all different.
            generator: draws which shelf is requested after a delivery.

        Raises:
            IndexError: there is no such sub-environment or layout.
            ValueError: an array has the wrong shape, or values out of range.
        """
        place = self._place(env, layout)
        height, width = self.sides[layout]
        arrays = (
            bounded("cells", cells, (self.robots,), 0, height * width),
            bounded("directions", directions, (self.robots,), 0, _DIRECTIONS),
            bounded("requests", requests, (self.requests,), 1, self.shelves[layout] + 1),
        )
        self._put(_begin, place, arrays, generator)

    def restore(
        self,
        env: int,
        layout: int,
        robots: ArrayLike,
        shelves: ArrayLike,
        requests: ArrayLike,
        generator: np.random.Generator,
    ) -> None:
        """Put a sub-environment into a layout and state: its rows of what `state` returned.

        Raises:
            IndexError: there is no such sub-environment or layout.
            ValueError: it is not a state of this one.
        """
        place, count = self._place(env, layout), self.shelves[layout]
        height, width = self.sides[layout]
        team = bounded("robots", robots, (self.robots, 5), 0, 1 << 30)
        if (team[:, :4] >= [width, height, _DIRECTIONS, count + 1]).any():
            raise ValueError("robots do not fit the layout of the env")
        places = bounded("shelves", shelves, (max(self.shelves), 2), 0, 1 << 30)
        if (places[:count] >= [width, height]).any():
            raise ValueError("shelves do not fit the layout of the env")
        wanted = bounded("requests", requests, (self.requests,), 1, count + 1)
        self._put(_restore, place, (team, places, wanted), generator)

    def step(self, actions: ArrayLike) -> NDArray[np.float32]:
        """Advance all sub-environments by actions ``[N, A]`` in [0, 5); returns rewards ``[N, A]``.

        Raises:
            ValueError: actions have another shape, or one is out of range.
        """
        chosen = compiled.integers("actions", actions, self._acting)
        rewards = np.empty(self._acting, np.float32)
        wrong = _step(self._handle, address(chosen), address(rewards))
        if wrong >= 0:
            raise compiled.outside("actions", chosen.flat[wrong], 0, _ACTIONS)
        return rewards

    def observe(self) -> NDArray[np.float32]:
        """What every robot sees, ``[N, A, O]``."""
        out = np.empty(self._seen, np.float32)
        _observe(self._handle, address(out))
        return out

    def state(self) -> tuple[Integers, Integers, Integers]:
        """Robots ``[N, A, 5]``, shelves ``[N, S, 2]`` (column, row) and requests ``[N, Q]``.

        A robot is its column, row, direction, the shelf that it carries or 0, and whether it has
        delivered that.
        """
        robots = np.empty((self.envs, self.robots, 5), np.int64)
        shelves = np.empty((self.envs, max(self.shelves), 2), np.int64)
        requests = np.empty((self.envs, self.requests), np.int64)
        _state(self._handle, address(robots), address(shelves), address(requests))
        return robots, shelves, requests

    def _place(self, env: int, layout: int) -> tuple[int, int]:
        return (
            compiled.check_index("env", env, self.envs),
            compiled.check_index("layout", layout, len(self.sides)),
        )

    def _put(
        self,
        put: Any,
        place: tuple[int, int],
        arrays: tuple[Integers, ...],
        generator: np.random.Generator,
    ) -> None:
        bits = compiled.bits_of(generator)
        put(self._handle, *place, *map(address, arrays), bits)
        self._generators[place[0]] = generator


def _check_layout(cells: NDArray[Any], paid: tuple[int, ...], robots: int, requests: int) -> None:
    """Check a layout, and the shape of what its goals pay."""
    if cells.ndim != 2 or not np.isin(cells, ("x", "g", ".")).all():
        raise ValueError(
            "layouts must have two axes, of the characters 'x', 'g' and '.', got "
            f"{''.join(sorted(set(cells.ravel().tolist())))!r} in shape {cells.shape}"
        )
    goals, shelves = int((cells == "g").sum()), int((cells == "x").sum())
    if paid != (goals,):
        count = paid[0] if len(paid) == 1 else paid
        raise ValueError(f"pay must have one number per goal, {goals}, got {count}")
    if shelves <= requests or cells.size < robots:
        raise ValueError(
            f"layouts must have more than {requests} shelves, all requests, and {robots} cells, "
            f"got {shelves} and {cells.size}"
        )
