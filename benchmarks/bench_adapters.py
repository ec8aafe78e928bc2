"""What worker processes cost and gain: ``pytest benchmarks/bench_adapters.py``.

32 sub-environments of ``mpe2``, by one worker, by two, and in a plain loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mg2l.envs import adapters

ENVS, STEPS = 32, 50


def make(params: dict[str, Any]) -> Any:
    from mpe2 import simple_spread_v3

    return simple_spread_v3.parallel_env(N=2, local_ratio=params["ratio"], max_cycles=10_000)


def measure(benchmark: Any, play: Callable[[], None]) -> None:
    benchmark.pedantic(play, rounds=5, warmup_rounds=1)
    rate = ENVS * STEPS / benchmark.stats.stats.min
    benchmark.extra_info["env_steps_per_s"] = round(rate)
    print(f"\n{rate:,.0f} env steps/s")


@pytest.mark.parametrize("workers", [1, 2])
def test_workers(benchmark: Any, workers: int) -> None:
    config = adapters.AdapterConfig(n_workers=workers, max_ep_len=10_000)
    tasks = adapters.task_set([{"ratio": 0.5}], [], config)
    env = adapters.AdaptedEnv("spread", make, tasks, config, ENVS, seed=0)
    env.reset()
    actions = np.zeros((ENVS, 2), np.int64)

    def play() -> None:
        for _ in range(STEPS):
            env.step(actions)

    measure(benchmark, play)
    env.close()


def test_plain_loop(benchmark: Any) -> None:
    envs = [make({"ratio": 0.5}) for _ in range(ENVS)]
    for env in envs:
        env.reset(seed=0)
    actions = dict.fromkeys(envs[0].agents, 0)

    def play() -> None:
        for _ in range(STEPS):
            for env in envs:
                env.step(actions)

    measure(benchmark, play)
