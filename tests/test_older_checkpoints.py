"""Checkpoints of earlier versions: converted to compute what they did, or refused in one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from method_helpers import tiny_learner
from torch import Tensor

from mg2l.config.saved import about, flat
from mg2l.training import checkpoint
from mg2l.training.checkpoint import CheckpointError
from mg2l.training.learner import Learner

ADDED = ("env.n_validation_tasks", "n_env_steps", "policy.conditioning")
"""Keys that format 1 did not know."""


def format_1(module: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a module as they were named and saved in format 1."""
    old: dict[str, Tensor] = {}
    for name, x in module.items():
        group, _, leaf = name.rpartition(".")
        if group == "rewards":  # of rl2, which had no moments of them
            continue
        of_values, of_rows = f"{group}.variance" in module, f"{group}.deviation" in module
        mean = module.get(f"{group}.mean", torch.zeros(()))
        if of_values:
            weight = module[f"{group}.weight"]
            values = {"weight": weight, "mean": mean * weight, "variance": (x + mean**2) * weight}
            names = {"weight": "weight", "mean": "first", "variance": "second"}
            old[f"{group}.{names[leaf]}"] = values[leaf].float()
        elif of_rows and leaf == "deviation":
            old[f"{group}.square"] = x / module[f"{group}.count"] + mean**2
        elif of_rows and leaf == "count":
            old[name] = x.view(())
        else:
            old[name.replace(".memory.", ".gru.")] = x
    return old


def trained(algo: str, **values: Any) -> Learner:
    learner = tiny_learner(algo, **values)
    tasks = learner.draw_tasks()
    learner.update_policy(learner.collect(tasks), tasks)
    return learner


@pytest.mark.parametrize("algo", ["mg2l", "mappo", "rl2"])
def test_networks_of_format_1_compute_what_they_did(algo, tmp_path, monkeypatch):
    learner = trained(algo, **({"use_recurrent_policy": True} if algo == "mappo" else {}))
    state = learner.state_dict()
    old = {name: format_1(module) for name, module in state["networks"].items()}
    names = {name for module in old.values() for name in module}
    assert {"normaliser.first", "normaliser.second"} < names
    assert any(".gru." in name for name in names) == (algo != "mg2l")
    said = {path: value for path, value in flat(learner.config).items() if path not in ADDED}
    monkeypatch.setattr(checkpoint, "FORMAT", 1)
    path = checkpoint.save(tmp_path, 1, {**state, "networks": old}, about=said)
    monkeypatch.undo()
    found = checkpoint.load(path, about=about(learner.config), template=state)
    for module, tensors in state["networks"].items():
        for name, x in tensors.items():
            if name.startswith("rewards."):
                continue
            digits = 1e-6
            if name == "normaliser.variance":
                x = x.clamp(min=1e-2)  # as it was read
                # The difference of two float32 numbers of the size of the mean's square.
                digits *= 1 + float(tensors["normaliser.mean"].square().max())
            converted = found.state["networks"][module][name]
            torch.testing.assert_close(converted, x, rtol=1e-5, atol=digits)
    learner.load_state_dict(found.state)
    if algo == "rl2":  # rewards are read as they are, now and later
        rewards = torch.tensor([[3.0], [-40.0]])
        moments: Any = learner.inference.rewards
        moments.update(100 * rewards)
        torch.testing.assert_close(moments.standardise(rewards), rewards)


def test_keys_that_were_added_since_have_their_defaults(tmp_path):
    learner = tiny_learner("mappo")
    said = {path: value for path, value in flat(learner.config).items() if path not in ADDED}
    path = checkpoint.save(tmp_path, 1, {}, about=said)
    checkpoint.load(path, about=about(learner.config))
    other = {**about(learner.config), "env.n_validation_tasks": 2}
    with pytest.raises(CheckpointError, match=r"has env\.n_validation_tasks=0, this run .*=2$"):
        checkpoint.load(path, about=other)


def test_networks_that_are_none_are_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 1)
    state = {"networks": {"critic": {"normaliser.second": torch.ones(2)}}}
    path = checkpoint.save(tmp_path, 1, state)
    with pytest.raises(CheckpointError, match=r"networks of format 1 are damaged: 'normaliser"):
        checkpoint.load(path)
