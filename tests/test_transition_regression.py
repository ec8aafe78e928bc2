"""What transitions led to is regressed on their features: coefficients, errors, gradients."""

import torch
from torch.func import functional_call

from mg2l.algorithms.mg2l.regression import (
    CHANGES,
    FORMER_LOG_SCALE,
    LOG_SCALE,
    NOISE,
    SIZE,
    TransitionRegression,
    _eliminate,
)
from mg2l.experience.replay import Context


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
    prior = torch.eye(width, dtype=torch.float64) / network.mean_square.sqrt()
    left = torch.cat([both[:, 1:], prior])
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
    assert scale[~known].mean() - scale[known].mean() > 1.8 * LOG_SCALE


def test_scales_stay_as_they_were_trained():
    """Of a regression that was saved before its bound was."""
    torch.manual_seed(0)
    trained, rows = regression(), torch.randn(2, 7, 2, 9)
    with torch.no_grad():
        trained.of_rewards[-1].weight[-1] *= 20
        trained.log_scale_bound.fill_(FORMER_LOG_SCALE)
    state = {f"encoder.aggregator.{name}": x for name, x in trained.state_dict().items()}
    then = dict(state)
    del then["encoder.aggregator.log_scale_bound"]
    for saved in (state, then):
        loaded = regression()
        scale = loaded.regressand(rows).log_scale
        assert not torch.allclose(scale, trained.regressand(rows).log_scale)
        found = TransitionRegression.upgrade(saved)
        loaded.load_state_dict({name.rpartition("aggregator.")[2]: x for name, x in found.items()})
        assert torch.equal(loaded.regressand(rows).log_scale, trained.regressand(rows).log_scale)


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


def test_how_large_features_are_does_not_matter():
    """Their coefficients are as much smaller, and so is what is expected of them."""
    network = regression()
    pool = network.begin(episode(3, 4), torch.ones(3))
    larger = pool.pooled * torch.tensor([3.0, *[9.0] * 5], dtype=torch.float64)
    x = network.solve(pool.pooled, pool.mass)
    policies_read = network.scaled(x)
    network.mean_square /= 9
    found = network.solve(larger, pool.mass)
    torch.testing.assert_close(found, x / 3)
    torch.testing.assert_close(network.scaled(found), policies_read)


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
