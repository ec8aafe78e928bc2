"""Ablations of MG2L: what each configuration changes, and only that."""

import dataclasses
from typing import Any

import pytest
import torch
from method_helpers import collect, inference_of, tiny_learner

from mg2l.algorithms.mg2l.config import MG2LConfig
from mg2l.config import files as loading
from mg2l.config.saved import flat

CHANGES: dict[str, dict[str, Any]] = {
    "mg2l-global-only": {"actor_latent": "global", "local_to_encoder": False},
    "mg2l-local-only": {
        "global_objective": "none",
        "critic_to_encoder": False,
        "critic_latent": "local",
    },
    "mg2l-kl": {"local_objective": "kl"},
    "mg2l-q-only": {"global_objective": "none", "local_to_encoder": False},
    "mg2l-transformer": {"aggregator": "transformer", "n_blocks": 1},
    "mg2l-gaussian-product": {"aggregator": "gaussian_product"},
    "mg2l-rnn": {"aggregator": "rnn"},
    "mg2l-mean": {"aggregator": "mean"},
}


@pytest.mark.parametrize("algo", CHANGES)
def test_a_file_changes_what_it_ablates_alone(algo):
    ours, ablated = (flat(loading.load_config(algo=name)) for name in ("mg2l", algo))
    differ = {path: value for path, value in ablated.items() if value != ours[path]}
    assert differ == {f"algo.{name}": value for name, value in CHANGES[algo].items()}


def gradients(learner) -> dict[str, float]:
    """Size of the encoder loss's gradient, by part of the encoder."""
    inference = inference_of(learner)
    loss, _, _ = inference.loss(measure_gap=False)
    inference.optimiser.zero_grad()
    loss.backward()
    found: dict[str, float] = {}
    for name, parameter in inference.objective.named_parameters():
        part = name.replace("encoder.", "").partition(".")[0]
        size = 0.0 if parameter.grad is None else float(parameter.grad.abs().sum())
        found[part] = found.get(part, 0.0) + size
    return found


def test_global_only_gives_all_actors_and_critics_the_same():
    learner = tiny_learner("mg2l-global-only", context_refresh="episode")
    rollout, _ = collect(learner)
    latent = rollout.latent
    assert latent is not None
    assert torch.equal(latent[:, :, 0], latent[:, :, 1])
    assert not torch.equal(latent[0, 0, 0], latent[0, 1, 0])


def test_local_only_has_no_global_level():
    learner = tiny_learner("mg2l-local-only", kl_weight=0.0)
    sizes = gradients(learner)
    assert sizes["over_agents"] == 0
    assert min(sizes[part] for part in ("aggregator", "local", "task_keys")) > 0
    _, critic_latent = collect(learner)
    latent = critic_latent()
    assert latent is not None
    assert latent.shape == (4, 2 * 8)
    assert not latent.requires_grad
    assert learner.inference.trained_by_critic() == []


def test_q_only_leaves_the_encoder_to_the_value_loss():
    learner = tiny_learner("mg2l-q-only", kl_weight=0.0)
    sizes = gradients(learner)
    assert sizes["over_agents"] == sizes["aggregator"] == 0
    assert sizes["local"] > 0
    tasks = learner.draw_tasks()
    metrics = learner.update_policy(learner.collect(tasks), tasks)
    assert metrics["grad_norm/encoder_from_critic"] > 0


@pytest.mark.parametrize("reaches", [True, False])
def test_every_level_is_trained_and_the_encoder_by_local_losses_too_unless_cut_off(reaches):
    keys: dict[str, Any] = {} if reaches else {"local_to_encoder": False}
    assert min(gradients(tiny_learner("mg2l", **keys)).values()) > 0
    inference = inference_of(tiny_learner("mg2l", **keys))
    context = inference.contexts(torch.arange(3))
    inference.optimiser.zero_grad()
    inference.encoder(context).local.mean.sum().backward()
    given = [p.grad is not None for p in inference.encoder.aggregator.parameters()]
    assert all(given) if reaches else not any(given)


def test_critics_that_train_the_encoder_get_the_global_representation():
    with pytest.raises(ValueError, match="critic_latent=local and critic_to_encoder=true"):
        MG2LConfig(critic_latent="local")
    assert dataclasses.replace(MG2LConfig(), critic_to_encoder=False, critic_latent="local")
