"""What ``mg2l-adapt`` adds: exploration, replayed rollouts, short contexts, predictions."""

import dataclasses

import numpy as np
import pytest
import torch
from method_helpers import TINY, collect, inference_of, tiny_config, tiny_learner

import mg2l
from mg2l.core.schema import ConfigError
from mg2l.deploy.agent import Agent
from mg2l.evaluation.meta_test import MetaTest
from mg2l.experience.replay import ContextReplay
from mg2l.export import main as export_command


def adapting(**values):
    return tiny_learner("mg2l-adapt", **values)


def which_task(inference, latent):
    """``[*, A]``: the training task whose representation each latent ``[*, A, D]`` is."""
    gaps = (latent.unsqueeze(-3) - inference.explorers).norm(dim=-1)
    assert gaps.min(-2).values.max() < 1e-5
    return gaps.argmin(-2)


def test_agents_explore_as_in_training_tasks_each_its_own_redrawn_after_some_steps():
    learner = adapting(explore_refresh=4)
    inference = inference_of(learner)
    # Before the first update it is not known what is inferred in a task.
    first = inference.exploration_latent(200, 10)
    assert len(first.flatten(0, 2).unique(dim=0)) == 3 * 200 * 2
    learner.update_inference()
    torch.testing.assert_close(inference.explorers.norm(dim=-1), torch.full((3, 2), 8**0.5))
    latent = inference.exploration_latent(200, 10)
    assert latent.shape == (10, 200, 2, 8)
    drawn = which_task(inference, latent)
    for start, end in ((0, 4), (4, 8), (8, 10)):  # held in between
        assert (drawn[start:end] == drawn[start]).all()
    for other in (drawn[4], drawn[0].flip(-1)):  # neither the same later nor of the other agent
        assert 0.2 < (drawn[0] == other).float().mean() < 0.5
    assert (drawn[0].flatten().bincount() > 80).all()  # of 400, three tasks


def test_the_prior_is_redrawn_too_where_that_explores():
    inference = inference_of(adapting(explore_with="prior", explore_refresh=5))
    latent = inference.exploration_latent(3, 10)
    assert torch.equal(latent[0], latent[4])
    assert not torch.equal(latent[4], latent[5])
    held = inference_of(tiny_learner()).exploration_latent(3, 10)
    assert held.shape == (1, 3, 2, 8)


def test_a_meta_test_explores_as_training_does():
    learner = adapting(explore_refresh=5)
    learner.update_inference()
    test = MetaTest(learner, [3, 4], 2, 0)
    found = test.explore_once(0).latent
    assert found is not None
    drawn = which_task(inference_of(learner), found)
    assert (drawn[:5] == drawn[0]).all()
    assert not torch.equal(found[4], found[5])
    test.close()


def test_an_exported_agent_explores_as_in_training(tmp_path, monkeypatch):
    values = {**TINY, "save_model": True, "main_save_path": tmp_path, "explore_refresh": 3}
    run = mg2l.train(algo="mg2l-adapt", **values)
    monkeypatch.setattr("sys.argv", ["export", str(run.folder)])
    export_command()
    agent = Agent(run.folder / "export", 1, seed=0)
    explorers = np.array(agent.manifest["context"]["explorers"], np.float32)[:, 1]
    seen = []
    for _ in range(60):
        agent.act(np.zeros(agent.width))
        (task,) = np.flatnonzero((explorers == agent.latent).all(1))
        seen.append(task)
    held = np.reshape(seen, (20, 3))
    assert (held == held[:, :1]).all()
    assert set(seen) == {0, 1, 2}


@pytest.mark.parametrize("kept", [True, False])
def test_rollouts_are_replayed(kept):
    learner = adapting(replay_rollouts=kept)
    inference = inference_of(learner)
    before = inference.replay.added.clone()
    counts = [float(x.count) for x in inference.moments()]
    tasks = np.array([0, 2, 2, 1])
    rollout = learner.collect(tasks)
    more = torch.as_tensor(np.bincount(tasks, minlength=3)) * kept
    assert (inference.replay.added - before).tolist() == more.tolist()
    # Else rewards of teams that have learned would be read in units of those of random ones.
    transitions = inference.transitions(rollout)[..., 0].numel() * kept
    assert [float(x.count) for x in inference.moments()] == [x + transitions for x in counts]
    if kept:
        slot = int(before[0]) % inference.replay.data.shape[1]
        stored = inference.replay.data[0, slot]
        torch.testing.assert_close(stored, inference.transitions(rollout)[:, 0])


