"""``mg2l-regression``: rewards are regressed on features, and coefficients represent the task."""

import numpy as np
import pytest
import torch
from method_helpers import collect, inference_of, tiny_learner
from torch.func import functional_call

from mg2l.algorithms.growing import PooledContexts
from mg2l.algorithms.mg2l.prediction import CHANGE_WEIGHT, RECOGNITION_WEIGHT
from mg2l.algorithms.mg2l.regression import (
    CHANGES,
    LOG_SCALE,
    NOISE,
    RUN,
    SIZE,
    WHOLE,
    TransitionRegression,
    _eliminate,
)
from mg2l.core.schema import ConfigError
from mg2l.deploy import export
from mg2l.deploy.agent import Agent
from mg2l.experience.replay import Context


def learner_of(**values):
    return tiny_learner("mg2l-regression", **values)


def regression(width=5):
    """Of observations of three numbers and actions of two."""
    torch.manual_seed(0)
    network = TransitionRegression([6, 6], 9, 5, width)
    network.mean_square.fill_(SIZE**2)
    with torch.no_grad():
        network.log_noise.copy_(torch.linspace(-3, 0.5, 4))
    return network


def without_scales(network):
    """All errors of rewards are of the same scale."""
    with torch.no_grad():
        network.of_rewards[-1].weight[-1] = network.of_rewards[-1].bias[-1] = 0.0
    return network


def episode(*shape):
    """Transitions ``[*, T, 2, 9]``, each of which begins where the last one ended."""
    rows = torch.randn(*shape, 2, 9)
    rows[..., 1:, :, :3] = rows[..., :-1, :, 6:]
    return rows


@torch.no_grad()
def by_least_squares(network, rows, began=(0,), seen=None):
    """Coefficients of one agent's transitions ``[T, 9]`` of episodes that began at some of them.

    They stand for as many as were ``seen``.
    """
    width, precision = 5, network.precision
    one, two = network.roots.tolist()
    now = network.regressand(rows)
    torch.testing.assert_close(now.reward[:, -1], (-now.log_scale).exp())
    torch.testing.assert_close(now.reward[:, 0], rows[:, 5] / now.log_scale.exp())
    assert now.log_scale.std() > 0
    # Covariance of the errors of an autoregressive process (Yule and Walker).
    steps = torch.arange(len(rows))
    which = sum((steps >= t).long() for t in began)
    correlations = [1.0, (one + two) / (1 + one * two)]
    while len(correlations) < len(rows):
        correlations.append((one + two) * correlations[-1] - one * two * correlations[-2])
    lags = (steps - steps[:, None]).abs()
    covariance = torch.tensor(correlations, dtype=torch.float64)[lags]
    covariance *= which == which[:, None]
    root = torch.linalg.inv(torch.linalg.cholesky(covariance))
    reward = (root @ now.reward.double()) * precision[0].sqrt()
    change = (now.change.double() * precision[1:, None].sqrt()).flatten(0, 1)
    both = torch.cat([reward, change]) * ((seen or len(rows)) / len(rows)) ** 0.5
    # Rows of the prior below those of the data.
    left = torch.cat([both[:, 1:], torch.eye(width, dtype=torch.float64)])
    right = torch.cat([both[:, 0], torch.zeros(width, dtype=torch.float64)])
    return torch.linalg.lstsq(left, right.unsqueeze(1)).solution[:, 0].float()


def test_coefficients_are_those_of_generalised_least_squares():
    network = regression()
    torch.nn.init.constant_(network.root_logits, 0.7)
    rows = torch.cat([episode(3, 12), episode(3, 8)], 1)
    found = network(rows)
    for env in range(3):
        for agent in range(2):
            wanted = by_least_squares(network, rows[env, :, agent], (0, 12))
            torch.testing.assert_close(found[env, agent], wanted, rtol=1e-3, atol=1e-4)


def test_transitions_that_do_not_follow_each_other_are_independent():
    network, rows = regression(), torch.randn(1, 6, 2, 9)
    wanted = by_least_squares(network, rows[0, :, 0], range(6))
    torch.testing.assert_close(network(rows)[0, 0], wanted, rtol=1e-3, atol=1e-4)


