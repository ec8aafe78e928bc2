"""RL^2: what it reads, what it remembers across episodes, and what that is good for."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from learning_helpers import MEMORY, check_memory, iterate, paid_learner
from method_helpers import collect

from mg2l.config import files as loading
from mg2l.core.schema import ConfigError
from mg2l.training.learner import Learner


def rl2(**values: Any) -> Learner:
    return paid_learner("rl2", **{"episodes_per_task": 2, **values})


@pytest.mark.parametrize("discrete", [False, True])
def test_it_reads_its_last_action_reward_and_end(discrete):
    learner = rl2(discrete=discrete, ends_at=4)
    rollout, critic_latent = collect(learner)
    task = rollout.latent
    assert task is not None
    assert (task[0] == 0).all()
    actions = rollout.actions[:-1]
    actions = torch.eye(3)[actions] if discrete else actions.clamp(-0.5, 0.5)
    assert torch.equal(task[1:, ..., :-2], actions)
    assert torch.equal(task[1:, ..., -2], rollout.rewards[:-1])
    ended = rollout.episode_start[1:-1, :, None].expand(-1, -1, 2).float()
    assert torch.equal(task[1:, ..., -1], ended)
    assert ended.any()
    latent = critic_latent()
    assert latent is not None
    assert torch.equal(latent[:-1], task.flatten(2))


def test_rewards_are_read_in_units_of_their_spread():
    """By the moments of earlier rollouts, so that what actors read is what they are trained on."""
    learner = rl2()
    first, _ = collect(learner)
    first.rewards[:] = 100 + 3 * torch.randn_like(first.rewards)
    learner.inference.add_rollout(first, np.zeros(8))
    rollout, critic_latent = collect(learner)
    assert rollout.latent is not None
    rewards = first.rewards.double()
    wanted = (rollout.rewards[:-1].double() - rewards.mean()) / rewards.std(unbiased=False)
    torch.testing.assert_close(rollout.latent[1:, ..., -2].double(), wanted, rtol=1e-4, atol=1e-4)
    learner.inference.add_rollout(rollout, np.zeros(8))
    latent = critic_latent()
    assert latent is not None
    assert torch.equal(latent[:-1], rollout.latent.flatten(2))


@pytest.mark.parametrize("reset", ["task", "episode"])
def test_the_state_is_kept_across_episodes_of_a_task(reset):
    """The log-probabilities of a second episode depend on the first, in acting and in training."""
    chunks = {"use_recurrent_policy": True, "use_naive_recurrent_policy": False}
    learner = rl2(recurrent_reset=reset, gain=1.0, **chunks)
    assert learner.config.rollout_steps == 20
    rollout = learner.collect(learner.draw_tasks())
    assert rollout.episode_start[10].all()
    batch = learner.ppo.prepare(rollout, learner.inference.critic_latent(np.zeros(8), rollout)())
    assert bool(batch.reset[10].all()) == (reset == "episode")
    assert batch.reset[0].all()
    log_probs = []
    for scale in (1.0, 0.0):
        assert batch.actor_states is not None
        part = dataclasses.replace(batch, actor_states=scale * batch.actor_states)
        log_prob, _ = learner.actor.evaluate(
            part.actor_inputs[:, 10:].flatten(1, 2),
            part.actions[:, 10:].flatten(1, 2),
            part.actor_states[:, 10] if part.actor_states is not None else None,
            part.reset[10:],
            None,
        )
        log_probs.append(log_prob.detach())
    acted = batch.log_probs[:, 10:].flatten(1)
    torch.testing.assert_close(log_probs[0], acted, atol=1e-4, rtol=1e-4)
    differs = (log_probs[1] - acted).abs().max() > 1e-3
    assert bool(differs) == (reset == "task")


def test_it_learns_to_find_out_and_to_remember():
    check_memory(rl2(**MEMORY))


def test_the_value_loss_falls():
    learner = rl2(critic_lr=5e-3, ppo_epoch=10, use_valuenorm=False, trial_gamma=0.5)
    losses = [iterate(learner)["loss/value"] for _ in range(12)]
    assert np.mean(losses[-3:]) < 0.3 * losses[0]


def test_an_episode_is_credited_with_what_the_next_one_pays():
    """Advantages and gradients reach the first step of a trial from its last episode."""
    learner = rl2(use_valuenorm=False)
    rollout, critic_latent = collect(learner, 20)
    advantages = []
    for bonus in (0.0, 1000.0):
        paid = dataclasses.replace(rollout, rewards=rollout.rewards.clone())
        paid.rewards[10:] += bonus
        batch = learner.ppo.prepare(paid, critic_latent())
        advantages.append(batch.returns)
    assert (advantages[1][:, 0] - advantages[0][:, 0]).min() > 100
    inputs = batch.actor_inputs.clone().requires_grad_()
    assert batch.actor_states is not None
    log_probs, _ = learner.actor.evaluate(
        inputs.flatten(1, 2), batch.actions.flatten(1, 2), batch.actor_states[:, 0], batch.reset,
        None,
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(log_probs.view(2, 20, 8)[:, -1].sum(), inputs)
    assert bool(gradient[:, 0].any())


def test_it_is_trained_on_as_many_episodes_as_it_is_tested_on():
    config = loading.load_config(algo="rl2", env="mpe-goals")
    assert config.rollout.episodes_per_task == 6
    assert config.ppo.trial_gamma == 0.99
    assert 0.75 <= config.rollout_envs * config.rollout_steps / (40 * 50) <= 1


def test_it_needs_memory():
    with pytest.raises(ValueError, match="rl2 needs use_naive_recurrent_policy=true"):
        rl2(use_naive_recurrent_policy=False)


def test_chunks_divide_all_episodes_of_a_rollout():
    chunks = {"use_recurrent_policy": True, "use_naive_recurrent_policy": False}
    with pytest.raises(ConfigError, match="must divide max_ep_len x episodes_per_task=42"):
        loading.load_config(algo="rl2", overrides={"max_ep_len": 7, **chunks})
