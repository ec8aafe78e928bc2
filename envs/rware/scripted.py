"""Hand-written teams of ``rware-station``: what knowing the task is worth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mg2l.envs.gate import ScriptedTeams

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Cells = NDArray[np.bool_]  # [N, H, W]
Stations = Callable[[Any], Cells]
"""The stations that a team brings shelves to, none where it keeps them."""

STAY, FORWARD, LEFT, RIGHT, TOGGLE = range(5)
AHEAD = ((0, -1), (0, 1), (-1, 0), (1, 0))  # up, down, left, right
TURNED_LEFT, TURNED_RIGHT = [2, 3, 1, 0], [3, 2, 0, 1]
PATIENCE = (10.0, 3.0)
"""Steps that robots (in turn) count for a cell where another one stands: they differ, so that of
two that meet one gives way."""


def stations() -> ScriptedTeams:
    """Bring shelves to the station that pays most, or by rules that do not know which one it is."""

    def best(env: Any) -> Cells:
        pay = np.stack([env.pay[task] for task in env.task_ids])
        return _goals(env, pay == pay.max(1, keepdims=True))

    def fixed(index: int) -> Stations:
        return lambda env: _goals(env, np.eye(4, dtype=bool)[[index] * env.num_envs])

    def deliver(to: Stations) -> Callable[[Any], Integers]:
        return lambda env: _act(env, to(env))

    rules = {f"station {index}": fixed(index) for index in range(4)}
    rules["nearest station"] = lambda env: _goals(env, np.ones((env.num_envs, 4), bool))
    rules["lift and keep"] = lambda env: _goals(env, np.zeros((env.num_envs, 4), bool))
    return ScriptedTeams(
        informed=deliver(best), blind={name: deliver(to) for name, to in rules.items()}
    )


def _goals(env: Any, chosen: NDArray[np.bool_]) -> Cells:
    """Cells of the goals ``[N, G]`` that are chosen."""
    cells: Cells = np.stack([env.cells[task] for task in env.task_ids]) == "g"
    cells[cells] = chosen.ravel()
    return cells


def _act(env: Any, goals: Cells) -> Integers:
    """Actions ``[N, A]``: fetch a requested shelf, bring it to a goal, put it back, and so on."""
    robots, shelves, requests = env.state()
    places = np.stack([env.cells[task] for task in env.task_ids]) == "x"
    rows = np.arange(env.num_envs)
    numbers = np.arange(1, shelves.shape[1] + 1)
    carried = (robots[..., 3][:, :, None] == numbers).any(1)
    requested = (requests[:, :, None] == numbers).any(1)
    standing, wanted = np.zeros_like(places), np.zeros_like(places)
    for shelf, (x, y) in enumerate(np.moveaxis(shelves, 0, 2)):
        standing[rows, y, x] |= ~carried[:, shelf]
        wanted[rows, y, x] |= ~carried[:, shelf] & requested[:, shelf]
    actions = np.zeros((env.num_envs, env.num_agents), np.int64)
    for robot in range(env.num_agents):
        x, y, direction, shelf = robots[:, robot, :4].T
        loaded = shelf > 0
        bring = loaded & requested[rows, shelf - 1]
        target = np.where(
            bring[:, None, None], goals, np.where(loaded[:, None, None], places & ~standing, wanted)
        )
        toll = np.zeros(places.shape)
        for other in range(env.num_agents):
            if other != robot:
                toll[rows, robots[:, other, 1], robots[:, other, 0]] = PATIENCE[robot % 2]
        toll[loaded[:, None, None] & standing] = np.inf
        ways = _ways(target, toll)
        moves = np.stack(
            [
                np.full(len(rows), np.inf),
                _forward(ways, toll)[rows, direction, y, x],
                ways[rows, np.take(TURNED_LEFT, direction), y, x],
                ways[rows, np.take(TURNED_RIGHT, direction), y, x],
            ]
        )
        chosen = np.where(np.isfinite(moves).any(0), moves.argmin(0), STAY)
        arrived = target[rows, y, x] & ~bring
        actions[:, robot] = np.where(arrived, TOGGLE, chosen)
    return actions


def _forward(ways: Floats, toll: Floats) -> Floats:
    """``[N, 4, H, W]`` steps to a target when one goes forward first, by direction."""
    found = np.full_like(ways, np.inf)
    height, width = toll.shape[1:]
    for direction, (dx, dy) in enumerate(AHEAD):
        here = np.s_[:, max(0, -dy) : height - max(0, dy), max(0, -dx) : width - max(0, dx)]
        there = np.s_[:, max(0, dy) : height + min(0, dy), max(0, dx) : width + min(0, dx)]
        found[:, direction][here] = ways[:, direction][there] + toll[there]
    return 1 + found


def _ways(target: Cells, toll: Floats) -> Floats:
    """``[N, 4, H, W]`` steps to the nearest target from every cell and direction."""
    ways = np.where(target, 0.0, np.inf)[:, None].repeat(4, 1)
    while True:
        turned = 1 + np.minimum(ways[:, TURNED_LEFT], ways[:, TURNED_RIGHT])
        better = np.minimum(ways, np.minimum(turned, _forward(ways, toll)))
        if np.array_equal(better, ways):
            return ways
        ways = better