def test_the_first_transition_follows_none():
    """Also of an agent that stands still, all of whose transitions begin where they end."""
    network, rows = regression(), episode(1, 6)
    rows[..., :3] = rows[..., 6:] = 1.0
    wanted = by_least_squares(network, rows[0, :, 0])
    torch.testing.assert_close(network(rows)[0, 0], wanted, rtol=1e-3, atol=1e-4)
    pool = network.extend(None, rows[:, 0], torch.ones(1, 2))
    torch.testing.assert_close(network.read_out(pool), network(rows[:, :1]), rtol=1e-3, atol=1e-4)


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


def test_errors_that_persist_are_expected():
    """The error of a transition is what the two before did not let expect."""
    network, rows = without_scales(regression()), episode(1, 9)
    torch.nn.init.constant_(network.root_logits, 100.0)  # 1: errors go on along a line
    x = torch.randn(1, 2, 5)
    features = network.regressand(rows).reward[..., 1:]
    line = torch.tensor([3.0, -1.0]) + torch.arange(9).unsqueeze(1) * torch.tensor([0.5, 2.0])
    rows[..., 5] = (features * x.unsqueeze(1)).sum(-1) + line
    wanted = torch.tensor([9.0, 1.0])
    for steps in (1, 2, 9):
        found = network.squared_errors(x, rows[:, :steps])[:, 0] * steps
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        wanted = torch.tensor([9.25, 5.0])


def test_errors_count_over_their_scales():
    """Which count as 1 in the geometric mean."""
    network, rows = regression(), torch.randn(2, 7, 2, 9)  # none follows another
    x, now = torch.randn(2, 2, 5), network.regressand(rows)
    paid, features = now.reward[..., 0], now.reward[..., 1:]
    errors = (paid - (features * x.unsqueeze(1)).sum(-1)).square().mean((0, 1))
    wanted = errors * (2 * now.log_scale.mean((0, 1))).exp()
    torch.testing.assert_close(network.squared_errors(x, rows)[:, 0], wanted)
    with torch.no_grad():
        before = network.squared_errors(x, rows)
        wanted = without_scales(network).squared_errors(x, rows)
        assert not torch.allclose(wanted, before)
        for scale in (-1.0, 0.5, 50.0):  # the same for all
            network.of_rewards[-1].bias[-1] = scale
            torch.testing.assert_close(network.squared_errors(x, rows), wanted)
    assert now.log_scale.abs().max() < LOG_SCALE


def test_the_scale_of_errors_is_learned():
    """A reward is its task's where the first number observed is negative, and noise elsewhere."""
    torch.manual_seed(0)
    task = torch.randn(100, 1, 1)

    def episodes():
        rows = torch.randn(100, 8, 1, 6)
        known = rows[..., 0] < 0
        rows[..., 3] = torch.where(known, task, 3 * torch.randn(rows.shape[:-1]))
        return rows

    network = TransitionRegression([16, 16], 6, 3, 4)
    network.moments.update(episodes())
    optimiser = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(200):
        optimiser.zero_grad()
        network.squared_errors(network(episodes()), episodes())[:, 0].mean().backward()
        optimiser.step()
    rows = episodes()
    scale, known = network.regressand(rows).log_scale, rows[..., 0] < 0
    assert scale[~known].mean() - scale[known].mean() > 1


