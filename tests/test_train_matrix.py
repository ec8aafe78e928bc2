"""Every choice of the configuration through real training, and a reward that becomes NaN."""

import itertools
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from method_helpers import TINY, overrides

import mg2l.train as train
from mg2l import cli
from mg2l.config import files as loading
from mg2l.envs.particle.spread import Spread
from mg2l.training.metrics import read_metrics

SMALL = {**TINY, "log_tensorboard": False, "save_interval": 1}
EVERYWHERE = ("return", "loss/policy", "loss/value", "kl", "clip_fraction", "time/iteration")
LOSSES = ("loss/local", "loss/global", "grad_norm/encoder")
LOCAL = ("mi/local", *LOSSES)
MG2L = ("mi/global", *LOCAL)
BELIEF = ("loss/belief", "belief/observation_error", "belief/reward_error", "belief/kl")
OWN: dict[str, tuple[str, ...]] = {
    "mappo": (),
    "oracle": (),
    "rl2": (),
    "rl2-transformer": (),
    "focal": ("focal/loss", "focal/within", "focal/between", "accuracy/fresh_local"),
    "corro": (
        "corro/bound",
        "corro/accuracy",
        "corro/generator",
        "accuracy/fresh_local",
        "grad_norm/encoder_from_critic",
    ),
    "ma-pearl": ("kl/global", "kl/local", "accuracy/fresh_local", "grad_norm/encoder_from_critic"),
    **dict.fromkeys(("mate-ind", "mate-cen", "mate-mix", "varibad"), BELIEF),
    "mg2l-q-only": (*LOCAL, "grad_norm/encoder_from_critic"),
    "mg2l-local-only": LOCAL,
    **dict.fromkeys(
        ("mg2l-adapt", "mg2l-online", "mg2l-regression"),
        (*LOSSES, "predict/local", "predict/global"),
    ),
}
"""Metrics that an algorithm adds to ``EVERYWHERE``; else those of ``mg2l``."""

ENCODER: list[dict[str, Any]] = [
    *({"aggregator": name} for name in ("pia", "transformer", "rnn", "gaussian_product", "mean")),
    {"n_blocks": 1},
    {"hidden_sizes_mlp": "[8]"},
    {"kernels": "torch"},
    {"dist": "deterministic"},
    {"bounded_by": "none"},
    {"normalize_transitions": False},
    {"keys": "context"},
    {"keys": "context", "negatives": "independent"},
    {"contrast": "sample"},
    {"score": "dot"},
    {"score": "bilinear"},
    *({"local_objective": name} for name in ("conditional_mi", "mi", "kl", "none")),
    {"local_query": "joint"},
    {"target_decay": 0},
    {"critic_to_encoder": False},
    {"act_on": "sample"},
    {"context_refresh": "episode"},
    {"train_ae_interval": 2},
    {"ae_updates_per_iter": 0},
    {"update_contexts": 2},
]
POLICY: list[dict[str, Any]] = [
    {"use_recurrent_policy": True, "data_chunk_length": 5},
    {"use_naive_recurrent_policy": True},
    {"use_centralized_V": False},
    {"use_popart": True, "use_valuenorm": False},
    {"use_valuenorm": False},
    {"use_gae": False},
    {"use_huber_loss": False},
    {"use_clipped_value_loss": False},
    {"use_max_grad_norm": False},
    {"use_linear_lr_decay": True},
    {"observation_normalization": "layer"},
    {"observation_normalization": "running"},
    {"num_mini_batch": 2},
]
CASES = [
    *(("mg2l", case) for case in ENCODER),
    *((algo, {}) for algo in loading.available("algo")),
    *itertools.product(("mg2l", "mappo", "oracle"), POLICY),
    *((algo, {"env": "mpe-hunting"}) for algo in ("mg2l", "mappo", "oracle")),
]


def words(algo: str, root: Path, **values: Any) -> list[str]:
    env = values.pop("env", "mpe-spread")
    pairs = {**SMALL, "main_save_path": root, **values}
    return [f"--algo={algo}", f"--env={env}", *overrides(pairs)]


def flat(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if isinstance(v, (int, float)) or v is None}


@pytest.mark.parametrize(("algo", "case"), CASES, ids=str)
def test_trains(algo, case, tmp_path):
    assert train.run(*cli.parse(words(algo, tmp_path, **case))) == 0
    (folder,) = tmp_path.glob("*/*/*")
    rows = read_metrics(folder / "metrics.jsonl")
    assert len(rows) == 2
    for row in rows:
        trains = case.get("ae_updates_per_iter", 1) and case.get("train_ae_interval", 1) == 1
        wanted = EVERYWHERE + (OWN.get(algo, MG2L) if trains else ())
        for name in wanted:
            assert math.isfinite(row[name]), name
        assert None not in flat(row).values()  # what NaN is written as


@pytest.mark.parametrize(
    ("factor", "said"),
    [(np.nan, "gave a reward of nan to agent 0 in sub-environment 0"), (1e38, "the batch is in ")],
)
def test_a_reward_that_breaks_stops_the_run_and_keeps_what_was_computed(
    tmp_path, monkeypatch, capsys, factor, said
):
    """In the second iteration of real training; nothing of the first is lost.

    NaN is the environment's fault, and named; numbers that make a loss infinite are finite.
    """
    calls = itertools.count()
    reward = Spread.reward

    def broken(self: Spread, world: Any) -> np.ndarray:
        rewards = reward(self, world)
        # Two exploration rollouts and one more in each iteration, ten steps each; then training.
        return rewards * factor if next(calls) > 55 else rewards

    monkeypatch.setattr(Spread, "reward", broken)
    monkeypatch.setattr(Spread, "compiled", lambda self: None)  # worlds that ask for it
    monkeypatch.setattr("sys.argv", ["train", *words("mg2l", tmp_path, n_iters=5)])
    with pytest.raises(SystemExit) as stopped:
        train.main()
    assert stopped.value.code == 1
    (folder,) = tmp_path.glob("*/*/*")
    done = len(read_metrics(folder / "metrics.jsonl"))
    assert 1 <= done < 5
    message = capsys.readouterr().err
    assert f"iteration {done + 1}: " in message
    assert said in message
    if np.isfinite(factor):
        assert re.search(r" is (nan|-?inf); the run stops", message)
        assert Path(message.split(said)[1].strip()).exists()
