"""``lbf-types``: foragers that must find out which types of food pay."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

from mg2l.envs.base import BoolArray, FloatArray
from mg2l.envs.batched import BatchedEnv
from mg2l.envs.lbf.config import ForagingConfig, type_tasks
from mg2l.envs.lbf.draw import draw_field

Integers = NDArray[np.int64]
Doubles = NDArray[np.float64]


class ForagingEnv(BatchedEnv):
    """Players load food, together where it is heavy, that pays or costs by its type.

    All sub-environments are stepped in C++, equal step by step to the package ``lbforaging`` 2 with
    the same random numbers; the package knows no types, and all its foods pay.

    Action space: ``Discrete(6)`` per player: 0 stay, 1 north, 2 south, 3 west, 4 east, 5 load the
    food on one of the four cells around. Of players that want the same cell none moves. Food is
    loaded where the levels of those that load it add up to its own, at least.

    Observation space: ``3 n_foods + 3 n_agents + n_foods n_types`` numbers per player:

    | numbers | meaning |
    |---|---|
    | 3 per food in sight, row by row | row and column in what it sees [cells], level; -1, -1, 0 where there is none |
    | 3 per player in sight, itself first | the same |
    | ``n_types`` per food | its type, one-hot |

    Reward, each player its own: of food that it has helped to load, the pay of its type times its
    level, shared among those who loaded it by their levels; ``-penalty`` where food was too heavy.

    Start: players on different cells drawn uniformly, with levels from 1 to ``max_level``; foods
    at least three steps apart and off the border, with levels as ``cooperative`` says.

    End: terminated when all food is eaten; truncated after ``max_ep_len`` steps.

    Tasks: features are the types' pay. In training and test tasks it is uniform in [-1, 1], in
    ``ood`` tasks -1 but for one type of 1 (two, where there are more tasks than types).
    """  # noqa: E501

    def __init__(self, config: ForagingConfig, num_envs: int, seed: int = 0) -> None:
        self.config = config
        foods, players = config.n_foods, config.n_agents
        heaviest = max(config.field_size - 1, min(3, players) * config.max_level)
        self.package_width = 3 * (foods + players)
        super().__init__(
            type_tasks(config),
            num_envs,
            players,
            Box(-1, heaviest, (self.package_width + foods * config.n_types,), np.float32),
            Discrete(6),
            config.max_ep_len,
            seed,
        )
        self._simulator = self._make()

    def _make(self) -> Any:
        """Make the simulator of all sub-environments."""
        from mg2l.envs.lbf.simulator import Foraging

        config = self.config
        return Foraging(
            self.num_envs,
            config.field_size,
            config.n_agents,
            config.n_foods,
            config.n_types,
            config.max_level,
            config.sight,
            config.cooperative,
            config.penalty,
        )

    def _begin(self, env_ids: NDArray[np.int64]) -> None:
        for env_id in env_ids:
            self._simulator.begin(env_id, self._streams.generators[env_id])

    def _advance(self, actions: NDArray[np.int64]) -> tuple[FloatArray, BoolArray]:
        paid, eaten, over = self._play(actions)
        # The package pays a fraction of all that the episode began with.
        pay = self.tasks.features[self.task_ids[:, None], eaten] * self._spawned()[:, None]
        rewards = np.where(eaten < 0, paid, paid * pay).astype(np.float32)
        return rewards, np.repeat(over[:, None], self.num_agents, 1)

    def _play(self, actions: NDArray[np.int64]) -> tuple[Doubles, Integers, BoolArray]:
        """Step all sub-environments.

        Returns:
            What the package pays, ``[N, A]``; the type of the food that a player has helped to
            load, or -1, ``[N, A]``; and whether no food is left, ``[N]``.
        """
        played: tuple[Doubles, Integers, BoolArray] = self._simulator.step(actions)
        return played

    def _spawned(self) -> Integers:
        """``[N]`` levels of all foods that the episodes began with."""
        spawned: Integers = self._simulator.spawned()
        return spawned

    def _observe(self) -> FloatArray:
        found: FloatArray = self._simulator.observe()
        return found

    def state(self) -> tuple[Integers, Integers, Integers]:
        """Players ``[N, A, 3]`` (row, column, level), levels and types of foods by cell.

        Both are ``[N, field_size, field_size]``; where there is no food the level is 0.
        """
        players, levels, types, _ = self._simulator.state()
        return players, levels, types

    def _simulation(self) -> dict[str, NDArray[Any]]:
        players, levels, types = self.state()
        return {"players": players, "levels": levels, "types": types, "spawned": self._spawned()}

    def _restore(self, state: dict[str, NDArray[Any]]) -> None:
        names = ("players", "levels", "types", "spawned")
        for env_id, values in enumerate(zip(*(state[name] for name in names), strict=True)):
            self._simulator.restore(env_id, *values)

    def render(self, index: int = 0) -> NDArray[np.uint8]:
        """See ``VectorEnv.render``."""
        self._check_index(index)
        if not self._started:
            raise RuntimeError("call reset() before render()")
        players, levels, types = (values[index] for values in self.state())
        pay = self.tasks.features[self.task_ids[index]][types]
        return draw_field(levels, pay, players)
