"""Gradients that are computed without autograd are those that autograd computes of the formulas."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from method_helpers import KINDS, inference_of, known_learner, prepared, tiny_learner
from torch import Tensor, nn

from mg2l.algorithms.base import LearnedInference
from mg2l.experience.finite import NonFiniteLossError
from mg2l.nn.vjp import by_autograd
from mg2l.ops import reference
from mg2l.training.batch import Batch
from mg2l.training.learner import Learner

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: ("mg2l", values) for name, values in KINDS.items()},
    "no latent": ("mappo", {"mortal": True}),
    "shared": ("mg2l", {"share_policy": True}),
    "shared, decentralised": ("mg2l", {"share_policy": True, "use_centralized_V": False}),
    "decentralised": ("mg2l", {"use_centralized_V": False}),
    "film": ("mg2l", {"conditioning": "film"}),
    "film, held": ("oracle", {"conditioning": "film"}),
    "film, held in minibatches": ("oracle", {"conditioning": "film", "num_mini_batch": 3}),
    "film, shared": ("oracle", {"conditioning": "film", "share_policy": True}),
    "film, shared, decentralised": (
        "mg2l",
        {"conditioning": "film", "share_policy": True, "use_centralized_V": False},
    ),
    "film, discrete": ("oracle", {"conditioning": "film", "discrete": True}),
    "film, pooled": ("mg2l", {"conditioning": "film", "critic": "pooled"}),
    "film, recurrent": ("mg2l", {"conditioning": "film", "use_recurrent_policy": True}),
    "film, definitions": ("mg2l", {"conditioning": "film", "kernels": "torch"}),
    "hyper": ("mg2l", {"conditioning": "hyper", "hyper_dim": 3}),
    "hyper, held": (
        "oracle",
        {"conditioning": "hyper", "hyper_dim": 3, "num_mini_batch": 2, "share_policy": True},
    ),
    "pooled": ("mg2l", {"critic": "pooled"}),
    "layer": ("mg2l", {"observation_normalization": "layer"}),
    "one layer": ("mg2l", {"layer_N": 0, "use_ReLU": False}),
    "definitions": ("mg2l", {"kernels": "torch"}),
}


def learner_of(case: str) -> tuple[Learner, Batch, Any, Any]:
    """A learner, a minibatch with the environments of its rows, and the latent of its critics."""
    algo, values = CASES[case]
    learner = known_learner(algo, gain=1.0, **values)
    for network in (learner.actor, learner.critic):
        if network.body.condition is not None:  # which would generate zeros
            output = network.body.condition.generator.output
            torch.nn.init.normal_(output.weight, std=0.3)
            torch.nn.init.normal_(output.bias, std=0.3)
    batch, critic_latent = prepared(learner)
    generator = torch.Generator().manual_seed(0)
    for x in (batch.log_probs, batch.values):  # of a policy and critics before some steps
        x += 0.2 * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    part, where = next(iter(learner.ppo.minibatches(batch)))
    return learner, part, where, critic_latent


def assert_gradients(module: nn.Module, loss: Tensor, name: str) -> None:
    """Gradients that are there are those of ``loss``."""
    parameters = dict(module.named_parameters())
    found = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    wanted = torch.autograd.grad(loss, [*parameters.values()], allow_unused=True)
    assert found, name
    for (key, p), gradient in zip(parameters.items(), wanted, strict=True):
        expected = torch.zeros_like(p) if gradient is None else gradient
        got = found.get(key, torch.zeros_like(p))
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)


def of_all(learner: Learner, losses: Tensor) -> Tensor:
    averaged = learner.config.policy.share_policy or learner.critic.trained_together
    return losses.mean() if averaged else losses.sum()


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_the_actors(case):
    learner, batch, *_ = learner_of(case)
    config = learner.config.ppo
    metrics = learner.ppo.actor_gradients(batch)
    log_probs, entropy = learner.actor.evaluate(
        batch.actor_inputs.flatten(1, 2),
        batch.actions.flatten(1, 2),
        batch.actor_states,
        batch.reset,
        None if batch.action_mask is None else batch.action_mask.flatten(1, 2),
    )
    weights = batch.weights(config.use_policy_active_masks)
    before, advantages = batch.log_probs.flatten(1), batch.advantages.flatten(1)
    found = reference.surrogate(log_probs, before, advantages, weights, config.clip_param)
    losses = found.loss - config.entropy_coef * (entropy * weights).sum(1)
    torch.testing.assert_close(metrics["loss/policy"], found.loss.detach(), rtol=1e-4, atol=1e-6)
    averaged = learner.config.policy.share_policy
    assert_gradients(learner.actor, losses.mean() if averaged else losses.sum(), case)


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_the_critics_and_their_latent(case):
    learner, batch, where, critic_latent = learner_of(case)
    config = learner.config.ppo
    latent, _ = learner.ppo.infer(critic_latent)
    leaf = None
    if latent is not None:
        leaf = latent.detach().requires_grad_(latent.requires_grad)
    metrics = learner.ppo.critic_gradients(batch, where, leaf)
    again = None if leaf is None else leaf.detach().requires_grad_()
    at_rows = again
    if again is not None:
        steps = batch.critic_observations.shape[1]
        at_rows = again.repeat(steps, 1) if where is None else again[where[1]]
    values, _ = learner.critic(
        batch.critic_observations.flatten(1, 2),
        at_rows,
        batch.critic_states,
        batch.reset,
    )
    losses = reference.value_loss(
        values,
        batch.values.flatten(1),
        batch.returns.flatten(1),
        batch.weights(config.use_value_active_masks),
        clip=config.clip_param,
        delta=config.huber_delta,
    ).loss
    torch.testing.assert_close(metrics["loss/value"], losses.detach(), rtol=1e-4, atol=1e-6)
    loss = config.value_loss_coef * of_all(learner, losses)
    if again is not None and leaf is not None and leaf.requires_grad:
        (wanted,) = torch.autograd.grad(loss, again, retain_graph=True)
        torch.testing.assert_close(leaf.grad, wanted, rtol=1e-3, atol=1e-5)
    assert_gradients(learner.critic, loss, case)


@pytest.mark.parametrize("algo", ["mg2l", "oracle"])
@pytest.mark.parametrize("kind", ["input", "film", "hyper"])
@pytest.mark.parametrize("share", [False, True])
def test_ppo_records_no_graph(monkeypatch, share, kind, algo):
    values = {"conditioning": kind, "share_policy": share, "use_centralized_V": not share}
    learner = tiny_learner(algo, num_mini_batch=2, **values)
    batch, critic_latent = prepared(learner)
    latent, _ = learner.ppo.infer(critic_latent)
    monkeypatch.delattr(torch.Tensor, "backward")
    for part, where in learner.ppo.minibatches(batch):
        assert (part.actor_latents is None) == (algo == "mg2l" or kind == "input")
        learner.ppo.actor_gradients(part)
        learner.ppo.critic_gradients(part, where, latent)
    for network in (learner.actor, learner.critic):
        assert all(parameter.grad is not None for parameter in network.parameters())


def test_autograd_where_there_is_no_closed_form():
    x, weight = torch.randn(3), torch.randn(3, requires_grad=True)
    for want in (False, True):
        weight.grad = None
        with torch.no_grad():
            (product, double), pull = by_autograd(
                lambda x: (x * weight, 2 * weight), x, want_x=want
            )
            assert not product.requires_grad
            assert torch.equal(double, 2 * weight.detach())
            to_x = pull(torch.ones(3), torch.ones(3))
        assert (to_x is not None) == want
        assert to_x is None or torch.equal(to_x, weight)
        torch.testing.assert_close(weight.grad, x + 2)


ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "defaults": ("mg2l", {}),
    "three layers": ("mg2l", {"hidden_sizes_mlp": [16, 24, 8]}),
    "shared": ("mg2l", {"share_policy": True}),
    "detached": ("mg2l", {"local_to_encoder": False}),
    "not standardised": ("mg2l", {"normalize_transitions": False}),
    "own scores": ("mg2l", {"score": "bilinear", "contrast": "sample"}),
    "encoded keys": ("mg2l", {"keys": "context"}),
    "predicted rewards": ("mg2l-online", {}),
    "nothing local": ("mg2l", {"local_objective": "none"}),
    # By autograd all the same.
    "trained keys": ("mg2l", {"keys": "context", "target_decay": 0}),
    "blocks": ("mg2l", {"n_blocks": 1}),
    "definitions": ("mg2l", {"kernels": "torch"}),
}


@pytest.mark.parametrize("case", ENCODERS)
def test_gradients_of_the_encoder(case):
    algo, values = ENCODERS[case]
    inference = inference_of(tiny_learner(algo, **values))
    streams = inference.draws, inference.noise
    states = [stream.get_state() for stream in streams]
    found = []
    for gradients in (inference.gradients, partial(LearnedInference.gradients, inference)):
        for stream, state in zip(streams, states, strict=True):
            stream.set_state(state)
        metrics, batch = gradients(True)
        after = [stream.get_state() for stream in streams]
        found.append((metrics, batch, after, [p.grad for p in inference.trained]))
    (metrics, batch, drawn, got), (others, other, as_often, wanted) = found
    assert all(torch.equal(a, b) for a, b in zip(drawn, as_often, strict=True))
    assert batch.keys() == other.keys()
    assert metrics.keys() == others.keys()
    for name, value in metrics.items():
        torch.testing.assert_close(value, others[name])
    for a, b in zip(got, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "values", [{}, {"bounded_by": "none"}, {"kernels": "torch"}, {"act_on": "sample"}]
)
def test_gradients_of_the_encoder_by_the_latent_of_the_critics(values):
    learner = known_learner("mg2l", **values)
    inference = inference_of(learner)
    _, critic_latent = prepared(learner)
    trained, state = inference.trained_by_critic(), inference.noise.get_state()
    latent, pull = critic_latent.vjp()
    assert pull is not None
    inference.noise.set_state(state)
    wanted = critic_latent()
    assert wanted is not None
    assert latent is not None
    assert not latent.requires_grad
    torch.testing.assert_close(latent, wanted.detach())
    slopes = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    inference.optimiser.zero_grad()
    pull(slopes)
    gradients = torch.autograd.grad((wanted * slopes).sum(), trained)
    for parameter, gradient in zip(trained, gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)


def test_an_encoder_has_closed_forms_where_operators_are_compiled(monkeypatch):
    inference = inference_of(tiny_learner("mg2l"))
    with monkeypatch.context() as patch:
        patch.delattr(torch.Tensor, "backward")
        inference.gradients(False)
    for values in ({"kernels": "torch"}, {"n_blocks": 1}, {"aggregator": "mean"}):
        assert not inference_of(tiny_learner("mg2l", **values)).encoder.has_vjp


def test_a_loss_of_the_encoder_that_is_not_finite_is_found_before_its_gradient():
    inference = inference_of(tiny_learner("mg2l"))
    inference.encoder.over_agents.output.bias.data.fill_(torch.nan)
    with pytest.raises(NonFiniteLossError, match="loss/encoder"):
        inference.gradients(False)
