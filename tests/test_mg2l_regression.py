"""``mg2l-regression``: what policies, critics, updates and exports make of coefficients."""

import numpy as np
import pytest
import torch
from method_helpers import collect, inference_of, tiny_learner

from mg2l.algorithms.growing import PooledContexts
from mg2l.algorithms.mg2l.prediction import CHANGE_WEIGHT, RECOGNITION_WEIGHT
from mg2l.algorithms.mg2l.regression import AGENTS, RUN, SIZE, WHOLE, TransitionRegression
from mg2l.core.schema import ConfigError
from mg2l.deploy import export
from mg2l.deploy.agent import Agent
from mg2l.experience.replay import Context


def learner_of(**values):
    return tiny_learner("mg2l-regression", **values)


@pytest.mark.parametrize(
    ("algo", "fewest", "whole"), [("mg2l-regression", RUN, WHOLE), ("mg2l-online", 1, 0.0)]
)
def test_updates_infer_from_growing_contexts(monkeypatch, algo, fewest, whole):
    learner = tiny_learner(algo, max_ep_len=RUN, update_contexts=300)
    inference = inference_of(learner)
    sample, drawn = inference.replay.sample, []

    def record(*args, seen=None, **kwargs):
        drawn.append(seen)
        return sample(*args, seen=seen, **kwargs)

    monkeypatch.setattr(inference.replay, "sample", record)
    inference._draw()
    known, asked = drawn
    most = inference.options.update_episodes * RUN
    assert fewest <= known.min() < 2 * fewest
    assert known.max() > most / 2
    assert abs((known == most).float().mean() - whole) < 0.1
    # A regression predicts what happens all over the episodes.
    assert asked is None if algo == "mg2l-regression" else asked.min() < 2
    learner.close()


def test_critics_read_joint_experience_alone_and_train_no_features():
    learner = learner_of()
    inference = inference_of(learner)
    _, critic_latent = collect(learner)
    latent = critic_latent()
    assert latent is not None
    assert latent.shape == (4, inference.options.context_dim)  # one for each environment
    assert not latent.requires_grad
    assert inference.trained_by_critic() == []
    learner.close()


def test_contexts_are_drawn_in_runs(monkeypatch):
    learner = learner_of()
    inference = inference_of(learner)
    assert inference.run == RUN
    width = inference.transitions.observation
    tasks = torch.arange(inference.tasks).repeat(20)
    begun = []

    def begin(_, earlier, seen):
        begun.append(earlier[seen > 0])

    monkeypatch.setattr(inference, "growing_latent", begin)
    inference._from_replay(tasks)
    drawn = [inference.contexts(tasks).gather(), inference.short_contexts(tasks).gather(), *begun]
    assert len(drawn) == 3
    for rows in drawn:
        follows = (rows[:, 1:, :, :width] == rows[:, :-1, :, -width:]).all(-1)
        assert follows.float().mean() > 0.5
    learner.close()


def test_policies_read_coefficients_of_one_size():
    learner = learner_of()
    inference = inference_of(learner)
    assert inference.target is not None
    network, slow = inference.encoder.aggregator, inference.target.aggregator
    assert isinstance(network, TransitionRegression)
    assert isinstance(slow, TransitionRegression)
    batch = inference._draw()
    with torch.no_grad():
        network.mean_square.fill_(4.0)
        torch.testing.assert_close(network.scaled(torch.ones(3)), torch.full((3,), SIZE / 2))
        pool = network.begin(batch["queries"].gather(), torch.ones(len(batch["tasks"])))
        solved = network.solve(pool.pooled, pool.mass).float()
        torch.testing.assert_close(network.read_out(pool), solved * SIZE / 2)
        network.mean_square.zero_()  # all were 0: of rewards that never differ
        assert network(batch["queries"]).isfinite().all()
    network.mean_square.fill_(1.0)
    inference._update_once()
    assert network.mean_square != 1
    assert torch.equal(slow.mean_square, network.mean_square)
    learner.close()


def test_metrics_are_of_what_is_trained():
    learner = learner_of()
    metrics = inference_of(learner).update()
    assert {"predict/accuracy", "predict/changes", "predict/local"} < metrics.keys()
    assert not {"mi/local", "accuracy/local"} & metrics.keys()  # no keys are trained
    learner.close()


def test_errors_of_changes_weigh_less_than_those_of_rewards():
    learner = learner_of()
    inference = inference_of(learner)
    batch = inference._draw()
    encoding = inference.encoder(batch["queries"])
    drawn = batch["predicted"].distinct
    prediction = inference.prediction
    assert prediction is not None
    all_alike = torch.ones(inference.agents, 3)
    rewards = torch.zeros_like(all_alike)
    rewards[:, 0] = 1.0
    network = inference.encoder.aggregator
    assert isinstance(network, TransitionRegression)
    found = network.regress(batch["queries"], batch["predicted"], batch["tasks"])
    found = found._replace(log_share=torch.zeros(inference.agents))
    none, own, both = (
        prediction(encoding, drawn, found._replace(errors=errors))[0]
        for errors in (torch.zeros_like(rewards), rewards, all_alike)
    )
    ratio = (both - own) / (own - none)
    torch.testing.assert_close(ratio, torch.tensor(CHANGE_WEIGHT), rtol=1e-3, atol=1e-4)
    ahead = found._replace(errors=rewards, log_share=-torch.ones(inference.agents))
    ratio = (prediction(encoding, drawn, ahead)[0] - own) / (own - none)
    torch.testing.assert_close(ratio, torch.tensor(RECOGNITION_WEIGHT), rtol=1e-3, atol=1e-4)
    learner.close()