def test_a_context_recognises_itself_among_those_of_other_tasks():
    network = regression()
    known, asked = torch.randn(2, 4, 9, 2, 9)
    tasks = torch.tensor([1, 0, 1, 2])
    found = network.regress(known, asked, tasks)
    network.mean_square.fill_(SIZE**2)
    now, precision = network.regressand(asked), network.precision.float()
    shares, hits = torch.zeros(2), torch.zeros(2)
    for agent in range(2):
        for b in range(4):
            likely = []
            for k in (b, *(k for k in range(4) if tasks[k] != tasks[b])):
                x = network(known)[k, agent]
                paid, changed = now.reward[b, :, agent], now.change[b, :, agent]
                of_reward = paid[:, 0] - paid[:, 1:] @ x
                of_changes = changed[..., 0] - changed[..., 1:] @ x
                squares = of_reward.square() * precision[0]
                squares = squares + (of_changes.square() * precision[1:]).sum(-1)
                likely.append(-squares.mean() / 2)
            scores = torch.stack(likely)
            shares[agent] += scores.log_softmax(0)[0] / 4
            hits[agent] += float(scores.argmax() == 0) / 4
    torch.testing.assert_close(found.log_share, shares, rtol=1e-3, atol=1e-4)
    assert torch.equal(found.accuracy, hits)
    alone = network.regress(known, asked, torch.zeros(4, dtype=torch.int64))
    assert torch.equal(alone.log_share, torch.zeros(2))


def test_policies_read_coefficients_of_one_size():
    learner = learner_of()
    inference = inference_of(learner)
    assert inference.target is not None
    network, slow = inference.encoder.aggregator, inference.target.aggregator
    assert isinstance(network, TransitionRegression)
    assert isinstance(slow, TransitionRegression)
    batch = inference._draw()
    with torch.no_grad():
        network.mean_square.fill_(1.0)
        x = network(batch["queries"])
        network.mean_square.fill_(4.0)
        torch.testing.assert_close(network(batch["queries"]), x / 2)
        pool = network.begin(batch["queries"].gather(), torch.ones(len(x)))
        halved = network.read_out(pool)
        network.mean_square.fill_(1.0)
        torch.testing.assert_close(halved, network.read_out(pool) / 2)
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


def test_rewards_linear_in_the_features_are_predicted():
    network, rows = without_scales(regression()), episode(4, 400)
    coefficients, other = torch.randn(4, 1, 2, 5), torch.randn(4, 50, 2, 9)
    with torch.no_grad():
        network.log_noise[1:] = 20.0  # changes say nothing
        rows[..., 5] = (network.regressand(rows).reward[..., 1:] * coefficients).sum(-1)
        wanted = (network.regressand(other).reward[..., 1:] * coefficients).sum(-1)
        other[..., 5] = wanted
        error = network.squared_errors(network(rows), other)[:, 0].mean()
    assert float(error.sqrt() / wanted.std()) < 0.1


def test_changes_alone_identify_a_task():
    """Each agent's observation moves along or against its action; it is paid nothing."""
    torch.manual_seed(0)
    sign = torch.tensor([1.0, -1.0])[torch.randint(2, (200, 1, 2))]

    def episodes():
        rows = torch.randn(200, 5, 2, 6)  # two numbers observed, one chosen, one paid, two after
        rows[..., 3] = 0.0
        rows[..., 4:] = rows[..., :2] + 0.5 * (sign * rows[..., 2]).unsqueeze(-1)
        return rows

    network = TransitionRegression([16, 16], 6, 3, 4)
    network.moments.update(episodes())
    optimiser = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(200):
        errors = network.regress(episodes(), episodes(), torch.arange(200)).errors
        optimiser.zero_grad()
        errors.sum(-1).mean().backward()
        optimiser.step()
    assert errors.shape == (2, 3)
    assert errors[:, 1:].mean() < 0.05
    blind = network.squared_errors(torch.zeros(200, 2, 4), episodes())
    assert blind[:, 1:].mean() > 0.5


def test_what_happens_whatever_an_agent_does_is_not_its_task():
    network, rows = regression(), episode(3, 8)
    features = network.regressand(rows).change[..., 1:]
    assert features.abs().max() > 0
    rows[..., 3:5] = 0.0  # the mean action
    assert not network.regressand(rows).change[..., 1:].any()


def test_changes_count_for_little_at_first():
    network = TransitionRegression([6, 6], 9, 5, 4)
    torch.testing.assert_close(network.precision.tolist(), [1 / NOISE, 1.0, 1.0, 1.0])


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