def test_contexts_come_from_few_episodes_log_uniformly():
    replay = ContextReplay(1, 80, 4, 1, 1, torch.device("cpu"))
    for episode in range(20):
        replay.add(0, torch.full((4, 1, 1), float(episode)))
    draws = torch.Generator().manual_seed(0)
    tasks = torch.zeros(3000, dtype=torch.int64)
    rows = replay.sample(tasks, 100, 10, draws, fewest=1).gather()
    counts = torch.tensor([len(set(row.tolist())) for row in rows.flatten(1)])
    assert counts.min() == 1
    # log-uniform from 1 to 10, rounded: 1 below 1.5, which is log10(1.5) of all; two of the
    # episodes that are drawn with replacement may be the same.
    assert abs((counts == 1).float().mean() - np.log10(1.5)) < 0.03
    assert 0.1 < (counts >= 6).float().mean() < 0.25
    every = replay.sample(tasks, 100, 10, draws).gather()
    assert min(len(set(row.tolist())) for row in every.flatten(1)) >= 4


def test_no_new_key_changes_what_is_drawn():
    """Bit for bit: none of them draws anything where it is off."""
    streams = [torch.Generator().manual_seed(3) for _ in range(2)]
    replay = ContextReplay(2, 40, 4, 1, 1, torch.device("cpu"))
    for task in (0, 1):
        replay.add(task, torch.rand(4, 1, 1))
    tasks = torch.tensor([0, 1, 1])
    one, other = (
        replay.sample(tasks, 7, 3, s, *a) for s, a in zip(streams, ((), (0,)), strict=True)
    )
    assert torch.equal(one.gather(), other.gather())
    assert torch.equal(streams[0].get_state(), streams[1].get_state())


@pytest.mark.parametrize("share", [False, True])
def test_predictions_train_the_encoder_and_are_of_the_right_rewards(share):
    learner = adapting(prediction_weight=2.0, share_policy=share)
    inference = inference_of(learner)
    prediction, encoder = inference.prediction, inference.encoder
    assert prediction is not None
    tasks = torch.tensor([0, 1, 2, 0])
    queries = inference.short_contexts(tasks)
    asked, standardise = inference.short_contexts(tasks), encoder.aggregator.moments.standardise
    rows = standardise(asked.gather())
    encoding = encoder(queries)
    drawn = dataclasses.replace(asked.distinct, rows=standardise(asked.distinct.rows))
    assert len(drawn.rows) < rows.shape[0] * rows.shape[1]
    loss, metrics = prediction(encoding, drawn)

    # By hand, agent by agent and context by context.
    assert prediction.local is not None
    observations, actions, rewards, finals = inference.transitions.split(rows)
    errors = []
    for agent in range(2):
        for context in range(4):
            z = encoding.local.mean[context, agent].expand(len(rows[context]), -1)
            parts = (observations, actions, finals)
            inputs = torch.cat([*(x[context, :, agent] for x in parts), z], -1)
            group = prediction.local(inputs.expand(1 if share else 2, -1, -1))
            said = group[0 if share else agent]
            errors.append((said - rewards[context, :, agent]).square().mean())
    torch.testing.assert_close(metrics["predict/local"], torch.stack(errors).mean())

    loss.backward()
    for part in (encoder.aggregator, encoder.over_agents, encoder.local, prediction):
        assert all(bool(p.grad.any()) for p in part.parameters() if p.grad is not None)
        assert any(p.grad is not None for p in part.parameters())


def test_rewards_that_the_task_decides_are_predicted_from_representations():
    """After some updates the error is below what is left without the task."""
    learner = adapting(ae_updates_per_iter=150, update_contexts=30, n_init_updates=0)
    inference = inference_of(learner)
    first = inference.update()
    again = inference.update()
    assert again["predict/global"] < 0.8 * first["predict/global"]


def test_updates_and_checkpoints_hold_the_predictions():
    learner = adapting()
    state = learner.networks()["inference"]
    assert any(name.startswith("prediction.") for name in state)
    metrics = learner.update_inference()
    assert metrics["predict/local"] > 0
    rollout, _ = collect(learner)
    assert torch.isfinite(rollout.rewards).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"min_context_episodes": 11},
            "min_context_episodes=11 must be at most context_episodes=10",
        ),
        ({"prediction_sizes_mlp": [8, 9]}, "prediction_sizes_mlp must be of one width"),
        ({"prediction_weight": -1}, "prediction_weight must be"),
    ],
)
def test_mistakes(values, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config("mg2l-adapt", **values)
