"""``magent-pursuit``: predators that must find out which prey is the target."""

from __future__ import annotations

from typing import Any

import numpy as np
from magent2 import gridworld
from numpy.typing import NDArray

from mg2l.envs.magent.config import PursuitConfig, paying_tasks
from mg2l.envs.magent.grid import GridEnv, moves, nearest

_PREY_SPEED = 1.5


class PursuitEnv(GridEnv):
    """Predators hunt one kind of prey among several that look and run alike.

    Action space: ``Discrete(13)`` per predator: 5 moves (up, left, stay, right, down) and an
    attack on one of the 8 cells around, row by row.

    Observation space: as in ``magent-gather``, with the groups predators and each kind of prey.

    Reward, each predator its own: 1 for hitting a prey of the target kind, -0.2 for any attack.
    Prey does not die of it.

    Start: predators and prey on different cells drawn uniformly.

    Prey moves by up to 1.5 cells: with probability ``flight`` where the nearest predator is
    farthest, else at random.

    End: truncated after ``max_ep_len`` steps; never terminated, and none dies.

    Tasks: which kind is the target, one in a training task and two in a test task; features are 1
    for the targets.
    """

    config: PursuitConfig
    others_act = True

    def __init__(self, config: PursuitConfig, num_envs: int, seed: int = 0) -> None:
        super().__init__(config, paying_tasks("prey", config.prey_kinds, config), num_envs, seed)
        self._moves = moves(_PREY_SPEED)

    def _rules(self, params: dict[str, Any]) -> gridworld.Config:
        rules = self._base()
        body = {"width": 1, "length": 1, "hp": 1}
        predator = {
            **body,
            "speed": 1,
            "view_range": gridworld.CircleRange(self.config.view_range),
            "attack_range": gridworld.CircleRange(1.5),
            "attack_penalty": -0.2,
        }
        team = rules.add_group(rules.register_agent_type("predator", predator))
        hunts = gridworld.AgentSymbol(team, "any")
        for kind, pays in enumerate(params["pays"]):
            prey = {
                **body,
                "speed": _PREY_SPEED,
                "view_range": gridworld.CircleRange(1),
                "attack_range": gridworld.CircleRange(0),
            }
            group = rules.add_group(rules.register_agent_type(f"prey {kind}", prey))
            event = gridworld.Event(hunts, "attack", gridworld.AgentSymbol(group, "any"))
            rules.add_reward_rule(event, receiver=hunts, value=1 if pays else 0)
        return rules

    def _script(self) -> NDArray[np.int64]:
        team, count = self.num_agents, len(self._moves)
        places = self.places()
        way = nearest(places[:, team:], places[:, :team], self._living[:, :team])
        flee = ((way[:, :, None] - self._moves) ** 2).sum(-1).argmax(-1)
        prey, streams = way.shape[1], self._streams.generators
        stray = np.stack([rng.integers(count, size=prey) for rng in streams])
        alert = np.stack([rng.random(prey) for rng in streams]) < self.config.flight
        return np.where(alert, flee, stray)
