"""KL divergences and bounds on mutual information, against closed forms, loops and samples."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from mg2l import estimators
from mg2l.algorithms.losses import info_nce, leave_one_out, pair_scores
from mg2l.estimators.gaussian import Gaussian, kl_between, kl_to_standard
from mg2l.ops import reference


def draw_gaussian(*shape, low=-4.0, high=2.0, dtype=torch.float64):
    """Means of very different size, spreads over orders of magnitude."""
    scale = 10 ** torch.empty(shape, dtype=dtype).uniform_(-2, 1)
    spread = 10 ** torch.empty(shape, dtype=dtype).uniform_(low, high)
    return Gaussian(torch.randn(shape, dtype=dtype) * scale, spread)


def as_torch(q):
    return Independent(Normal(*q), 1)


# KL.


def test_kl_is_the_closed_form():
    torch.manual_seed(0)
    q, p = draw_gaussian(500, 6), draw_gaussian(500, 6)
    torch.testing.assert_close(kl_between(q, p), kl_divergence(as_torch(q), as_torch(p)))
    unit = Gaussian(torch.zeros(500, 6).double(), torch.ones(500, 6).double())
    torch.testing.assert_close(kl_to_standard(q), kl_divergence(as_torch(q), as_torch(unit)))
    torch.testing.assert_close(kl_to_standard(q), kl_between(q, unit))


def test_kl_by_hand():
    q = Gaussian(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.5]]))
    wanted = 0.5 * (1 + 0) + 0.5 * (4 + 0.25 - 1 - math.log(0.25))
    torch.testing.assert_close(kl_to_standard(q), torch.tensor([wanted]))
    p = Gaussian(torch.tensor([[0.0, 2.0]]), torch.tensor([[2.0, 0.5]]))
    wanted = math.log(2) + (1 + 1) / 8 - 0.5
    torch.testing.assert_close(kl_between(q, p), torch.tensor([wanted]))


def test_kl_is_what_samples_say():
    torch.manual_seed(0)
    q, p = draw_gaussian(4, 3, low=-0.3, high=0.3), draw_gaussian(4, 3, low=-0.3, high=0.3)
    q, p = Gaussian(q.mean.clamp(-1, 1), q.std), Gaussian(p.mean.clamp(-1, 1), p.std)
    z = as_torch(q).sample((400_000,))
    ratio = as_torch(q).log_prob(z) - as_torch(p).log_prob(z)
    error = ratio.std(0) / len(z) ** 0.5
    assert ((ratio.mean(0) - kl_between(q, p)).abs() < 5 * error).all()
    assert error.max() < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(5))
def test_kl_is_never_negative_and_zero_for_equals(seed, dtype):
    torch.manual_seed(seed)
    q, p = draw_gaussian(2000, 8, dtype=dtype), draw_gaussian(2000, 8, dtype=dtype)
    assert kl_between(q, p).min() >= 0
    assert kl_to_standard(q).min() >= 0
    for step in (1e-2, 1e-4, 1e-6):  # where terms of order 1 cancel, rounding is all that is left
        near = Gaussian(q.mean * (1 + 1e-3 * step), q.std * (1 + step))
        assert kl_between(q, near).min() >= -16 * torch.finfo(dtype).eps
    torch.testing.assert_close(kl_between(q, q), torch.zeros(2000, dtype=dtype))
    standard = Gaussian(torch.zeros(3, 8), torch.ones(3, 8))
    assert torch.equal(kl_to_standard(standard), torch.zeros(3))


def test_log_density_and_samples():
    torch.manual_seed(0)
    q = draw_gaussian(5, 4)
    z = q.mean + q.std * torch.randn(7, 5, 4).double()
    torch.testing.assert_close(q.log_prob(z), as_torch(q).log_prob(z))
    wide = Gaussian(q.mean.expand(200_000, 5, 4).float(), q.std.expand(200_000, 5, 4).float())
    noise = torch.Generator().manual_seed(3)
    standard = (wide.sample(noise) - wide.mean) / wide.std
    torch.testing.assert_close(standard.mean(0), torch.zeros(5, 4), rtol=0, atol=0.02)
    torch.testing.assert_close(standard.std(0), torch.ones(5, 4), rtol=0, atol=0.02)
    assert torch.equal(q.sample(noise.manual_seed(3)), q.sample(noise.manual_seed(3)))


# InfoNCE.


def test_info_nce_by_hand():
    scores = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 3.0, 1.0]])
    result = info_nce(scores, torch.tensor([0, 1, 2]))
    parts = [
        2 - math.log(math.exp(2) + 2),
        -math.log(3),
        1 - math.log(1 + math.exp(3) + math.exp(1)),
    ]
    torch.testing.assert_close(result.bound, torch.tensor(math.log(3) + sum(parts) / 3))
    # Of equal scores the first wins, so that ties do not count as recognising task 1.
    torch.testing.assert_close(result.accuracy, torch.tensor(1 / 3))


def test_info_nce_of_a_matrix_is_the_estimator():
    torch.manual_seed(0)
    queries, keys = torch.randn(2, 7, 5).double(), torch.randn(2, 3, 5).double()
    positive = torch.randint(3, (7,))
    found = info_nce(pair_scores(queries, keys, "dot", 0.5), positive)
    for group in range(2):
        scores = reference.pairwise_lse(queries[group], keys[group], positive, scale=2.0)
        torch.testing.assert_close(found.bound[group], estimators.info_nce(scores))
        accuracy = (scores.rank == 0).double().mean()
        torch.testing.assert_close(found.accuracy[group], accuracy)


@pytest.mark.parametrize("tasks", [2, 3, 10])
def test_info_nce_is_at_most_log_k_and_reaches_it(tasks):
    torch.manual_seed(tasks)
    positive = torch.randint(tasks, (64,))
    for scale in (0.1, 1.0, 30.0):
        assert info_nce(torch.randn(64, tasks) * scale, positive).bound <= math.log(tasks) + 1e-6
    perfect = info_nce(50 * torch.eye(tasks)[positive], positive)
    torch.testing.assert_close(perfect.bound, torch.tensor(math.log(tasks)))
    assert perfect.accuracy == 1
    ignorant = info_nce(torch.ones(64, tasks), positive)
    torch.testing.assert_close(ignorant.bound, torch.tensor(0.0), rtol=0, atol=1e-6)
    wrong = info_nce(50 * torch.eye(tasks)[(positive + 1) % tasks], positive)
    assert wrong.bound < -40
    assert wrong.accuracy == 0


def test_info_nce_does_not_mind_a_constant_per_query():
    torch.manual_seed(0)
    scores, positive = torch.randn(9, 4).double(), torch.randint(4, (9,))
    shifted = scores + 1e4 * torch.randn(9, 1).double()
    torch.testing.assert_close(info_nce(scores, positive).bound, info_nce(shifted, positive).bound)


def test_info_nce_stays_below_the_true_information():
    """A channel that gives the task with probability 0.8, and each other one with 0.2 / 3."""
    torch.manual_seed(0)
    positive = torch.randint(4, (50_000,))
    seen = torch.where(
        torch.rand(50_000) < 0.8, positive, torch.randint(1, 4, (50_000,)) + positive
    )
    likelihood = torch.full((4, 4), 0.2 / 3) + torch.eye(4) * (0.8 - 0.2 / 3)
    true = math.log(4) + 0.8 * math.log(0.8) + 0.2 * math.log(0.2 / 3)
    best = info_nce(likelihood.log()[seen % 4], positive).bound
    torch.testing.assert_close(best, torch.tensor(true), rtol=0, atol=0.02)
    assert info_nce(3 * likelihood.log()[seen % 4], positive).bound < true


# Scores.


@pytest.mark.parametrize("own_keys", [False, True])
def test_scores_by_hand(own_keys):
    torch.manual_seed(0)
    queries, shared, form = torch.randn(5, 3), torch.randn(4, 3), torch.randn(3, 3)
    keys = torch.randn(5, 4, 3) if own_keys else shared

    def key(b, k):
        return keys[b, k] if own_keys else keys[k]

    for score in ("dot", "cosine", "bilinear"):
        bilinear = form if score == "bilinear" else None
        found = pair_scores(queries, keys, score, 0.5, bilinear, own_keys)
        assert found.shape == (5, 4)
        for b in range(5):
            for k in range(4):
                product = queries[b] @ key(b, k)
                if score == "cosine":
                    product = product / queries[b].norm() / key(b, k).norm()
                if score == "bilinear":
                    product = queries[b] @ form @ key(b, k)
                torch.testing.assert_close(found[b, k], product / 0.5)


# Leave one out.


def loop_leave_one_out(q, z):
    densities = [
        [float(as_torch(Gaussian(q.mean[j], q.std[j])).log_prob(z[b])) for j in range(len(z))]
        for b in range(len(z))
    ]
    total = 0.0
    for b, row in enumerate(densities):
        others = [value for j, value in enumerate(row) if j != b]
        top = max(others)
        mean = sum(math.exp(value - top) for value in others) / len(others)
        total += row[b] - (top + math.log(mean))
    return total / len(z)


@pytest.mark.parametrize("batch", [2, 3, 9])
def test_leave_one_out_is_the_plain_loop(batch):
    torch.manual_seed(batch)
    q = draw_gaussian(batch, 4, low=-0.5, high=0.5)
    z = q.sample().double()
    assert float(leave_one_out(q, z)) == pytest.approx(loop_leave_one_out(q, z), rel=1e-9)


def test_leave_one_out_knows_nothing_where_contexts_say_nothing():
    torch.manual_seed(0)
    one = draw_gaussian(1, 4)
    q = Gaussian(one.mean.expand(20, 4), one.std.expand(20, 4))
    torch.testing.assert_close(
        leave_one_out(q, q.sample().double()), torch.tensor(0.0).double(), rtol=0, atol=1e-9
    )


def test_leave_one_out_bounds_the_true_information_of_a_gaussian_channel():
    """``c ~ N(0, I)``, ``z | c ~ N(c, s^2 I)``: ``I(z; c) = D/2 log(1 + 1/s^2)``."""
    torch.manual_seed(0)
    dimension, spread = 2, 0.8
    true = dimension / 2 * math.log(1 + 1 / spread**2)
    found = []
    for _ in range(20):
        mean = torch.randn(256, dimension)
        q = Gaussian(mean, torch.full_like(mean, spread))
        found.append(float(leave_one_out(q, q.sample())))
    bound = sum(found) / len(found)
    assert true - 0.02 < bound < true + 0.3
