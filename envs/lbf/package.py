"""``lbf-types`` with ``simulator: package``: sub-environments are the package's own."""

from __future__ import annotations

from typing import Any

import numpy as np
from lbforaging.foraging import ForagingEnv as PackageEnv
from numpy.typing import NDArray

from mg2l.envs.base import BoolArray, FloatArray
from mg2l.envs.lbf.foraging import Doubles, ForagingEnv, Integers

_AROUND = ((-1, 0), (1, 0), (0, -1), (0, 1))


class PackageForagingEnv(ForagingEnv):
    """The reference for the simulator in C++, at a hundredth of its speed."""

    def _make(self) -> list[Any]:
        config = self.config
        shape = (self.num_envs, config.field_size, config.field_size)
        self._types = np.zeros(shape, np.int64)
        return [
            PackageEnv(
                players=config.n_agents,
                min_player_level=1,
                max_player_level=config.max_level,
                min_food_level=1,
                max_food_level=None,
                field_size=shape[1:],
                max_num_food=config.n_foods,
                sight=config.sight,
                max_episode_steps=np.inf,
                force_coop=config.cooperative,
                penalty=config.penalty,
            )
            for _ in range(self.num_envs)
        ]

    def _begin(self, env_ids: NDArray[np.int64]) -> None:
        for env_id in env_ids:
            env, rng = self._simulator[env_id], self._streams.generators[env_id]
            env.np_random = rng
            for player in env.players:
                player.position = None  # else it would stand in the way of those placed before it
            env.reset()
            order = rng.permutation(self.config.n_foods)
            foods = np.nonzero(env.field)
            self._types[env_id] = 0
            self._types[env_id][foods] = order[: len(foods[0])] % self.config.n_types

    def _play(self, actions: NDArray[np.int64]) -> tuple[Doubles, Integers, BoolArray]:
        shape = (self.num_envs, self.num_agents)
        paid, eaten = np.zeros(shape), np.full(shape, -1)
        over = np.zeros(self.num_envs, np.bool_)
        for env_id, env in enumerate(self._simulator):
            before = env.field.copy()
            _, paid[env_id], over[env_id], _, _ = env.step(actions[env_id].tolist())
            gone = (before > 0) & (env.field == 0)
            for agent in np.flatnonzero(paid[env_id] > 0):
                row, column = env.players[agent].position
                (cell,) = [
                    (row + y, column + x)
                    for y, x in _AROUND
                    if 0 <= row + y < env.rows and 0 <= column + x < env.cols
                    and gone[row + y, column + x]
                ]  # fmt: skip
                eaten[env_id, agent] = self._types[env_id][cell]
            self._types[env_id][gone] = 0
        return paid, eaten, over

    def _spawned(self) -> Integers:
        spawned = [env._food_spawned if self._started else 1 for env in self._simulator]
        return np.array(spawned, np.int64)

    def _observe(self) -> FloatArray:
        config = self.config
        shape = (self.num_envs, self.num_agents, *self.observation_spaces[0].shape)
        obs = np.zeros(shape, np.float32)
        for env_id, env in enumerate(self._simulator):
            obs[env_id, :, : self.package_width] = env._make_gym_obs()
            for agent, player in enumerate(env.players):
                row, column = player.position
                sight = np.s_[
                    max(0, row - config.sight) : row + config.sight + 1,
                    max(0, column - config.sight) : column + config.sight + 1,
                ]
                types = self._types[env_id][sight][env.field[sight] > 0]
                kinds = np.eye(config.n_types, dtype=np.float32)[types].ravel()
                obs[env_id, agent, self.package_width :][: len(kinds)] = kinds
        return obs

    def state(self) -> tuple[Integers, Integers, Integers]:
        players = np.zeros((self.num_envs, self.num_agents, 3), np.int64)
        levels = np.zeros_like(self._types)
        for env_id, env in enumerate(self._simulator if self._started else ()):
            players[env_id] = [(*player.position, player.level) for player in env.players]
            levels[env_id] = env.field
        return players, levels, self._types.copy()

    def _restore(self, state: dict[str, NDArray[Any]]) -> None:
        self._types[:] = state["types"]
        for env_id, env in enumerate(self._simulator):
            env.field = state["levels"][env_id].astype(np.int32)
            env._food_spawned = state["spawned"][env_id]
            env.current_step, env._game_over = 0, False
            for player, (row, column, level) in zip(
                env.players, state["players"][env_id].tolist(), strict=True
            ):
                player.setup((row, column), level, env.field_size)
            env._gen_valid_moves()
