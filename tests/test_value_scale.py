"""The critic's initial value: the constant value that equals its own mean return."""

import dataclasses
from typing import Any

import pytest
import torch
from method_helpers import collect, known_learner

from mg2l.ops import reference


@pytest.mark.parametrize("kind", [{}, {"ends_at": 4}, {"mortal": True}, {"use_gae": False}])
@pytest.mark.parametrize("bonus", [0.0, 100.0, -3e4])
def test_the_first_values_are_the_fixed_point_of_a_constant(monkeypatch, kind, bonus):
    learner = known_learner(gamma=0.95, **kind)
    rollout, _ = collect(learner)
    rollout = dataclasses.replace(rollout, rewards=rollout.rewards + bonus)
    critic: Any = learner.ppo.critic
    with torch.no_grad():
        critic.value.weight.zero_()  # so that all states have the value that the normaliser gives
    learner.ppo.prepare(rollout, None)
    lam = learner.config.ppo.gae_lambda if learner.config.ppo.use_gae else 1.0
    rewards = rollout.rewards.double()
    values = critic.normaliser.mean.expand(len(rewards) + 1, *rewards.shape[1:])
    returns = reference.gae(
        rewards, values, rollout.terminated, rollout.truncated, 0.95, lam, final_values=values[1:]
    ).returns
    for agent, mean in enumerate(critic.normaliser.mean):
        active = torch.ones_like(rollout.terminated) if rollout.active is None else rollout.active
        own = returns[..., agent][active[..., agent]]
        torch.testing.assert_close(own.mean(), mean, rtol=1e-6, atol=1e-6)


def test_a_constant_that_is_paid_for_ever_is_worth_its_geometric_sum(monkeypatch):
    """A time limit is no end, so that the value is ``c / (1 - gamma)`` in the first rollout."""
    learner = known_learner(gamma=0.95)
    rollout, _ = collect(learner)
    learner.ppo.prepare(
        dataclasses.replace(rollout, rewards=torch.full_like(rollout.rewards, 5)), None
    )
    critic: Any = learner.ppo.critic
    mean = critic.normaliser.mean
    torch.testing.assert_close(mean, torch.full_like(mean, 100.0), rtol=1e-5, atol=0)
