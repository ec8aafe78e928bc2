"""Level-based foraging in C++ (``csrc/foraging``), all sub-environments stepped at once."""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mg2l.envs import compiled
from mg2l.envs.compiled import INTEGER, POINTER, address, bounded, function

_INT, _BOOL = ctypes.c_int32, ctypes.c_bool
_new = function(
    "foraging_new", INTEGER, *[_INT] * 6, _BOOL, ctypes.c_double, returns=POINTER
)  # fmt: skip
_delete = function("foraging_delete", POINTER)
_begin = function("foraging_begin", POINTER, INTEGER, POINTER)
_restore = function("foraging_restore", POINTER, INTEGER, *[POINTER] * 3, INTEGER)
_step = function("foraging_step", *[POINTER] * 5, returns=INTEGER)
_observe = function("foraging_observe", POINTER, POINTER)
_spawned = function("foraging_spawned", POINTER, POINTER)
_state = function("foraging_state", *[POINTER] * 4)

_ACTIONS = 6
_LARGEST = 1 << 20  # of levels, whose products stay far from overflow

Integers = NDArray[np.int64]


class Foraging(compiled.Simulator):
    """Fields of players and foods.

    Args:
        envs: sub-environments, N.
        size: side of the field [cells], 3 to 1000.
        players: A, at most half of the cells.
        foods: at most so many are placed.
        kinds: of foods.
        max_level: of a player, at most 1000.
        sight: cells seen in each direction.
        cooperative: whether every food needs the three weakest players.
        penalty: for trying to load what is too heavy.

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(
        self,
        envs: int,
        size: int,
        players: int,
        foods: int,
        kinds: int,
        max_level: int,
        sight: int,
        cooperative: bool,
        penalty: float,
    ) -> None:
        compiled.check_positive(
            envs=envs, players=players, foods=foods, kinds=kinds, max_level=max_level, sight=sight
        )
        if not 3 <= size <= 1000:
            raise ValueError(f"size must be in [3, 1000], got {size}")
        if players > size * size // 2:
            raise ValueError(
                f"players must be at most half of the field, {size * size // 2}, got {players}"
            )
        if max_level > 1000:
            raise ValueError(f"max_level must be at most 1000, got {max_level}")
        self.envs, self.size, self.players = envs, size, players
        self.foods, self.kinds = foods, kinds
        self._acting = (envs, players)
        self._seen = (envs, players, 3 * (foods + players) + foods * kinds)
        handle = _new(envs, size, players, foods, kinds, max_level, sight, cooperative, penalty)
        super().__init__(handle, _delete)

    def begin(self, env: int, generator: np.random.Generator) -> None:
        """Begin an episode, drawn from a generator."""
        env = compiled.check_index("env", env, self.envs)
        _begin(self._handle, env, compiled.bits_of(generator))

    def restore(
        self, env: int, players: ArrayLike, levels: ArrayLike, kinds: ArrayLike, spawned: int
    ) -> None:
        """Put a sub-environment into a state: its rows of what `state` returned.

        Raises:
            IndexError: there is no such sub-environment.
            ValueError: it is not a state of this one.
        """
        env, field = compiled.check_index("env", env, self.envs), (self.size, self.size)
        team = bounded("players", players, (self.players, 3), 0, _LARGEST)
        food = bounded("levels", levels, field, 0, _LARGEST)
        kind = bounded("kinds", kinds, field, 0, self.kinds)
        if not 1 <= spawned <= food.size * _LARGEST:
            raise ValueError(f"spawned must be at least 1, got {spawned}")
        row, column = team[:, 0], team[:, 1]
        if max(row.max(), column.max()) >= self.size or food[row, column].any():
            raise ValueError("players must stand in the field, beside its foods")
        if np.count_nonzero(food) > self.foods:
            raise ValueError(f"levels must be of at most {self.foods} foods")
        _restore(self._handle, env, address(team), address(food), address(kind), int(spawned))

    def step(self, actions: ArrayLike) -> tuple[NDArray[np.float64], Integers, NDArray[np.bool_]]:
        """Advance all sub-environments.

        Args:
            actions: ``[N, A]`` in [0, 6).

        Returns:
            Rewards ``[N, A]``, kinds of the foods that players have helped to load ``[N, A]``, -1
            for none, and whether no food is left ``[N]``.

        Raises:
            ValueError: actions have another shape, or one is out of range.
        """
        chosen = compiled.integers("actions", actions, self._acting)
        rewards, eaten = np.empty(self._acting), np.empty(self._acting, np.int64)
        over = np.empty(self.envs, np.bool_)
        wrong = _step(
            self._handle, address(chosen), address(rewards), address(eaten), address(over)
        )
        if wrong >= 0:
            raise compiled.outside("actions", chosen.flat[wrong], 0, _ACTIONS)
        return rewards, eaten, over

    def observe(self) -> NDArray[np.float32]:
        """What every player sees, ``[N, A, O]``."""
        out = np.empty(self._seen, np.float32)
        _observe(self._handle, address(out))
        return out

    def spawned(self) -> Integers:
        """``[N]`` levels of all foods that the episode began with."""
        out = np.empty(self.envs, np.int64)
        _spawned(self._handle, address(out))
        return out

    def state(self) -> tuple[Integers, Integers, Integers, Integers]:
        """Players ``[N, A, 3]`` (row, column, level), levels and kinds of foods, and `spawned`.

        Levels and kinds are ``[N, size, size]``, by cell; where there is no food the level is 0.
        """
        players = np.empty((self.envs, self.players, 3), np.int64)
        levels = np.empty((self.envs, self.size, self.size), np.int64)
        kinds = np.empty_like(levels)
        _state(self._handle, address(players), address(levels), address(kinds))
        return players, levels, kinds, self.spawned()
