"""Gradients that PPO computes without autograd are those that autograd computes of its formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from method_helpers import KINDS, known_learner, prepared
from torch import Tensor, nn

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
    "pooled": ("mg2l", {"critic": "pooled"}),
    "layer": ("mg2l", {"observation_normalization": "layer"}),
    "one layer": ("mg2l", {"layer_N": 0, "use_ReLU": False}),
    "definitions": ("mg2l", {"kernels": "torch"}),
}


def learner_of(case: str) -> tuple[Learner, Batch, Any, Any]:
    """A learner, a minibatch with the environments of its rows, and the latent of its critics."""
    algo, values = CASES[case]
    learner = known_learner(algo, gain=1.0, **values)
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
    _, latent = learner.ppo.infer(critic_latent)
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
