"""MAPPO: the task is hidden from actors and critics, and nothing but PPO is trained."""

from __future__ import annotations

import numpy as np
from learning_helpers import iterate, paid_learner
from method_helpers import collect

from mg2l.algorithms.mappo.algorithm import MAPPO


def test_nothing_is_known_of_the_task(monkeypatch):
    learner = paid_learner("mappo")
    inference = learner.inference
    assert type(inference) is MAPPO
    assert not list(inference.parameters())
    assert (inference.actor_latent_dim, inference.critic_latent_dim) == (0, 0)
    rollout, latent = collect(learner)
    assert rollout.latent is None
    assert latent() is None


def test_it_neither_explores_nor_trains_an_encoder(monkeypatch):
    learner = paid_learner("mappo")
    assert learner.explorer is None
    assert set(learner.optimisers) == {"actor", "critic"}
    learner.prepare()
    assert learner.env_steps == 0
    assert not any("encoder" in name for name in iterate(learner))


def test_its_critic_does_not_know_what_the_tasks_pay(monkeypatch):
    """The tasks pay 1 and -1, and look alike."""
    learner = paid_learner("mappo", gamma=0.0, ppo_epoch=5, critic_lr=1e-2)
    for _ in range(5):
        iterate(learner)
    rollout = learner.collect(np.arange(8) % 2)
    batch = learner.ppo.prepare(rollout, None)
    assert float(batch.values.std()) < 0.5
