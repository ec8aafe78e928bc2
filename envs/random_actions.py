"""Actions without a thought: what benchmarks, pictures and comparisons step environments with."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Discrete
from numpy.typing import NDArray

from mg2l.envs.base import Info, VectorEnv


def random_actions(env: VectorEnv, rng: np.random.Generator, info: Info) -> NDArray[Any]:
    """Actions drawn uniformly from their space, or from what the mask allows.

    Args:
        env: what is to be stepped.
        rng: where they are drawn from.
        info: of the last ``reset`` or ``step``, which may hold ``action_mask``.

    Returns:
        ``[N, A, act]`` float64, unbounded actions from -1000 to 1000; or ``[N, A]`` int64.
    """
    space, shape = env.action_spaces[0], (env.num_envs, env.num_agents)
    if isinstance(space, Discrete):
        allowed = info.get("action_mask", np.ones((*shape, int(space.n)), np.bool_))
        chosen: NDArray[np.int64] = np.where(allowed, rng.random(allowed.shape), -1.0).argmax(2)
        return chosen
    low, high = np.maximum(space.low, -1e3), np.minimum(space.high, 1e3)
    return rng.uniform(low, high, (*shape, *low.shape))
