"""What ``mg2l-online`` adds: contexts that grow with every step, also while exploring."""

import numpy as np
import pytest
import torch
from method_helpers import inference_of, tiny_learner

from mg2l.algorithms.growing import PooledContexts
from mg2l.deploy import export
from mg2l.deploy.agent import Agent
from mg2l.evaluation.meta_test import MetaTest
from mg2l.experience.replay import Context, ContextReplay


def online(**values):
    return tiny_learner("mg2l-online", **values)


def test_contexts_come_from_the_first_transitions_of_episodes():
    replay = ContextReplay(1, 80, 4, 1, 1, torch.device("cpu"))
    for episode in range(20):
        replay.add(0, torch.arange(4.0).view(4, 1, 1) + 10 * episode)
    draws = torch.Generator().manual_seed(0)
    tasks = torch.zeros(300, dtype=torch.int64)
    for seen in (1, 3, 4, 10):
        drawn = torch.full((300,), seen)
        rows = replay.sample(tasks, 60, 3, draws, seen=drawn).gather().flatten(1)
        episodes, steps = rows // 10, rows % 10
        for row, step in zip(episodes, steps, strict=True):
            assert len(row.unique()) <= -(-seen // 4)
            assert len(step.unique()) == min(seen, 4)  # of an episode that is not whole the first
        assert len(episodes.unique()) == 20


def seen_so_far(learner, tasks):
    """A rollout in contexts that grow from nothing, and its transitions ``[N, T, A, F]``."""
    inference = inference_of(learner)
    stream = inference.growing_latent(len(tasks))
    rollout = learner.collector.collect(6, tasks, stream)
    return rollout, inference.transitions(rollout).transpose(0, 1)


@pytest.mark.parametrize("share", [False, True])
def test_agents_act_on_all_that_they_have_seen(share):
    learner = online(share_policy=share)
    inference = inference_of(learner)
    rollout, rows = seen_so_far(learner, np.array([0, 1, 2, 1]))
    assert not rollout.latent[0].any()  # nothing is known yet
    for t in range(1, 6):
        wanted = inference.infer(Context(rows[:, :t])).local.mean
        torch.testing.assert_close(rollout.latent[t], wanted, rtol=1e-4, atol=1e-5)


def test_what_was_seen_before_counts_as_often_as_it_was_seen():
    learner = online()
    inference = inference_of(learner)
    _, rows = seen_so_far(learner, np.array([0, 1, 2, 1]))
    stream = inference.growing_latent(4, rows[:, :2], torch.tensor([2, 6, 0, 2]))
    assert isinstance(stream, PooledContexts)
    first = stream.current()
    torch.testing.assert_close(first[3], inference.infer(Context(rows[3:, :2])).local.mean[0])
    assert not first[2].any()
    for t in (2, 3):
        alive = torch.tensor([[True, True]] * 3 + [[True, t == 2]])
        stream.pool = stream.encoder.aggregator.extend(stream.pool, rows[:, t], alive.float())
    found = stream.current()
    contexts = [[0, 1, 2, 3], [0, 1, 0, 1, 0, 1, 2, 3], [2, 3]]
    for env, steps in enumerate(contexts):
        wanted = inference.infer(Context(rows[env : env + 1, steps])).local.mean[0]
        torch.testing.assert_close(found[env], wanted, rtol=1e-4, atol=1e-5)
    # The second agent of the last was dead at the last step.
    for agent, steps in enumerate(([0, 1, 2, 3], [0, 1, 2])):
        wanted = inference.infer(Context(rows[3:, steps])).local.mean[0, agent]
        torch.testing.assert_close(found[3, agent], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("aggregator", ["mean", "rnn"])
def test_contexts_that_cannot_be_pooled_step_by_step_are_drawn(aggregator):
    learner = online(aggregator=aggregator, ae_batch_size=400, n_rollout_threads=2)
    inference = inference_of(learner)
    rollout, rows = seen_so_far(learner, np.array([0, 1]))
    assert not rollout.latent[0].any()
    wanted = inference.infer(Context(rows[:, :1].expand(-1, 400, -1, -1))).local.mean
    torch.testing.assert_close(rollout.latent[1], wanted, rtol=1e-4, atol=1e-5)
    if aggregator == "mean":  # of 400 draws of all five
        wanted = inference.infer(Context(rows[:, :5])).local.mean
        assert float((rollout.latent[5] - wanted).norm(dim=-1).max()) < 1
    stream = inference.growing_latent(2, rows[:, :1].expand(-1, 400, -1, -1),
                               torch.tensor([1, 0]))  # fmt: skip
    assert stream.current()[0].any()
    assert not stream.current()[1].any()


def test_policies_train_on_contexts_as_at_meta_test():
    """Half of the sub-environments know nothing at first; critics read what actors act on."""
    learner = online(n_rollout_threads=64)
    inference = inference_of(learner)
    tasks = learner.draw_tasks()
    rollout = learner.collect(tasks)
    known = rollout.latent[0].any(-1).any(-1)
    assert 16 < int(known.sum()) < 48
    latent = inference.critic_latent(tasks, rollout)()
    assert latent is not None
    assert latent.shape == (11, 64, 3 * 8)
    torch.testing.assert_close(latent[:-1, :, 8:], rollout.latent.flatten(2))
    assert latent.requires_grad


def test_a_meta_test_goes_on_with_what_was_seen():
    """Exploring is acting on what is known: a second episode begins with that of the first."""
    learner = online()
    inference = inference_of(learner)
    test = MetaTest(learner, [3, 4], 2, 0)
    first = test.explore_once(0)
    assert first.latent is not None
    assert not first.latent[0].any()
    seen = test.transitions(first)
    drawn = test.explore_once(1, seen).latent
    assert drawn is not None
    # Of 20 draws of ten transitions.
    wanted = inference.infer(Context(seen)).local.mean
    assert 0 < float((drawn[0] - wanted).norm(dim=-1).max()) < float(wanted.norm(dim=-1).max())
    found = test.play_each([0, 1])
    grown = test.play_online()
    assert torch.equal(found[0, "uniform"].returns, grown.returns)
    assert not torch.equal(found[1, "uniform"].returns, grown.returns)
    assert torch.equal(test.play(1).returns, found[1, "uniform"].returns)
    test.close()


def test_a_meta_test_begins_with_every_transition_of_earlier_episodes():
    """Of 20 transitions, where a context of the replay holds ten."""
    learner = online()
    inference = inference_of(learner)
    test = MetaTest(learner, [3, 4], 2, 0)
    experience = test.explore(2)
    assert experience is not None
    assert experience.shape[1] == 20
    stream = test.latent_after(experience, "uniform")
    assert isinstance(stream, PooledContexts)
    wanted = inference.infer(Context(experience)).local.mean
    torch.testing.assert_close(stream.current(), wanted, rtol=1e-4, atol=1e-5)
    test.close()


def test_drawn_contexts_come_from_all_earlier_transitions():
    """By the numbers that they stand for, next to the steps since."""
    learner = online(aggregator="mean", ae_batch_size=400, context_episodes=40, n_rollout_threads=2)
    inference = inference_of(learner)
    _, rows = seen_so_far(learner, np.array([0, 1]))
    stream = inference.growing_latent(2, rows[:, :3], torch.tensor([6, 0]))
    stream.rows, stream.steps = rows[:, 3:6].clone(), 3
    drawn = stream._context().rows
    assert drawn.shape[1] == 400
    for env, parts in enumerate(((range(3), 6), (range(0), 0))):
        earlier, count = parts
        for step in range(6):
            share = (drawn[env] == rows[env, step]).all(-1).all(-1).float().mean()
            wanted = (2 if step in earlier else step >= 3) / (count + 3)
            assert abs(float(share) - wanted) < 0.1, (env, step)


def test_an_exported_agent_acts_on_all_that_it_has_seen(tmp_path):
    learner = online()
    inference = inference_of(learner)
    export.write_team(learner, tmp_path / "out")
    agent = Agent(tmp_path / "out", 1, seed=0)
    rollout, rows = seen_so_far(learner, np.array([0, 1, 2, 1]))
    assert agent.latent is not None
    assert not agent.latent.any()
    for t in range(5):
        agent.act(rollout.observations[t, 0, 1].numpy())
        step = (rollout.observations[t], rollout.actions[t], rollout.rewards[t])
        before, action, paid = (x[0, 1].numpy() for x in step)
        agent.observe(before, action, float(paid), rollout.final_observations[t, 0, 1].numpy())
        np.testing.assert_allclose(agent.latent, rollout.latent[t + 1, 0, 1], rtol=1e-4, atol=1e-5)
    agent.infer()
    agent.observe(before, action, float(paid), rollout.final_observations[4, 0, 1].numpy())
    twice = Context(rows[:1, [0, 1, 2, 3, 4, 4]])
    wanted = inference.infer(twice).local.mean[0, 1]
    np.testing.assert_allclose(agent.latent, wanted, rtol=1e-4, atol=1e-5)
    agent.forget()
    assert not agent.latent.any()
