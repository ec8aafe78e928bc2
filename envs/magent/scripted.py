"""Hand-written teams of ``magent-gather``: what knowing the task is worth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mg2l.envs.gate import ScriptedTeams

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Worth = Callable[[Any], Floats]
"""Worth ``[N, n_foods]`` of a piece of each kind to a forager; none is eaten of what is not
positive."""

SPEED = 2  # cells a step
MOVES = np.array([
    (x, y) for y in range(-SPEED, SPEED + 1) for x in range(-SPEED, SPEED + 1)
    if x * x + y * y <= SPEED * SPEED
])  # fmt: skip
BITES = np.array([(0, -1), (-1, 0), (1, 0), (0, 1)])  # the actions after those of moving
STAY = len(MOVES) // 2


def foragers() -> ScriptedTeams:
    """Eat what pays most for the way there, or by rules that do not know what pays."""

    def eat(worth: Worth) -> Callable[[Any], Integers]:
        return lambda env: _act(env, worth(env))

    def alike(kinds: slice) -> Worth:
        def worth(env: Any) -> Floats:
            values = np.zeros((env.num_envs, env.config.n_foods))
            values[:, kinds] = 1
            return values

        return worth

    return ScriptedTeams(
        informed=eat(lambda env: env.tasks.features[env.task_ids].astype(np.float64)),
        blind={
            "eat everything": eat(alike(slice(None))),
            "first kind": eat(alike(slice(1))),
            "second kind": eat(alike(slice(1, 2))),
            "eat nothing": eat(alike(slice(0))),
        },
    )


def _act(env: Any, worth: Floats) -> Integers:
    """Actions ``[N, A]``: to the food of the highest worth a step, and eat it."""
    places, living, team = env.places(), env.living, env.num_agents
    rows = np.arange(env.num_envs)
    kinds = np.repeat(np.arange(env.config.n_foods), env.config.food_per_kind)
    own, foods = places[:, :team], places[:, team:]
    away = foods[:, None] - own[:, :, None]  # [N, A, F, 2]
    far = np.abs(away).sum(-1)
    steps = 1 + np.ceil((far - 1) / SPEED)
    gain = np.where(living[:, team:], worth[:, kinds], 0)[:, None] / steps
    target = gain.argmax(-1)
    way = np.take_along_axis(away, target[..., None, None], 2)[:, :, 0]  # [N, A, 2]
    hungry = gain.max(-1) > 0

    # Nobody moves to a cell that is taken; of moves that are equally good one is picked at random.
    size = env.config.map_size
    taken = np.ones((env.num_envs, size + 2 * SPEED, size + 2 * SPEED), bool)
    taken[:, SPEED + 1 : SPEED + size - 1, SPEED + 1 : SPEED + size - 1] = False
    unit = np.nonzero(living)
    taken[unit[0], places[unit][:, 0] + SPEED, places[unit][:, 1] + SPEED] = True
    to = own[:, :, None] + MOVES + SPEED  # [N, A, 13, 2]
    free = ~taken[rows[:, None, None], to[..., 0], to[..., 1]]
    free[..., STAY] = True
    left = np.abs(way[:, :, None] - MOVES).sum(-1)
    noise = np.random.default_rng(int(env.clock.sum())).uniform(0, 0.5, left.shape)
    moves = np.where(free, np.abs(left - 1) + noise, np.inf).argmin(-1)
    beside = (way[:, :, None] == BITES).all(-1)
    bite = len(MOVES) + beside.argmax(-1)
    actions: Integers = np.where(hungry, np.where(beside.any(-1), bite, moves), STAY)
    return actions