def test_metrics_of_many_tasks_are_of_fewer_contexts_each(monkeypatch):
    learner = learner_of()
    inference = inference_of(learner)
    assert inference.measured == 16
    for tasks, wanted in ((40, 16), (160, 4), (1000, 2)):
        monkeypatch.setattr(inference, "tasks", tasks)
        assert inference.measured == wanted
    learner.close()


def test_changes_of_wide_observations_are_mixed():
    torch.manual_seed(0)
    observation = CHANGES + 4
    network = TransitionRegression([8], 2 * observation + 1, observation, 3)
    rows = torch.randn(2, 5, 2, 2 * observation + 1)
    now = network.regressand(rows)
    assert now.change.shape == (2, 5, 2, CHANGES, 4)
    other = rows.clone()
    other[..., -1] += 1  # is part of every mixture
    gaps = (network.regressand(other).change - now.change)[..., 0]
    assert gaps.abs().min() > 0
    assert network(rows).shape == (2, 2, 3)
    again = TransitionRegression([8], 2 * observation + 1, observation, 3)
    assert torch.equal(network.mixture, again.mixture)


def test_contexts_count_as_what_they_were_drawn_from():
    network, rows = regression(), episode(2, 8)
    drawn = Context(rows, seen=torch.tensor([80, 8]))
    found = network(drawn)
    torch.testing.assert_close(found[1], network(rows)[1])
    wanted = by_least_squares(network, rows[0, :, 0], seen=80)
    torch.testing.assert_close(found[0, 0], wanted, rtol=1e-3, atol=1e-4)
    pool = network.begin(rows, torch.tensor([10.0, 1.0]))
    torch.testing.assert_close(network.read_out(pool), found, rtol=1e-3, atol=1e-4)


def test_the_reward_is_no_feature():
    network, rows = regression(), torch.randn(3, 4, 2, 9)
    other = rows.clone()
    other[..., 5] += 1
    before, after = network.regressand(rows), network.regressand(other)
    assert torch.equal(before.reward[..., 1:], after.reward[..., 1:])
    assert torch.equal(before.change, after.change)


def test_the_roots_of_errors_are_learned():
    torch.manual_seed(0)
    network = without_scales(regression())
    optimiser = torch.optim.Adam([network.root_logits], 0.05)
    rows = episode(20, 200)
    error = torch.randn(20, 200, 2)
    for t in range(1, 200):
        error[:, t] += 1.4 * error[:, t - 1] - (0.45 * error[:, t - 2] if t > 1 else 0)
    rows[..., 5] = error
    for _ in range(200):
        optimiser.zero_grad()
        network.squared_errors(network(rows), rows)[:, 0].mean().backward()
        optimiser.step()
    one, two = network.roots.tolist()
    assert abs(one + two - 1.4) < 0.06
    assert abs(one * two - 0.45) < 0.06


def test_gradients():
    network = regression(3).double()
    rows = episode(2, 6)[:, :, :1].double()
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
    network, rows = regression(), episode(3, 8)
    rows[:, 6:, :, :3] = 2.0  # another episode
    pool = None
    for t in range(8):
        pool = network.extend(pool, rows[:, t], torch.ones(3, 2))
        torch.testing.assert_close(network.read_out(pool), network(rows[:, : t + 1]), rtol=1e-3,
                                   atol=1e-4)  # fmt: skip
    earlier = network.begin(rows[:, :4], torch.tensor([2.0, 0.0, 1.0]))
    assert earlier.mass.tolist() == [[8.0] * 2, [0.0] * 2, [4.0] * 2]
    alive = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    pool = network.extend(earlier, rows[:, 6], alive)
    pool = network.extend(pool, rows[:, 7], torch.ones(3, 2))
    found = network.read_out(pool)
    wanted = {(0, 0): [0, 1, 2, 3, 0, 1, 2, 3, 6, 7], (1, 0): [6, 7], (1, 1): [7],
              (2, 0): [0, 1, 2, 3, 7], (2, 1): [0, 1, 2, 3, 6, 7]}  # fmt: skip
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
