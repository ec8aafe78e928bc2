"""MA-PEARL: products of Gaussians, and a belief that the value loss makes informative."""

from typing import Any

import numpy as np
import torch
from learning_helpers import iterate, paid_learner
from method_helpers import collect

from mg2l.algorithms.ma_pearl.algorithm import MAPearl
from mg2l.experience.replay import Context
from mg2l.nn.aggregators import product_of_gaussians


def pearl(**values: Any) -> tuple[Any, MAPearl]:
    learner = paid_learner("ma-pearl", **values)
    learner.prepare()
    assert isinstance(learner.inference, MAPearl)
    return learner, learner.inference


def test_a_product_of_gaussians_is_the_normalised_product_of_densities():
    means, variances = torch.randn(5, 1), torch.rand(5, 1) + 0.5
    product_mean, precision = product_of_gaussians(means, variances)
    z = torch.linspace(-15, 15, 30001, dtype=torch.float64)
    logs = torch.distributions.Normal(means.double(), variances.double().sqrt()).log_prob(z)
    density = torch.softmax(logs.sum(0), -1)
    mean = (density * z).sum()
    torch.testing.assert_close(product_mean[0].double(), mean, atol=1e-5, rtol=0)
    std = (density * (z - mean).square()).sum().sqrt()
    torch.testing.assert_close(precision[0].rsqrt().double(), std, atol=1e-5, rtol=0)


def test_an_agent_infers_from_its_own_transitions_alone():
    _, inference = pearl()
    context = inference.contexts(torch.tensor([0, 1])).gather()
    before = inference.infer(Context(context))
    context[:, :, 1] += 1
    after = inference.infer(Context(context))
    assert torch.equal(before.local.mean[:, 0], after.local.mean[:, 0])
    assert not torch.equal(before.local.mean[:, 1], after.local.mean[:, 1])
    assert not torch.equal(before.task.mean, after.task.mean)


def test_the_order_of_transitions_is_of_no_account():
    _, inference = pearl()
    context = inference.contexts(torch.tensor([0, 1])).gather()
    shuffled = context[:, torch.randperm(context.shape[1])]
    torch.testing.assert_close(
        inference.infer(Context(context)).task, inference.infer(Context(shuffled)).task
    )


def test_one_sample_is_held_for_a_rollout():
    learner, _ = pearl()
    rollout, _ = collect(learner)
    assert rollout.latent is not None
    assert torch.equal(rollout.latent[0], rollout.latent[-1])


def test_the_encoders_step_is_on_value_loss_and_kl_together():
    """With a value loss that says nothing, it goes down the gradient of the KL alone."""
    learner, inference = pearl(use_max_grad_norm=False)
    _, critic_latent = collect(learner)
    latent, pull = critic_latent.vjp()
    penalty = critic_latent.penalty()
    assert latent is not None
    assert pull is not None
    assert penalty is not None
    wanted = torch.autograd.grad(penalty, inference.trained, retain_graph=True)
    assert max(float(gradient.abs().max()) for gradient in wanted) > 0
    learner.ppo.encoder_gradients(pull, torch.zeros_like(latent))
    for parameter, gradient in zip(inference.trained, wanted, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient)


def test_the_encoder_steps_with_every_critic_step_on_fresh_contexts():
    learner, inference = pearl(ppo_epoch=3, num_mini_batch=4)
    _, critic_latent = collect(learner)
    first, second = critic_latent(), critic_latent()
    assert first is not None
    assert second is not None
    assert not torch.equal(first, second)
    iterate(learner)
    steps = {int(state["step"]) for state in inference.optimiser.state.values()}
    assert steps == {12}


def test_the_value_loss_falls_and_the_tasks_separate():
    """What an episode pays depends on the task alone."""
    learner, inference = pearl(
        lr=1e-2, critic_lr=5e-3, ppo_epoch=10, use_valuenorm=False, gamma=0.5
    )
    ids = torch.arange(2).repeat_interleave(8)
    losses = [iterate(learner)["loss/value"] for _ in range(15)]
    assert np.mean(losses[-3:]) < 0.2 * losses[0]
    found = inference.recognise(inference.contexts(ids), ids)
    assert found["accuracy/global"] > 0.9
    assert found["accuracy/local"] > 0.9
