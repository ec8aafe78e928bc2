"""Errors of the original code that must not come back, one test each."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from method_helpers import tiny_words
from torch import Tensor

from mg2l.algorithms.mg2l.algorithm import MG2L
from mg2l.algorithms.mg2l.config import MG2LConfig
from mg2l.algorithms.mg2l.encoder import TaskEncoder
from mg2l.algorithms.mg2l.objective import Objective
from mg2l.config import files as loading
from mg2l.config.sections import PolicyConfig
from mg2l.envs.actions import ActionLayout
from mg2l.estimators.gaussian import Gaussian, kl_between, kl_to_standard
from mg2l.nn.distributions import GaussianHead
from mg2l.nn.policy import Actor
from mg2l.ops import value_loss
from mg2l.training.learner import Learner


def make_learner(*overrides: str, algo: str = "mg2l") -> Learner:
    values = dict(word.split("=") for word in overrides)
    words = [*tiny_words(ppo_epoch=1, **dict.fromkeys(values)), *overrides]
    learner = Learner(
        loading.load_config("default", algo, "mpe-spread", words), torch.device("cpu")
    )
    learner.prepare()
    return learner


def inference_of(learner: Learner) -> MG2L:
    assert isinstance(learner.inference, MG2L)
    return learner.inference


AGGREGATORS = ["pia", "transformer", "rnn", "gaussian_product", "mean"]


@pytest.mark.parametrize("blocks", [0, 1])
@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_local_inference_sees_one_agent_only(aggregator: Any, blocks: int) -> None:
    """The original swapped the axes of time and agents."""
    torch.manual_seed(0)
    config = MG2LConfig(context_dim=8, aggregator=aggregator, n_blocks=blocks)
    encoder = TaskEncoder(config, agents=3, transition=5)
    context = torch.randn(2, 7, 3, 5)
    other = context.clone()
    other[:, :, 1] = torch.randn(2, 7, 5)
    before, after = encoder(context), encoder(other)
    torch.testing.assert_close(before.local.mean[:, 0], after.local.mean[:, 0])
    torch.testing.assert_close(before.local.mean[:, 2], after.local.mean[:, 2])
    assert not torch.allclose(before.local.mean[:, 1], after.local.mean[:, 1])
    assert not torch.allclose(before.task.mean, after.task.mean)


@pytest.mark.parametrize("aggregator", [name for name in AGGREGATORS if name != "rnn"])
def test_a_context_is_a_set(aggregator: Any) -> None:
    torch.manual_seed(0)
    encoder = TaskEncoder(MG2LConfig(context_dim=8, aggregator=aggregator, n_blocks=1), 2, 5)
    context = torch.randn(2, 7, 2, 5)
    shuffled = context[:, torch.randperm(7)]
    torch.testing.assert_close(
        encoder(context).local.mean, encoder(shuffled).local.mean, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("keys", ["task", "context"])
@pytest.mark.parametrize("negatives", ["shared", "independent"])
def test_local_loss_pairs_each_query_with_its_own_task(keys: Any, negatives: Any) -> None:
    """The original paired agent-major with batch-major rows, which mixed the tasks."""
    torch.manual_seed(0)
    noise = torch.Generator().manual_seed(0)
    config = MG2LConfig(context_dim=8, keys=keys, negatives=negatives, normalize_transitions=False)
    encoder = TaskEncoder(config, agents=2, transition=3)
    objective = Objective(config, 3, encoder, noise)
    optimiser = torch.optim.Adam(objective.parameters(), 1e-2)
    tasks = torch.tensor([0, 2, 1, 1, 0, 2])

    def contexts(ids: Tensor) -> Tensor:
        """The task is written into every transition of every agent, under noise."""
        hot = torch.nn.functional.one_hot(ids, 3).float()
        return hot[:, None, None] + 0.1 * torch.randn(len(ids), 4, 2, 3)

    for _ in range(60):
        drawn = contexts(objective.key_tasks(tasks)) if objective.needs_keys else None
        loss, metrics = objective(contexts(tasks), tasks, drawn, encoder)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert metrics["accuracy/local"] == 1
    assert metrics["accuracy/global"] == 1


@pytest.mark.parametrize("objective_name", ["conditional_mi", "mi", "kl"])
def test_local_loss_trains_the_local_heads_alone(objective_name: Any) -> None:
    """In the form of the paper; by default it trains what leads to them, too."""
    torch.manual_seed(0)
    config = MG2LConfig(
        context_dim=8, local_objective=objective_name, keys="context", local_to_encoder=False
    )
    encoder = TaskEncoder(config, agents=2, transition=5)
    objective = Objective(config, 3, encoder, torch.Generator().manual_seed(0))
    query = encoder(torch.randn(6, 4, 2, 5))
    key = encoder(torch.randn(3, 4, 2, 5))
    positive = torch.tensor([0, 1, 2, 0, 1, 2])
    loss, _ = objective.local_losses(query, key, query.task.mean.detach(), positive)
    loss.backward()
    touched = {name.split(".")[0] for name, p in encoder.named_parameters() if p.grad is not None}
    assert touched == {"local"}


def test_kl_is_the_closed_form_and_never_negative() -> None:
    """The original fed the raw parameter where the standard deviation belongs, without squares."""
    torch.manual_seed(0)
    q = Gaussian(torch.randn(200, 6) * 3, torch.rand(200, 6) * 4 + 1e-3)
    p = Gaussian(torch.randn(200, 6) * 3, torch.rand(200, 6) * 4 + 1e-3)
    normal = torch.distributions.Normal
    wanted = torch.distributions.kl_divergence(normal(*q), normal(*p)).sum(-1)
    torch.testing.assert_close(kl_between(q, p), wanted)
    unit = normal(torch.zeros(200, 6), torch.ones(200, 6))
    wanted = torch.distributions.kl_divergence(normal(*q), unit).sum(-1)
    torch.testing.assert_close(kl_to_standard(q), wanted)
    assert kl_between(q, p).min() >= 0
    assert kl_to_standard(q).min() >= 0


@pytest.mark.parametrize("algo", ["mg2l", "mappo", "oracle"])
@pytest.mark.parametrize("recurrent", [False, True])
def test_the_first_ratio_is_one(algo: str, recurrent: bool) -> None:
    """The original drew z again in every epoch: the ratio was not 1 before the first step."""
    overrides = [f"use_recurrent_policy={str(recurrent).lower()}", "data_chunk_length=5"]
    learner = make_learner(*overrides, algo=algo)
    tasks = learner.draw_tasks()
    metrics = learner.update_policy(learner.collect(tasks), tasks)
    assert metrics["kl"] == pytest.approx(0, abs=1e-6)
    assert metrics["clip_fraction"] == 0


def test_exploration_holds_one_draw_of_the_prior() -> None:
    """The original drew from the prior at every step."""
    learner = make_learner()
    assert learner.explorer is not None
    latent = inference_of(learner).sample_prior(4)
    assert latent.shape == (1, 4, 2, 8)
    rollout = learner.explorer.collect(10, np.zeros(3, int), latent[:, :3])
    assert rollout.latent is not None
    assert torch.equal(rollout.latent[0], rollout.latent[-1])
    assert len(torch.unique(latent[0].flatten(0, 1), dim=0)) == 8


def test_the_encoder_learns_from_the_start() -> None:
    """The original's gain of 0.01 in every layer left gradients of 4e-8."""
    learner = make_learner("normalize_transitions=false", "bounded_by=none", "n_init_updates=0")
    metrics = inference_of(learner)._update_once()
    assert metrics["grad_norm/encoder"] > 1e-3


