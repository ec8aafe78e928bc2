"""Exploration in pairs, and how the value loss reaches the encoder."""

from typing import Any

import numpy as np
import pytest
import torch
from method_helpers import inference_of, tiny_learner

TASKS, COPIES = 3, 8  # two whole groups and a part of a third


def first_steps(paired, monkeypatch):
    """Observations ``[N, A O]``, draws of the prior ``[N, A D]`` and tasks of an exploration."""
    learner = tiny_learner(n_ae_rollout_threads=COPIES, paired_exploration=paired)
    assert learner.explorer is not None
    seen: dict[str, Any] = {}
    collect = learner.explorer.collect

    def record(steps, ids, told, **options):
        seen["rollout"], seen["tasks"] = collect(steps, ids, told, **options), ids
        return seen["rollout"]

    monkeypatch.setattr(learner.explorer, "collect", record)
    learner.explore()
    rollout = seen["rollout"]
    assert rollout.latent is not None
    return rollout.observations[0].flatten(1), rollout.latent[0].flatten(1), seen["tasks"], learner


def test_a_group_shares_its_start_and_its_draw_of_the_prior(monkeypatch):
    observations, drawn, tasks, _ = first_steps(True, monkeypatch)
    group = np.arange(COPIES) // TASKS
    for values in (observations, drawn):
        for a in range(COPIES):
            for b in range(COPIES):
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
    assert len(torch.unique(observations, dim=0)) == COPIES
    assert len(torch.unique(drawn, dim=0)) == COPIES


@pytest.mark.parametrize("minibatches", [1, 4])
def test_the_value_losses_of_an_epoch_reach_the_encoder_in_one_step(minibatches, monkeypatch):
    learner = tiny_learner(ppo_epoch=3, num_mini_batch=minibatches, critic_to_encoder=True)
    tasks = learner.draw_tasks()
    rollout = learner.collect(tasks)
    inference = inference_of(learner)
    count = {"steps": 0, "encodings": 0}
    optimiser, infer = learner.optimisers["encoder"], inference.encoder.infer_task
    step = optimiser.step

    def counted_step() -> None:
        count["steps"] += 1
        step()

    def counted_infer(context: Any) -> Any:
        count["encodings"] += 1
        return infer(context)

    monkeypatch.setattr(optimiser, "step", counted_step)
    monkeypatch.setattr(inference.encoder, "infer_task", counted_infer)
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
