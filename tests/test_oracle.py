"""The oracle: actors and critics are conditioned on the features of the task itself."""

from __future__ import annotations

import numpy as np
import torch
from learning_helpers import iterate, paid_learner
from method_helpers import tiny_learner

from mg2l.algorithms.oracle.algorithm import Oracle


def test_latents_are_the_features_of_the_task():
    learner = tiny_learner("oracle")
    inference, features = learner.inference, learner.env.tasks.features
    assert isinstance(inference, Oracle)
    assert inference.knows_task
    assert inference.actor_latent_dim == inference.critic_latent_dim == features.shape[1]
    tasks = np.array([2, 0, 1, 0])
    wanted = torch.as_tensor(features[tasks]).float()
    rollout = learner.collector.collect(3, tasks, inference.actor_latent(tasks, 3))
    assert rollout.latent is not None
    for step in rollout.latent:
        for agent in step.unbind(1):
            assert torch.equal(agent, wanted)
    latent = inference.critic_latent(tasks, rollout)()
    assert latent is not None
    assert torch.equal(latent, wanted)


def test_its_critic_knows_what_the_tasks_pay(monkeypatch):
    learner = paid_learner("oracle", gamma=0.0, ppo_epoch=5, critic_lr=1e-2)
    for _ in range(5):
        iterate(learner)
    tasks = np.arange(8) % 2
    rollout = learner.collect(tasks)
    batch = learner.ppo.prepare(rollout, learner.inference.critic_latent(tasks, rollout)())
    better = batch.values[..., tasks == 0].mean() - batch.values[..., tasks == 1].mean()
    assert float(better) > 1


def test_features_are_no_part_of_checkpoints():
    assert not tiny_learner("oracle").inference.state_dict()