def test_the_huber_loss_sees_negative_errors() -> None:
    errors = torch.tensor([-100.0, -2.0, 0.0, 2.0, 100.0])
    column = errors.unsqueeze(1)
    found = value_loss(column, column, torch.zeros(5, 1), 1.0, delta=10.0).loss
    torch.testing.assert_close(found, torch.tensor([950.0, 2.0, 0.0, 2.0, 950.0]))


def test_clipped_value_loss_is_the_larger_of_both() -> None:
    zero, two = torch.zeros(1, 1), torch.full((1, 1), 2.0)
    found = value_loss(torch.ones(1, 1), zero, two, 1.0, clip=0.2).loss
    torch.testing.assert_close(found, torch.tensor([0.5 * 1.8**2]))


def test_log_probability_sums_over_action_dimensions_once() -> None:
    """The original multiplied the actor's loss by the number of action dimensions."""
    torch.manual_seed(0)
    actor = Actor(
        PolicyConfig(algo_hidden_size=8), 2, 3, 0, ActionLayout([spaces.Box(-1, 1, (4,))])
    )
    inputs, action = torch.randn(2, 5, 3), torch.randn(2, 5, 4)
    log_prob, entropy = actor.evaluate(inputs, action, None, None, None)
    assert log_prob.shape == entropy.shape == (2, 5)
    features, _ = actor.body(inputs, None, None)
    assert isinstance(actor.head, GaussianHead)
    normal = torch.distributions.Normal(actor.head.mean(features), torch.ones(()))
    torch.testing.assert_close(log_prob, normal.log_prob(action).sum(-1))
    torch.testing.assert_close(entropy, normal.entropy().sum(-1).expand(2, 5))