def test_an_update_learns_from_some_of_the_agents_that_have_one_policy():
    team = {"env": "mpe-goals", "n_agents": AGENTS + 3}
    learner = learner_of(**team, share_policy=True)
    inference = inference_of(learner)
    drawn = set()
    for _ in range(10):
        batch = inference._draw()
        some = batch["queries"].agents
        assert torch.equal(some, batch["predicted"].agents)
        assert batch["queries"].gather().shape[2] == len(some.unique()) == AGENTS
        drawn.update(some.tolist())
    assert len(drawn) == inference.agents
    inference._update_once()
    assert inference.infer(inference.contexts(torch.tensor([0]))).local.mean.shape[1] == AGENTS + 3
    learner.close()
    learner = learner_of(**team)
    assert inference_of(learner)._draw()["queries"].agents is None
    learner.close()


def test_contexts_hold_no_more_transitions_than_there_are():
    learner = learner_of(ae_batch_size=200, context_episodes=3)
    inference = inference_of(learner)
    assert inference.context_length == 30
    assert inference.contexts(torch.tensor([0])).gather().shape[1] == 30
    learner.close()


def test_metrics_of_many_tasks_are_of_fewer_contexts_each(monkeypatch):
    learner = learner_of()
    inference = inference_of(learner)
    assert inference.measured == 16
    for tasks, wanted in ((10, 16), (40, 4), (1000, 2)):
        monkeypatch.setattr(inference, "tasks", tasks)
        assert inference.measured == wanted
    learner.close()


def test_agents_act_on_the_coefficients_of_their_own_transitions():
    learner = learner_of()
    inference = inference_of(learner)
    tasks = np.array([0, 1, 2, 1])
    stream = inference.growing_latent(4)
    assert isinstance(stream, PooledContexts)
    rollout = learner.collector.collect(6, tasks, stream)
    rows = inference.transitions(rollout).transpose(0, 1)
    assert rollout.latent is not None
    assert not rollout.latent[0].any()
    for t in range(1, 6):
        wanted = inference.infer(Context(rows[:, :t])).local.mean
        torch.testing.assert_close(rollout.latent[t], wanted, rtol=1e-3, atol=1e-4)
    others = rows.clone()
    others[:, :, 1] = torch.randn_like(others[:, :, 1])
    own, changed = (inference.infer(Context(x)).local.mean for x in (rows, others))
    assert torch.equal(own[:, 0], changed[:, 0])
    assert not torch.equal(own[:, 1], changed[:, 1])


def test_updates_teach_the_features_to_predict():
    learner = learner_of(update_contexts=30, lr=0.01)
    inference = inference_of(learner)
    errors = [inference._update_once()["predict/local"].item() for _ in range(60)]
    assert np.mean(errors[-10:]) < 0.8 * np.mean(errors[:10])
    learner.close()


def test_an_exported_agent_regresses_all_that_it_has_seen(tmp_path):
    learner = learner_of()
    inference = inference_of(learner)
    export.write_team(learner, tmp_path / "out")
    agent = Agent(tmp_path / "out", 1, seed=0)
    with pytest.raises(RuntimeError, match="nothing was observed yet"):
        agent.infer()
    stream = inference.growing_latent(4)
    rollout = learner.collector.collect(6, np.array([0, 1, 2, 1]), stream)
    assert rollout.latent is not None
    for t in range(5):
        agent.act(rollout.observations[t, 0, 1].numpy())
        step = (rollout.observations[t], rollout.actions[t], rollout.rewards[t])
        before, action, paid = (x[0, 1].numpy() for x in step)
        agent.observe(before, action, float(paid), rollout.final_observations[t, 0, 1].numpy())
        assert agent.latent is not None
        wanted = rollout.latent[t + 1, 0, 1]
        np.testing.assert_allclose(agent.latent, wanted, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(agent.infer(), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bounded_by", "sphere"),
        ("dist", "gaussian"),
        ("prediction_weight", 0.0),
        ("context_dim", 1),
    ],
)
def test_coefficients_stay_what_they_are(key, value):
    with pytest.raises((ConfigError, ValueError), match=f"aggregator=regression needs .*{key}"):
        learner_of(**{key: value})


def test_images_are_refused():
    with pytest.raises(ConfigError, match="aggregator=regression reads observations as numbers"):
        tiny_learner("mg2l-regression", "magent-gather", obs="cnn")
