"""One iteration of meta-training on mpe-spread, by phase: ``pytest benchmarks/bench_train.py``.

Default sizes: 32 environments x 100 steps, 15 PPO epochs, actors conditioned on contexts of 100
transitions, 50 encoder updates of 160 contexts of 10. ``hidden`` is the width of actors and
critics: 128 is the default of the particle worlds, 256 that of the original code. ``extra_info``
holds the median seconds of every phase.
"""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch

from mg2l.config import files as loading
from mg2l.training.learner import Learner
from mg2l.training.loop import iterate

ROUNDS = 5
PHASES = ("time/rollout", "time/ppo", "time/encoder")


@pytest.mark.parametrize("hidden", [128, 256])
@pytest.mark.parametrize("algo", ["mg2l", "mappo", "oracle"])
def test_iteration(benchmark: Any, algo: str, hidden: int) -> None:
    config = loading.load_config(
        "default", algo, "mpe-spread", [f"algo_hidden_size={hidden}", "sample_ae_interval=1000"]
    )
    learner = Learner(config, torch.device("cpu"))
    learner.prepare()
    learner.take_times()
    rows: list[dict[str, Any]] = []
    benchmark.pedantic(
        lambda: rows.append(iterate(learner, len(rows))), rounds=ROUNDS, warmup_rounds=1
    )
    measured = rows[1:]
    for phase in PHASES:
        benchmark.extra_info[phase] = round(statistics.median(row[phase] for row in measured), 3)
    benchmark.extra_info["env_steps_per_s"] = round(
        statistics.median(row["env_steps_per_s"] for row in measured)
    )
    learner.close()
