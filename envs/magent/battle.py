"""``magent-battle``: a team against an army of hidden strength and behaviour."""

from __future__ import annotations

from typing import Any

import numpy as np
from magent2 import gridworld
from numpy.typing import NDArray

from mg2l.envs.base import BoolArray
from mg2l.envs.magent.config import BEHAVIOURS, BattleConfig, army_tasks
from mg2l.envs.magent.grid import GridEnv, IntArray, moves, nearest

_SPEED, _REACH = 2, 1.5
_BESIDE = moves(_REACH)


class BattleEnv(GridEnv):
    """A team fights an army whose health, damage and behaviour are hidden.

    Action space: ``Discrete(21)`` per agent: 13 moves to a cell at a distance of at most 2, row by
    row, the seventh of which is to stay, and an attack on one of the 8 cells around, row by row.

    Observation space: as in ``magent-gather``, with the groups team and opponents. Health is a
    fraction of a unit's initial health, so that it does not reveal an opponent's strength.

    Reward, each agent its own: 0.2 for hitting an opponent, 5 for killing one, -0.1 for any
    attack, -0.005 for every step, -0.1 for dying. An agent has 10 hp, takes 2 with a blow and
    recovers 0.1 every step.

    Start: the team on cells of the left half of the map, drawn uniformly, the opponents on the
    right half.

    End: terminated for an agent that dies, and for all when no opponent is left; truncated after
    ``max_ep_len`` steps. ``active`` marks who is alive.

    Tasks: the opponents' hp (4, 10, 20), damage (1, 2, 4) and behaviour. All strike units beside
    them. If there are none, those that ``charge`` run to the nearest agent, ``hold`` stay and
    ``wander`` move at random. Of the 27 armies ``n_test_tasks`` are held out, chosen by
    ``task_seed``. Features are hp and damage as fractions of the largest, and a one-hot behaviour.
    """

    config: BattleConfig
    others_act = True

    def __init__(self, config: BattleConfig, num_envs: int, seed: int = 0) -> None:
        super().__init__(config, army_tasks(config), num_envs, seed)
        self._moves = moves(_SPEED)
        # Which action strikes the cell at [1 + row, 1 + column].
        self._strikes = np.zeros((3, 3), np.int64)
        around = _BESIDE[(_BESIDE != 0).any(1)]
        self._strikes[1 + around[:, 1], 1 + around[:, 0]] = len(self._moves) + np.arange(8)

    def _rules(self, params: dict[str, Any]) -> gridworld.Config:
        rules = self._base()
        agent = {
            "width": 1,
            "length": 1,
            "hp": 10,
            "speed": _SPEED,
            "view_range": gridworld.CircleRange(self.config.view_range),
            "attack_range": gridworld.CircleRange(_REACH),
            "damage": 2,
            "step_recover": 0.1,
            "step_reward": -0.005,
            "attack_penalty": -0.1,
            "dead_penalty": -0.1,
        }
        strength = {"hp": params["hp"], "damage": params["damage"], "kill_reward": 5}
        team = rules.add_group(rules.register_agent_type("agent", dict(agent)))
        army = rules.add_group(rules.register_agent_type("opponent", {**agent, **strength}))
        hits, hit = (gridworld.AgentSymbol(group, "any") for group in (team, army))
        rules.add_reward_rule(gridworld.Event(hits, "attack", hit), receiver=hits, value=0.2)
        return rules

    def _place(self, rng: np.random.Generator) -> IntArray:
        height = self.config.map_size - 2
        widths = height // 2, height - height // 2
        places = []
        for first, width, count in zip((1, 1 + widths[0]), widths, self.config.sizes, strict=True):
            cells = rng.choice(width * height, count, replace=False)
            places.append(np.stack([first + cells % width, 1 + cells // width], 1))
        return np.concatenate(places)

    def _script(self) -> NDArray[np.int64]:
        team = self.num_agents
        places = self.places()
        way = nearest(places[:, team:], places[:, :team], self._living[:, :team])
        charge = (abs(way[:, :, None] - self._moves).sum(-1)).argmin(-1)
        count = len(self._moves)
        wander = np.stack([g.integers(count, size=way.shape[1]) for g in self._streams.generators])
        params = [self.tasks.params[task]["behaviour"] for task in self.task_ids]
        behaviour = np.array([BEHAVIOURS.index(name) for name in params])[:, None]
        chosen = np.choose(behaviour, (charge, np.full_like(charge, count // 2), wander))
        beside = (abs(way) <= 1).all(-1)
        column, row = np.moveaxis(way.clip(-1, 1), -1, 0)
        struck: NDArray[np.int64] = np.where(beside, self._strikes[1 + row, 1 + column], chosen)
        return struck

    def _over(self) -> BoolArray:
        return np.logical_not(self._living[:, self.num_agents :].any(1))
