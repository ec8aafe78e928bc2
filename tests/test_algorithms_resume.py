"""Every algorithm resumes from a checkpoint bit for bit."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from method_helpers import tiny_config
from mixed_envs import Yard, YardConfig

from mg2l.config import files as loading
from mg2l.config.options import Options
from mg2l.config.sections import Config
from mg2l.envs import registry
from mg2l.training import loop
from mg2l.training.folder import RunFolder
from mg2l.training.learner import Learner


def next_metrics(learner: Learner, iteration: int) -> str:
    """Metrics of an iteration as text, without timings."""
    metrics = loop.iterate(learner, iteration)
    timeless = {k: v for k, v in metrics.items() if "time/" not in k and "per_s" not in k}
    return json.dumps(timeless, sort_keys=True)


def folder_at(path: Path) -> RunFolder:
    return cast("RunFolder", SimpleNamespace(path=path, checkpoints=path / "checkpoints"))


@pytest.mark.parametrize("algo", loading.available("algo"))
def test_continues_bit_for_bit(algo: str, tmp_path: Path) -> None:
    check_continues(tiny_config(algo, n_iters=9, n_agents=2), tmp_path)


@pytest.mark.parametrize("kind", ["film", "hyper"])
@pytest.mark.parametrize("algo", ["oracle", "mg2l"])
def test_conditioned_networks_continue_bit_for_bit(algo: str, kind: str, tmp_path: Path) -> None:
    config = tiny_config(algo, n_iters=9, n_agents=2, conditioning=kind, num_mini_batch=2)
    check_continues(config, tmp_path)


@pytest.mark.parametrize(
    ("algo", "values"), [("mg2l", {}), ("rl2", {}), ("mappo", {"use_recurrent_policy": True})]
)
def test_a_mixed_team_continues_bit_for_bit(
    algo: str, values: dict[str, Any], tmp_path: Path
) -> None:
    registry.register("yard", YardConfig, Yard)
    check_continues(tiny_config(algo, "yard", n_iters=9, data_chunk_length=5, **values), tmp_path)


def check_continues(config: Config, tmp_path: Path) -> None:
    undisturbed = Learner(config, torch.device("cpu"))
    undisturbed.prepare()
    before = [next_metrics(undisturbed, iteration) for iteration in range(2)]
    assert before[0] != before[1]
    loop.save(undisturbed, folder_at(tmp_path), 2)
    torch.rand(3)  # whatever else draws from torch's own stream
    resumed: Any = Learner(config, torch.device("cpu"))
    assert loop.restore(resumed, folder_at(tmp_path), Options()) == 2
    for iteration in (2, 3):
        assert next_metrics(resumed, iteration) == next_metrics(undisturbed, iteration)
