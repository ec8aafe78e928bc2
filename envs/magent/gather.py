"""``magent-gather``: foragers that must find out which food pays."""

from __future__ import annotations

from typing import Any

import numpy as np
from magent2 import gridworld

from mg2l.envs.base import BoolArray
from mg2l.envs.magent.config import GatherConfig, paying_tasks, random_tasks
from mg2l.envs.magent.grid import GridEnv

_SPEED, _HP, _DAMAGE = 2, 3.0, 1.0


class GatherEnv(GridEnv):
    """Foragers eat food, of which only some kinds pay, and can kill each other for it.

    Action space: ``Discrete(17)`` per forager: 13 moves to a cell at a distance of at most 2, row
    by row, the seventh of which is to stay, and an attack on the cell above, left, right or below.

    Observation space: ``h w c (+ 2)`` numbers in [0, 2] per forager, ``h = w = 2 r + 1``, ``r =
    view_range``: the cells it sees, row by row, each with ``c`` channels, and then with
    ``minimap`` its place on the map, column and row as fractions of the map's side. ``c = 1 + 2
    (1 + n_foods)``, or with ``minimap`` ``1 + 3 (1 + n_foods)``:

    | channels | meaning |
    |---|---|
    | 1 | a wall, or outside the map |
    | 1 per group | one of it is there; the foragers first, then each kind of food |
    | 1 per group | its health as a fraction of its initial health |
    | 1 per group, ``minimap`` | fraction of the group in that part of the map, plus 1 for oneself |

    The channels of a group stand together. The dead see zeros.

    Reward, each forager its own: 0.5 for a bite into food that pays and 5 for its last one, or with
    ``pay: random`` the kind's pay for the last one; ``-attack_penalty`` for any attack, -0.01 for
    every step, -1 for dying. Three bites of other foragers kill.

    Start: foragers and food on different cells drawn uniformly.

    End: terminated for a forager that dies, and for all when all food is eaten; truncated after
    ``max_ep_len`` steps. The dead stay dead until the episode ends for all; ``active`` marks
    who is alive.

    Tasks: which kinds pay, one in a training task and two in a test task; features are 1 for the
    kinds that pay. With ``pay: random`` the pay of each kind, drawn uniformly from [``min_pay``,
    ``max_pay``]; in ``ood`` tasks one kind pays more than that, and the others less; features are
    the pay.
    """

    config: GatherConfig
    others_act = False

    def __init__(self, config: GatherConfig, num_envs: int, seed: int = 0) -> None:
        drawn = config.pay == "random"
        tasks = random_tasks(config) if drawn else paying_tasks("food", config.n_foods, config)
        super().__init__(config, tasks, num_envs, seed)

    def _rules(self, params: dict[str, Any]) -> gridworld.Config:
        rules, config = self._base(), self.config
        body = {"width": 1, "length": 1, "step_recover": 0}
        forager = {
            **body,
            "hp": _HP,
            "speed": _SPEED,
            "view_range": gridworld.CircleRange(config.view_range),
            "attack_range": gridworld.CircleRange(1),
            "damage": _DAMAGE,
            "attack_in_group": 1,
            "step_reward": -0.01,
            "attack_penalty": -config.attack_penalty,
            "dead_penalty": -1,
        }
        team = rules.add_group(rules.register_agent_type("forager", forager))
        bites = gridworld.AgentSymbol(team, "any")
        drawn = config.pay == "random"
        for kind, pays in enumerate(params["pays"]):
            food = {
                **body,
                "hp": config.bites * _DAMAGE,
                "speed": 0,
                "view_range": gridworld.CircleRange(1),
                "attack_range": gridworld.CircleRange(0),
                "kill_reward": pays if drawn else 5 * pays,
            }
            group = rules.add_group(rules.register_agent_type(f"food {kind}", food))
            bitten = gridworld.AgentSymbol(group, "any")
            event = gridworld.Event(bites, "attack", bitten)
            rules.add_reward_rule(event, receiver=bites, value=0 if drawn else 0.5 * pays)
        return rules

    def _over(self) -> BoolArray:
        return np.logical_not(self._living[:, self.num_agents :].any(1))