def test_a_time_limit_is_not_the_end_of_the_task() -> None:
    """The last step bootstraps from the observation it led to, not from that after the reset."""
    learner = make_learner("use_valuenorm=false", "gae_lambda=0", algo="mappo")
    tasks = learner.draw_tasks()
    rollout = learner.collect(tasks)
    assert rollout.truncated[-1].all()
    assert not rollout.terminated.any()
    assert not torch.equal(rollout.final_observations[-1], rollout.observations[-1])
    batch = learner.ppo.prepare(rollout, None)
    joint = learner.critic.reads(rollout.final_observations[-1])
    with torch.no_grad():
        value, _ = learner.critic(joint, None, None, None)
    wanted = rollout.rewards[-1].t() + learner.config.ppo.gamma * value
    torch.testing.assert_close(batch.returns[:, -1], wanted, rtol=1e-4, atol=1e-4)


def test_stored_transitions_lead_where_they_really_led() -> None:
    learner = make_learner()
    assert learner.explorer is not None
    rollout = learner.explorer.collect(10, np.zeros(3, int), inference_of(learner).sample_prior(3))
    transitions = inference_of(learner).transitions(rollout)
    torch.testing.assert_close(transitions[..., -10:], rollout.final_observations)
    assert transitions[..., 10:12].abs().max() <= 1  # actions as the environment took them


def test_every_part_of_the_encoder_is_a_module() -> None:
    """The original kept encoders in lists: not saved, not moved, not optimised."""
    learner = make_learner()
    inference = inference_of(learner)
    names = {name.split(".")[1] for name in inference.state_dict() if name.startswith("encoder.")}
    assert names >= {"aggregator", "over_agents", "local"}
    optimised = {id(p) for group in inference.optimiser.param_groups for p in group["params"]}
    assert optimised == {id(p) for p in inference.objective.parameters()}


def test_an_empty_task_is_named() -> None:
    learner = make_learner()
    replay = inference_of(learner).replay
    replay.added[1] = 0
    with pytest.raises(ValueError, match=r"tasks \[1\] have no transitions"):
        replay.sample(torch.tensor([0, 1]), 5, 2, torch.Generator())


def test_the_actor_never_trains_the_encoder() -> None:
    learner = make_learner("critic_to_encoder=false")
    before = copy.deepcopy(inference_of(learner).encoder.state_dict())
    tasks = learner.draw_tasks()
    learner.update_policy(learner.collect(tasks), tasks)
    for name, value in inference_of(learner).encoder.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_critic_trains_the_encoder_but_not_its_local_heads() -> None:
    learner = make_learner()
    before = copy.deepcopy(inference_of(learner).encoder.state_dict())
    tasks = learner.draw_tasks()
    learner.update_policy(learner.collect(tasks), tasks)
    changed = {
        name.split(".")[0]
        for name, value in inference_of(learner).encoder.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == {"aggregator", "over_agents"}
