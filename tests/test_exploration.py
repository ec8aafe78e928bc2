"""Exploration in pairs, and how the value loss reaches the encoder."""

from typing import Any

import numpy as np
import pytest
import torch
from method_helpers import inference_of, tiny_learner

from mg2l.experience.rollout import Collector
from mg2l.training import learner as learner_module

TASKS, ENVS = 3, 8  # two whole groups and a part of a third


def first_steps(paired, monkeypatch):
    """Observations ``[N, A O]``, draws of the prior ``[N, A D]`` and tasks of an exploration."""
    learner = tiny_learner(n_ae_rollout_threads=ENVS, paired_exploration=paired)
    assert learner.explorer is not None
    seen: dict[str, Any] = {}
    collect = learner.explorer.collect

    def record(steps, ids, latent, **options):
        seen["rollout"], seen["tasks"] = collect(steps, ids, latent, **options), ids
        return seen["rollout"]

    monkeypatch.setattr(learner.explorer, "collect", record)
    learner.explore()
    rollout = seen["rollout"]
    assert rollout.latent is not None
    return rollout.observations[0].flatten(1), rollout.latent[0].flatten(1), seen["tasks"], learner


def test_a_group_shares_its_start_and_its_draw_of_the_prior(monkeypatch):
    observations, drawn, tasks, _ = first_steps(True, monkeypatch)
    group = np.arange(ENVS) // TASKS
    for values in (observations, drawn):
        for a in range(ENVS):
            for b in range(ENVS):
                assert torch.equal(values[a], values[b]) == (group[a] == group[b])
    for g in range(2):
        assert sorted(tasks[group == g]) == [0, 1, 2]


def test_the_next_exploration_begins_elsewhere(monkeypatch):
    observations, _, _, learner = first_steps(True, monkeypatch)
    assert learner.explorer is not None
    learner.explore()
    assert not torch.equal(
        observations, torch.as_tensor(learner.explorer.env.reset()[0]).flatten(1)
    )


def test_unpaired_episodes_are_all_different(monkeypatch):
    observations, drawn, _, _ = first_steps(False, monkeypatch)
    assert len(torch.unique(observations, dim=0)) == ENVS
    assert len(torch.unique(drawn, dim=0)) == ENVS


@pytest.mark.parametrize("minibatches", [1, 4])
def test_the_value_losses_of_an_epoch_reach_the_encoder_in_one_step(minibatches, monkeypatch):
    learner = tiny_learner(ppo_epoch=3, num_mini_batch=minibatches, critic_to_encoder=True)
    tasks = learner.draw_tasks()
    rollout = learner.collect(tasks)
    inference = inference_of(learner)
    count = {"steps": 0, "encodings": 0}
    optimiser, encoder = learner.optimisers["encoder"], inference.encoder
    step = optimiser.step

    def counted_step() -> None:
        count["steps"] += 1
        step()

    def counted(function: Any) -> Any:
        def encode(*args: Any) -> Any:
            count["encodings"] += 1
            return function(*args)

        return encode

    monkeypatch.setattr(optimiser, "step", counted_step)
    for name in ("infer_task", "task_vjp"):  # without and with a gradient
        monkeypatch.setattr(encoder, name, counted(getattr(encoder, name)))
    before = [p.detach().clone() for p in inference.trained_by_critic()]
    metrics = learner.update_policy(rollout, tasks)
    assert count == {"steps": 3, "encodings": 3 + 1}  # and once for the values of the rollout
    assert metrics["grad_norm/encoder_from_critic"] > 0
    changed = [
        not torch.equal(a, b) for a, b in zip(before, inference.trained_by_critic(), strict=True)
    ]
    assert any(changed)


def test_the_encoders_gradient_is_that_of_the_mean_of_the_minibatches(monkeypatch):
    """With the critic held still, minibatches of equal size give what the whole batch gives."""
    norms = []
    for minibatches in (1, 4):
        learner = tiny_learner(
            seed=3, ppo_epoch=1, num_mini_batch=minibatches, critic_to_encoder=True
        )
        monkeypatch.setattr(learner.ppo.critic_optimiser, "step", lambda: None)
        tasks = learner.draw_tasks()
        metrics = learner.update_policy(learner.collect(tasks), tasks)
        norms.append(metrics["grad_norm/encoder_from_critic"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_the_gap_of_an_iteration_is_that_of_its_metrics() -> None:
    metrics = inference_of(tiny_learner(ae_updates_per_iter=3)).update()
    assert metrics["mi/gap"] == pytest.approx(metrics["mi/l1out"] - metrics["mi/local"])


@pytest.mark.parametrize("vectorised", [False, True])
def test_the_first_exploration_rollouts_are_as_many_however_they_are_collected(
    vectorised, monkeypatch
):
    learner = tiny_learner(n_ae_rollout_threads=ENVS, n_init_rollouts=5, n_init_updates=0)
    monkeypatch.setattr(type(learner.env), "vectorised", vectorised)
    monkeypatch.setattr(learner_module, "FIRST_ENVS", 3 * ENVS + 1)
    replay, steps = inference_of(learner).replay, learner.env_steps
    added = int(replay.added.sum())
    collected, rollouts = [], []
    collect = Collector.collect

    def record(self, steps, ids, *args, **options):
        collected.append(len(ids))
        return collect(self, steps, ids, *args, **options)

    monkeypatch.setattr(Collector, "collect", record)
    learner.prepare(lambda: rollouts.append(len(collected)))
    assert collected == ([3 * ENVS, 2 * ENVS] if vectorised else [ENVS] * 5)
    assert rollouts == ([1, 1, 1, 2, 2] if vectorised else [1, 2, 3, 4, 5])
    assert learner.env_steps - steps == 5 * ENVS * learner.config.env.max_ep_len
    assert int(replay.added.sum()) - added == 5 * ENVS
    held = torch.cat([replay.data[task, :size] for task, size in enumerate(replay.sizes)])
    assert len(torch.unique(held.flatten(1), dim=0)) == len(held)
