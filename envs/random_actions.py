"""Random actions, with which benchmarks, pictures and comparisons step environments."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mg2l.envs.base import Info, VectorEnv


def random_actions(env: VectorEnv, rng: np.random.Generator, info: Info) -> NDArray[Any]:
    """Actions drawn uniformly from their space, or from what the mask allows.

    Args:
        env: the environment to step.
        rng: source of randomness.
        info: info of the last ``reset`` or ``step``, which may hold ``action_mask``.

    Returns:
        ``[N, A, act]`` float64, unbounded actions from -1000 to 1000; or ``[N, A]`` int64; or what
        `ActionLayout` says of teams of several kinds.
    """
    layout, shape = env.action_layout, (env.num_envs, env.num_agents)
    if layout.equal and not layout.shape:
        allowed = info.get("action_mask", np.ones((*shape, layout.options), np.bool_))
        chosen: NDArray[np.int64] = np.where(allowed, rng.random(allowed.shape), -1.0).argmax(2)
        return chosen
    low, high = np.maximum(layout.low, -1e3), np.minimum(layout.high, 1e3)
    numbers = rng.uniform(low, high, (*shape, layout.numbers))
    if not layout.choices:
        return numbers
    allowed = info.get("action_mask", np.ones((*shape, layout.options), np.bool_))
    # Behind the last option lies what padding points to, which is never allowed.
    allowed = np.concatenate([allowed, np.zeros((*shape, 1), np.bool_)], 2)
    allowed = allowed[:, np.arange(env.num_agents)[:, None, None], layout.columns]
    chosen = np.where(allowed, rng.random(allowed.shape), -1.0).argmax(-1)
    joined = np.zeros((*shape, max(layout.numbers, layout.choices)), layout.dtype)
    joined[..., : layout.numbers] = numbers
    joined[..., : layout.choices] += chosen
    return joined.reshape(*shape, *layout.shape)
