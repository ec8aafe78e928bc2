"""The base of the ``magent-*`` families: the package's grid worlds, a group at a time."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete
from magent2 import GridWorld, gridworld
from numpy.typing import NDArray

from mg2l.envs.base import BoolArray, FloatArray, TaskSet
from mg2l.envs.batched import BatchedEnv
from mg2l.envs.magent.config import GridConfig
from mg2l.envs.magent.draw import draw_map
from mg2l.envs.magent.world import Memory, World

IntArray = NDArray[np.int64]

_HIGHEST = 2.0
"""Largest number of an observation: a fraction, plus 1 at the agent's own place on the minimap."""


class GridEnv(BatchedEnv):
    """A team (group 0) and other groups, which the family moves or which never act.

    Units of all groups are numbered ``0 .. U - 1``, the team first; a number stays a unit's own
    when others die. The package removes the dead, so its rows are those of the living.

    A family defines how the package is set up for a task (``_rules``), where units start
    (``_place``), what the others do (``_script``) and when the task has ended (``_over``).
    """

    others_act: bool
    """Whether there is a ``_script``; groups that never act do not move either."""

    def __init__(self, config: GridConfig, tasks: TaskSet, num_envs: int, seed: int) -> None:
        self.config = config
        tasks = tasks.with_validation(config)
        self._minimap = 2 if config.minimap else 0
        world = GridWorld(self._rules(tasks.params[0]))
        team = world.get_handles()[0]
        height, width, channels = map(int, world.get_view_space(team))
        self.image = (height, width, channels)
        self._view = int(np.prod(self.image))
        super().__init__(
            tasks,
            num_envs,
            config.n_agents,
            Box(0.0, _HIGHEST, (self._view + self._minimap,), np.float32),
            Discrete(int(world.get_action_space(team)[0])),
            config.max_ep_len,
            seed,
        )
        bounds = np.cumsum((0, *config.sizes))
        self._groups = [slice(a, b) for a, b in itertools.pairwise(bounds.tolist())]
        units = int(bounds[-1])
        self._memory = Memory(world, config.sizes)
        self._worlds: list[Any] = [None] * num_envs
        self._built = np.full(num_envs, -1)
        # Places (see `places`) and who lives.
        self._places = np.zeros((num_envs, units, 2), np.int64)
        self._living = np.zeros((num_envs, units), np.bool_)
        # Record of the episodes: the package cannot restore a state, but repeats episodes exactly.
        self._starts = np.zeros((num_envs, units, 2), np.int64)
        self._seeds = np.zeros(num_envs, np.int64)
        self._moving = len(self._groups) if self.others_act else 1
        acting = self._groups[self._moving - 1].stop
        self._history = np.zeros((num_envs, config.max_ep_len, acting), np.int16)

    # What a family defines.

    @abstractmethod
    def _rules(self, params: dict[str, Any]) -> gridworld.Config:
        """The package's configuration for a task, the team as its first group."""

    def _place(self, rng: np.random.Generator) -> IntArray:
        """``[U, 2]`` column and row of every unit when an episode begins."""
        side = self.config.map_size - 2
        cells = rng.choice(side * side, len(self._places[0]), replace=False)
        return 1 + np.stack(np.divmod(cells, side), 1)

    def _script(self) -> NDArray[np.int64]:
        """``[N, U - A]`` actions of the others."""
        raise NotImplementedError

    def _over(self) -> BoolArray:
        """``[N]`` whether a sub-environment's task has ended."""
        return np.zeros(self.num_envs, np.bool_)

    def _base(self) -> gridworld.Config:
        """An empty map."""
        rules = gridworld.Config()
        size = self.config.map_size
        rules.set({"map_width": size, "map_height": size, "minimap_mode": self.config.minimap})
        return rules

    # Episodes.

    def _build(self, env_id: int) -> World:
        """The world of a sub-environment; a new one if its task has changed."""
        task = self.task_ids[env_id]
        if self._built[env_id] != task:
            self._worlds[env_id] = World(self._rules(self.tasks.params[task]), self._memory)
            self._built[env_id] = task
        world: World = self._worlds[env_id]
        return world

    def _begin(self, env_ids: NDArray[np.int64]) -> None:
        for env_id in env_ids:
            rng = self._streams.generators[env_id]
            self._starts[env_id] = self._place(rng)
            self._seeds[env_id] = rng.integers(2**31)
            self._start(env_id)

    def _start(self, env_id: int) -> None:
        places = self._starts[env_id]
        self._build(env_id).start(
            int(self._seeds[env_id]), [places[units] for units in self._groups]
        )
        self._places[env_id], self._living[env_id] = places, True

    def places(self) -> IntArray:
        """``[N, U, 2]`` column and row of every living unit; of the dead, some earlier one."""
        for places, world in zip(self._places, self._worlds, strict=True):
            for group in range(self._moving if world else 0):
                places[world.living[group]] = world.places(group)
        return self._places

    @property
    def living(self) -> BoolArray:
        """``[N, U]`` who is alive."""
        return self._living

    def _play(self, env_id: int, actions: NDArray[np.int32], rewards: FloatArray) -> None:
        """Step one sub-environment with the actions of all who act; writes rewards ``[A]``."""
        world = self._build(env_id)
        rewards[world.living[0]] = world.step(actions, self._moving)
        for group in world.count():
            living = self._living[env_id, self._groups[group]]
            living[:] = False
            living[world.living[group] - self._groups[group].start] = True

    def _advance(self, actions: NDArray[np.int64]) -> tuple[FloatArray, BoolArray]:
        chosen = actions.astype(np.int32)
        if self.others_act:
            chosen = np.concatenate([chosen, self._script().astype(np.int32)], 1)
        self._history[np.arange(self.num_envs), self._clock] = chosen
        rewards = np.zeros((self.num_envs, self.num_agents), np.float32)
        for env_id, row in enumerate(chosen):
            self._play(env_id, row, rewards[env_id])
        return rewards, ~self._living[:, : self.num_agents] | self._over()[:, None]

    def _observe(self) -> FloatArray:
        shape = (self.num_envs, self.num_agents, *self.observation_spaces[0].shape)
        obs = np.empty(shape, np.float32)
        for env_id, rows in enumerate(obs):
            world = self._build(env_id)
            living, (views, features) = world.living[0], world.observe()
            if len(living) < len(rows):
                rows[:] = 0
            # Where nobody has died the order is that of their ids.
            seen: Any = slice(None) if len(living) == len(rows) else living
            rows[seen, : self._view] = views
            if self._minimap:
                rows[seen, self._view :] = features[:, -self._minimap :]
        return obs

    def _alive(self) -> BoolArray:
        return np.array(self._living[:, : self.num_agents])

    # Saved state.

    def _simulation(self) -> dict[str, NDArray[Any]]:
        return {
            "starts": self._starts.copy(),
            "seeds": self._seeds.copy(),
            "history": self._history.copy(),
        }

    def _restore(self, state: dict[str, NDArray[Any]]) -> None:
        self._starts[:], self._seeds[:] = state["starts"], state["seeds"]
        self._history[:] = state["history"]
        for env_id in range(self.num_envs):
            self._start(env_id)
            for actions in self._history[env_id, : self._clock[env_id]].astype(np.int32):
                self._play(env_id, actions, np.zeros(self.num_agents, np.float32))

    def render(self, index: int = 0) -> NDArray[np.uint8]:
        """See ``VectorEnv.render``."""
        self._check_index(index)
        if not self._started:
            raise RuntimeError("call reset() before render()")
        pays = self.tasks.params[self.task_ids[index]].get("pays", (False,))
        places = self.places()[index]
        groups = [places[units][self._living[index, units]] for units in self._groups]
        return draw_map(self.config.map_size, groups, (False, *(pay > 0 for pay in pays)))


def moves(speed: float) -> IntArray:
    """``[moves, 2]`` column and row by which each of a unit's first actions moves it."""
    reach = int(speed)
    steps = range(-reach, reach + 1)
    return np.array([(x, y) for y in steps for x in steps if x * x + y * y <= speed * speed])


def nearest(places: IntArray, targets: IntArray, living: BoolArray) -> IntArray:
    """Offset from every place to the nearest living target.

    Args:
        places: ``[N, P, 2]``.
        targets: ``[N, Q, 2]``.
        living: ``[N, Q]``.

    Returns:
        ``[N, P, 2]`` columns and rows; where none is alive, the offset to any target.
    """
    ways = targets[:, None] - places[:, :, None]
    far = np.iinfo(np.int64).max
    distances = np.where(living[:, None], (ways**2).sum(-1), far)
    picked = distances.argmin(-1)[..., None, None]
    way: IntArray = np.take_along_axis(ways, picked, 2)[:, :, 0]
    return way
