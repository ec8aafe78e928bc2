"""Hand-written teams of ``lbf-types``: what knowing the task is worth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mg2l.envs.gate import ScriptedTeams

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Wanted = Callable[[Any], NDArray[np.bool_]]
"""The types ``[N, n_types]`` that a team eats."""

STAY, LOAD = 0, 5
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))  # north, south, west, east: actions 1 to 4
PATIENCE = 4.0
"""Steps that a player counts for a cell where another one stands."""


def foragers() -> ScriptedTeams:
    """Eat what pays, or by rules that do not know it; all players go to the same food."""

    def eat(wanted: Wanted) -> Callable[[Any], Integers]:
        return lambda env: _act(env, wanted(env))

    def fixed(*types: int) -> Wanted:
        return lambda env: np.repeat(
            np.isin(np.arange(env.config.n_types), types)[None], env.num_envs, 0
        )

    return ScriptedTeams(
        informed=eat(lambda env: env.tasks.features[env.task_ids] > 0),
        blind={
            "eat everything": eat(lambda env: np.ones((env.num_envs, env.config.n_types), bool)),
            "eat nothing": eat(fixed()),
            "first type": eat(fixed(0)),
            "second type": eat(fixed(1)),
        },
    )


def _act(env: Any, wanted: NDArray[np.bool_]) -> Integers:
    """Actions ``[N, A]``: all go to the wanted food that is nearest to all, and load it."""
    players, levels, types = env.state()
    rows = np.arange(env.num_envs)
    size = levels.shape[1]
    food = (levels > 0) & wanted[rows[:, None, None], types]
    axis = np.arange(size)
    far = sum(
        abs(axis[:, None] - players[:, a, 0, None, None]) + abs(axis - players[:, a, 1, None, None])
        for a in range(env.num_agents)
    )
    nearest = np.where(food, far, np.inf).reshape(env.num_envs, -1).argmin(1)
    target = np.zeros_like(food)
    target.reshape(env.num_envs, -1)[rows, nearest] = food.any((1, 2))
    actions = np.full((env.num_envs, env.num_agents), STAY)
    for agent in range(env.num_agents):
        row, column = players[:, agent, 0], players[:, agent, 1]
        toll = np.where(levels > 0, np.inf, 1.0)
        for other in range(env.num_agents):
            if other != agent:
                toll[rows, players[:, other, 0], players[:, other, 1]] += PATIENCE
        ways = _ways(_neighbours(target), toll)
        moves = np.stack([_shifted(ways + toll, *move)[rows, row, column] for move in MOVES])
        go = np.where(np.isfinite(moves).any(0), 1 + moves.argmin(0), STAY)
        arrived = _neighbours(target)[rows, row, column]
        actions[:, agent] = np.where(arrived, LOAD, go)
    return actions


def _shifted(values: Floats, y: int, x: int) -> Floats:
    """``[N, H, W]`` of the cell one step away; infinite outside of the field."""
    padded = np.pad(values, ((0, 0), (1, 1), (1, 1)), constant_values=np.inf)
    height, width = values.shape[1:]
    return padded[:, 1 + y : 1 + y + height, 1 + x : 1 + x + width]


def _neighbours(cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The cells beside those that are given."""
    away = np.where(cells, 0.0, np.inf)
    nearest: Floats = np.min([_shifted(away, *move) for move in MOVES], 0)
    return np.isfinite(nearest)


def _ways(target: NDArray[np.bool_], toll: Floats) -> Floats:
    """``[N, H, W]`` cost of the cheapest way from each cell to a target, by the cells' tolls."""
    ways = np.where(target & np.isfinite(toll), 0.0, np.inf)
    while True:
        better = np.minimum(ways, np.min([_shifted(ways + toll, *m) for m in MOVES], 0))
        if np.array_equal(better, ways):
            return ways
        ways = better
