"""``mg2l-regression``: rewards are regressed on features, and coefficients represent the task."""

import numpy as np
import pytest
import torch
from method_helpers import inference_of, tiny_learner
from torch.func import functional_call

from mg2l.algorithms.growing import PooledContexts
from mg2l.algorithms.mg2l.regression import RIDGE, RewardRegression, _eliminate
from mg2l.core.schema import ConfigError
from mg2l.deploy import export
from mg2l.deploy.agent import Agent
from mg2l.experience.replay import Context


def learner_of(**values):
    return tiny_learner("mg2l-regression", **values)


def regression(width=5):
    torch.manual_seed(0)
    return RewardRegression([6, 6], 7, 3, width)


def test_coefficients_are_those_of_ridge_regression():
    network, rows = regression(), torch.randn(3, 20, 2, 7)
    features, rewards = network.features(rows)
    assert torch.equal(features[..., -1], torch.ones(3, 20, 2))
    torch.testing.assert_close(rewards, rows[..., 3])
    found = network(rows)
    for env in range(3):
        for agent in range(2):
            x, y = features[env, :, agent].double(), rewards[env, :, agent].double()
            # Rows of the prior below those of the data.
            left = torch.cat([x / 20**0.5, RIDGE**0.5 * torch.eye(5, dtype=torch.float64)])
            right = torch.cat([y / 20**0.5, torch.zeros(5, dtype=torch.float64)])
            wanted = torch.linalg.lstsq(left, right.unsqueeze(1)).solution[:, 0]
            torch.testing.assert_close(found[env, agent].double(), wanted, rtol=1e-3, atol=1e-4)


def test_rewards_linear_in_the_features_are_predicted():
    network, rows = regression(), torch.randn(4, 400, 2, 7)
    coefficients = torch.randn(4, 2, 5)
    rows[..., 3] = network.predict(coefficients, rows)
    other = torch.randn(4, 50, 2, 7)
    with torch.no_grad():
        error = network.predict(network(rows), other) - network.predict(coefficients, other)
        spread = network.predict(coefficients, other).std()
    assert float(error.std() / spread) < 0.1


def test_the_reward_is_no_feature():
    network, rows = regression(), torch.randn(3, 4, 2, 7)
    other = rows.clone()
    other[..., 3] += 1
    assert torch.equal(network.features(rows)[0], network.features(other)[0])


def test_gradients():
    network = regression(3).double()
    rows = torch.randn(2, 6, 1, 7, dtype=torch.float64)
    names, values = zip(*network.named_parameters(), strict=True)

    def solved(*weights):
        return functional_call(network, dict(zip(names, weights, strict=True)), (rows,))

    assert torch.autograd.gradcheck(solved, values)


def test_elimination_solves_the_same_systems():
    torch.manual_seed(0)
    root = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    matrix = root @ root.mT + 0.01 * torch.eye(6, dtype=torch.float64)
    wanted = torch.randn(4, 3, 6, 1, dtype=torch.float64)
    solved = torch.linalg.solve(matrix, wanted).squeeze(-1)
    torch.testing.assert_close(_eliminate(matrix, wanted), solved)


def test_transitions_are_added_one_after_the_other():
    network, rows = regression(), torch.randn(3, 8, 2, 7)
    pool = None
    for t in range(8):
        pool = network.extend(pool, rows[:, t], torch.ones(3, 2))
        torch.testing.assert_close(network.read_out(pool), network(rows[:, : t + 1]), rtol=1e-3,
                                   atol=1e-4)  # fmt: skip
    earlier = network.begin(rows[:, :4], torch.tensor([2.0, 0.0, 1.0]))
    assert earlier.mass.tolist() == [[8.0] * 2, [0.0] * 2, [4.0] * 2]
    alive = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    pool = network.extend(earlier, rows[:, 4], alive)
    pool = network.extend(pool, rows[:, 5], torch.ones(3, 2))
    found = network.read_out(pool)
    wanted = {(0, 0): [0, 1, 2, 3, 0, 1, 2, 3, 4, 5], (1, 0): [4, 5], (1, 1): [5],
              (2, 0): [0, 1, 2, 3, 5], (2, 1): [0, 1, 2, 3, 4, 5]}  # fmt: skip
    for (env, agent), steps in wanted.items():
        alone = network(rows[env : env + 1, steps])[0, agent]
        torch.testing.assert_close(found[env, agent], alone, rtol=1e-3, atol=1e-4)


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
