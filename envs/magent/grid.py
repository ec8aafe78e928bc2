"""What the ``magent-*`` families share: copies of the package's grid world, a group at a time."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete
from magent2 import GridWorld, gridworld
from numpy.typing import NDArray

from mg2l.envs.base import BoolArray, FloatArray, TaskSet
from mg2l.envs.copies import CopiesEnv
from mg2l.envs.magent.config import GridConfig
from mg2l.envs.magent.draw import draw_map

IntArray = NDArray[np.int64]

_HIGHEST = 2.0
"""Of an observation: a share of at most 1, and on the minimap 1 more where the agent itself is."""


class GridEnv(CopiesEnv):
    """A team (group 0) and other groups, which the family moves or which never act.

    Units of all groups are numbered ``0 .. U - 1``, the team first; a number stays a unit's own
    when others die. The package removes the dead, so its rows are those of the living.

    A family says how the package is set up for a task (``_rules``), where units begin
    (``_place``), what the others do (``_script``) and when it is all over (``_over``).
    """

    others_act: bool
    """Whether there is a ``_script``; groups that never act do not move either."""

    def __init__(self, config: GridConfig, tasks: TaskSet, num_envs: int, seed: int) -> None:
        self.config = config
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
        self._worlds: list[Any] = [None] * num_envs
        self._built = np.full(num_envs, -1)
        # The living of every copy and group in the package's order, their places, who lives.
        self._rows: list[list[IntArray]] = [[] for _ in range(num_envs)]
        self._places = np.zeros((num_envs, units, 2), np.int64)
        self._living = np.zeros((num_envs, units), np.bool_)
        # How the episodes went: the package cannot take up a state, but repeats an episode exactly.
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
        """``[N]`` whether a copy's task has come to its end."""
        return np.zeros(self.num_envs, np.bool_)

    def _base(self) -> gridworld.Config:
        """An empty map."""
        rules = gridworld.Config()
        size = self.config.map_size
        rules.set({"map_width": size, "map_height": size, "minimap_mode": self.config.minimap})
        return rules

    # Episodes.

    def _build(self, copy: int) -> Any:
        """The world of a copy, a new one where its task has changed."""
        task = self.task_ids[copy]
        if self._built[copy] != task:
            self._worlds[copy] = GridWorld(self._rules(self.tasks.params[task]))
            self._built[copy] = task
        return self._worlds[copy]

    def _begin(self, copies: NDArray[np.int64]) -> None:
        for copy in copies:
            rng = self._streams.generators[copy]
            self._starts[copy] = self._place(rng)
            self._seeds[copy] = rng.integers(2**31)
            self._start(copy)

    def _start(self, copy: int) -> None:
        world = self._build(copy)
        world.set_seed(int(self._seeds[copy]))
        world.reset()
        for handle, units in zip(world.get_handles(), self._groups, strict=True):
            world.add_agents(handle, "custom", pos=self._starts[copy, units])
        self._look(copy)

    def _look(self, copy: int) -> None:
        """Learn from the package who lives and where."""
        world = self._worlds[copy]
        handles = world.get_handles()
        self._rows[copy] = rows = [world.get_agent_id(handle) for handle in handles]
        self._living[copy] = False
        for handle, units in zip(handles, rows, strict=True):
            self._living[copy, units] = True
            self._places[copy, units] = world.get_pos(handle)

    def _play(self, copy: int, actions: NDArray[np.int32]) -> FloatArray:
        """One step of a copy with the actions of all units that act; returns rewards ``[A]``."""
        world, rows = self._worlds[copy], self._rows[copy]
        handles = world.get_handles()
        acting = slice(self._moving)
        for handle, units in zip(handles[acting], rows[acting], strict=True):
            if len(units):
                world.set_action(handle, actions[units])
        world.step()
        rewards = np.zeros(self.num_agents, np.float32)
        rewards[rows[0]] = world.get_reward(handles[0])
        world.clear_dead()
        self._look(copy)
        return rewards

    def _advance(self, actions: NDArray[np.int64]) -> tuple[FloatArray, BoolArray]:
        chosen = actions.astype(np.int32)
        if self.others_act:
            chosen = np.concatenate([chosen, self._script().astype(np.int32)], 1)
        self._history[np.arange(self.num_envs), self._clock] = chosen
        rewards = np.stack([self._play(copy, row) for copy, row in enumerate(chosen)])
        return rewards, ~self._living[:, : self.num_agents] | self._over()[:, None]

    def _observe(self) -> FloatArray:
        shape = (self.num_envs, self.num_agents, *self.observation_spaces[0].shape)
        obs = np.zeros(shape, np.float32)
        for rows, world, living in zip(obs, self._worlds, self._rows, strict=True):
            if len(living[0]):
                view, features = world.get_observation(world.get_handles()[0])
                # The minimap gives a group of which nobody is left as 0 / 0.
                rows[living[0], : self._view] = np.nan_to_num(view).reshape(len(view), -1)
                if self._minimap:
                    rows[living[0], self._view :] = features[:, -self._minimap :]
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
        for copy in range(self.num_envs):
            self._start(copy)
            for actions in self._history[copy, : self._clock[copy]].astype(np.int32):
                self._play(copy, actions)

    def render(self, index: int = 0) -> NDArray[np.uint8]:
        """See ``VectorEnv.render``."""
        self._check_index(index)
        if not self._started:
            raise RuntimeError("call reset() before render()")
        pays = self.tasks.params[self.task_ids[index]].get("pays", (False,))
        groups = [self._places[index, units][self._living[index, units]] for units in self._groups]
        return draw_map(self.config.map_size, groups, (False, *pays))


def moves(speed: float) -> IntArray:
    """``[moves, 2]`` column and row by which each of a unit's first actions moves it."""
    reach = int(speed)
    steps = range(-reach, reach + 1)
    return np.array([(x, y) for y in steps for x in steps if x * x + y * y <= speed * speed])


def nearest(places: IntArray, targets: IntArray, living: BoolArray) -> IntArray:
    """Way from every place to the living target nearest to it.

    Args:
        places: ``[N, P, 2]``.
        targets: ``[N, Q, 2]``.
        living: ``[N, Q]``.

    Returns:
        ``[N, P, 2]`` columns and rows; where nobody lives, the way to any target.
    """
    ways = targets[:, None] - places[:, :, None]
    far = np.iinfo(np.int64).max
    distances = np.where(living[:, None], (ways**2).sum(-1), far)
    picked = distances.argmin(-1)[..., None, None]
    way: IntArray = np.take_along_axis(ways, picked, 2)[:, :, 0]
    return way
