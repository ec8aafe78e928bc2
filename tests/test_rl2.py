"""RL^2: what it reads, what it remembers across episodes, and what that is good for."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from learning_helpers import PaidEnv, iterate, paid_learner
from method_helpers import KnownConfig, collect

from mg2l.config import files as loading
from mg2l.core.schema import ConfigError
from mg2l.envs import registry
from mg2l.envs.base import StepResult
from mg2l.training.learner import Learner


def rl2(patch: pytest.MonkeyPatch, **values: Any) -> Learner:
    return paid_learner(patch, "rl2", **{"data_chunk_length": 10, **values})


@pytest.mark.parametrize("discrete", [False, True])
def test_it_reads_its_last_action_reward_and_end(monkeypatch, discrete):
    learner = rl2(monkeypatch, discrete=discrete, ends_at=4)
    rollout, tell = collect(learner)
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
    told = tell()
    assert told is not None
    assert torch.equal(told[:-1], task.flatten(2))


def test_rewards_are_read_in_units_of_their_spread(monkeypatch):
    """By the moments of earlier rollouts, so that what actors read is what they are trained on."""
    learner = rl2(monkeypatch)
    first, _ = collect(learner)
    first.rewards[:] = 100 + 3 * torch.randn_like(first.rewards)
    learner.inference.add_rollout(first, np.zeros(8))
    rollout, tell = collect(learner)
    assert rollout.latent is not None
    rewards = first.rewards.double()
    wanted = (rollout.rewards[:-1].double() - rewards.mean()) / rewards.std(unbiased=False)
    torch.testing.assert_close(rollout.latent[1:, ..., -2].double(), wanted, rtol=1e-4, atol=1e-4)
    learner.inference.add_rollout(rollout, np.zeros(8))
    told = tell()
    assert told is not None
    assert torch.equal(told[:-1], rollout.latent.flatten(2))


@pytest.mark.parametrize("reset", ["task", "episode"])
def test_the_state_is_kept_across_episodes_of_a_task(monkeypatch, reset):
    """The log-probabilities of a second episode depend on the first, in acting and in training."""
    learner = rl2(monkeypatch, recurrent_reset=reset, gain=1.0)
    assert learner.config.rollout_steps == 20
    rollout = learner.collect(learner.draw_tasks())
    assert rollout.episode_start[10].all()
    batch = learner.ppo.prepare(rollout, learner.inference.critic_latent(np.zeros(8), rollout)())
    assert bool(batch.first[10].all()) == (reset == "episode")
    assert batch.first[0].all()
    log_probs = []
    for scale in (1.0, 0.0):
        assert batch.actor_states is not None
        part = dataclasses.replace(batch, actor_states=scale * batch.actor_states)
        log_prob, _ = learner.actor.evaluate(
            part.actor_inputs[:, 10:].flatten(1, 2),
            part.actions[:, 10:].flatten(1, 2),
            part.actor_states[:, 10] if part.actor_states is not None else None,
            part.first[10:],
            None,
        )
        log_probs.append(log_prob.detach())
    acted = batch.log_probs[:, 10:].flatten(1)
    torch.testing.assert_close(log_probs[0], acted, atol=1e-4, rtol=1e-4)
    differs = (log_probs[1] - acted).abs().max() > 1e-3
    assert bool(differs) == (reset == "task")


class GuessEnv(PaidEnv):
    """Pays what agents do, times 1 in task 0 and -1 in task 1: a pay tells which of them it is."""

    def step(self, actions: Any) -> StepResult:
        observations, rewards, terminated, truncated, info = super().step(actions)
        rewards *= np.asarray(actions)[..., 0].clip(-0.5, 0.5)
        return observations, rewards, terminated, truncated, info


def test_it_learns_to_find_out_and_to_remember(monkeypatch):
    """Without memory nothing can be earned; with it, each episode but its very first step can."""
    learner = rl2(
        monkeypatch, actor_lr=5e-3, critic_lr=5e-3, ppo_epoch=5, n_rollout_threads=32, gamma=0.5,
        entropy_coef=0.0,
    )  # fmt: skip
    monkeypatch.setitem(registry._families, "paid", registry._Family(KnownConfig, GuessEnv))
    learner = Learner(learner.config, torch.device("cpu"))
    returns = []
    for _ in range(40):
        tasks = learner.draw_tasks()
        rollout = learner.collect(tasks)
        learner.update_policy(rollout, tasks)
        returns.append(float(rollout.rewards.mean()))
    assert abs(returns[0]) < 0.1
    assert np.mean(returns[-5:]) > 0.25  # 0.5 is all that can be


def test_the_value_loss_falls(monkeypatch):
    learner = rl2(monkeypatch, critic_lr=5e-3, ppo_epoch=10, use_valuenorm=False, gamma=0.5)
    losses = [iterate(learner)["loss/value"] for _ in range(12)]
    assert np.mean(losses[-3:]) < 0.3 * losses[0]


def test_it_needs_memory(monkeypatch):
    with pytest.raises(ValueError, match="rl2 needs use_recurrent_policy=true"):
        rl2(monkeypatch, use_recurrent_policy=False)


def test_chunks_divide_all_episodes_of_a_rollout():
    with pytest.raises(ConfigError, match="must divide max_ep_len x episodes_per_task=14"):
        loading.load_config(algo="rl2", overrides={"max_ep_len": 7})
