"""Moments are those of all numbers at once, however large their mean is beside their spread."""

import numpy as np
import pytest
import torch

from mg2l.algorithms.transition_encoder import TransitionMoments
from mg2l.nn.moments import RunningMoments, batch_moments
from mg2l.nn.normaliser import PopArt, ValueNorm
from mg2l.nn.stacked import StackedLinear

OFFSETS = [(0.0, 1.0), (1e3, 1.0), (-1e4, 10.0), (1e6, 1.0), (1e6, 100.0), (1e-3, 1e-9), (3e4, 0.1)]
"""Mean and standard deviation; float32 has a sixteenth of it for a digit at a ratio of 1e6."""


def draw(offset, scale, *shape, seed=0):
    """float32, as numbers come from environments."""
    rng = np.random.default_rng(seed)
    return torch.as_tensor((offset + scale * rng.normal(size=shape)).astype(np.float32))


@pytest.mark.parametrize(("offset", "scale"), OFFSETS)
def test_running_moments_are_numpys(offset, scale):
    parts = [draw(offset, scale, size, 2, 3, seed=size) for size in (700, 1, 40, 300)]
    moments = RunningMoments(2, 3)
    for part in parts:
        moments.update(part)
    rows = torch.cat(parts).double().numpy()
    assert (moments.count == 1041).all()
    np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.std, rows.std(0), rtol=1e-9)
    standard = moments.standardise(torch.cat(parts))
    assert standard.dtype == torch.float32
    wanted = (rows - rows.mean(0)) / rows.std(0)
    np.testing.assert_allclose(standard, wanted, rtol=0, atol=2e-6)
    np.testing.assert_allclose(moments.restore(standard), rows, rtol=1e-6, atol=1e-6)


def test_batches_may_come_in_any_order_and_size():
    rows = draw(1e5, 3.0, 600, 1, 2)
    whole, parts = RunningMoments(1, 2), RunningMoments(1, 2)
    whole.update(rows)
    for part in reversed(rows.split([1, 400, 0, 150, 49])):
        parts.update(part)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-12, atol=0)


def test_only_what_is_kept_counts():
    rows, kept = draw(1e4, 2.0, 500, 3, 2), torch.rand(500, 3) < 0.4
    kept[:, 2] = False
    moments = RunningMoments(3, 2)
    for part, mask in zip(rows.split(200), kept.split(200), strict=True):
        moments.update(part, mask)
    for group in range(2):
        own = rows[kept[:, group], group].double()
        assert moments.count[group] == len(own)
        torch.testing.assert_close(moments.mean[group], own.mean(0))
        torch.testing.assert_close(moments.std[group], own.std(0, unbiased=False))
    assert not moments.count[2].any()
    assert torch.equal(moments.standardise(rows)[:, 2], rows[:, 2])  # nothing is known of it


def test_what_never_varies_is_centred_alone():
    moments = RunningMoments(3)
    rows = torch.tensor([[0.1, 0.0, 7e8]]).expand(50, -1)
    moments.update(rows)
    assert moments.std.tolist() == [1, 1, 1]
    assert not moments.standardise(rows).any()
    assert moments.standardise(rows + 2)[0, 1] == 2


def test_a_batch_without_anybody_is_empty():
    found = batch_moments(draw(0, 1, 5, 2), torch.zeros(5, 2, dtype=torch.bool))
    assert not torch.cat([*found, found.variance]).any()


# Where they are kept.


@pytest.mark.parametrize(("offset", "scale"), OFFSETS)
def test_normalised_targets_have_mean_0_and_spread_1(offset, scale):
    norm = ValueNorm(2, floor=0)
    for seed in range(50):
        targets = draw(offset, scale, 2, 800, seed=seed)
        norm.update(targets, targets)
    np.testing.assert_allclose(norm.mean, offset, rtol=0, atol=0.02 * scale)
    np.testing.assert_allclose(norm.std, scale, rtol=0.02)
    standard = norm.normalise(targets)
    wanted = (targets.double() - norm.mean[:, None]) / norm.std[:, None]
    torch.testing.assert_close(standard, wanted.float())


def test_debiased_moments_forget_as_they_should():
    """Batches whose means move by 1e6 standard deviations, against explicit weights."""
    beta, norm = 0.7, ValueNorm(1, beta=0.7)
    batches = [draw(1e6 * k, 1.0 + k, 1, 300, seed=k) for k in range(6)]
    for batch in batches:
        norm.update(batch, batch)
    weights = np.array([beta ** (5 - k) for k in range(6)])
    weights /= weights.sum()
    means = np.array([b.double().mean() for b in batches])
    mean = weights @ means
    variance = weights @ np.array([b.double().var(unbiased=False) for b in batches])
    variance += weights @ (means - mean) ** 2
    np.testing.assert_allclose(norm.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(norm.std, np.sqrt(variance), rtol=1e-9)


def test_popart_keeps_what_the_critic_says_of_far_targets():
    torch.manual_seed(0)
    layer = StackedLinear(1, 5, 1, 1.0)
    norm, features = PopArt(1, layer, beta=0.9), torch.randn(1, 30, 5)
    targets = draw(1e5, 1.0, 1, 500)
    norm.fold(targets)
    said = layer(features).squeeze(-1).detach()
    real = said.double() * norm.std + norm.mean
    norm.update(draw(1e5 + 3, 2.0, 1, 500), said)
    again = layer(features).squeeze(-1).detach().double() * norm.std + norm.mean
    torch.testing.assert_close(again, real, rtol=0, atol=1e-5)


def test_transitions_far_from_0_are_encoded_by_what_varies():
    """Standardising is folded into the first layer, and loses no more than float32 has lost."""
    moments = TransitionMoments(4)
    rows = draw(1e4, 1.0, 1000, 4)
    moments.update(rows)
    torch.manual_seed(0)
    weight, bias = torch.randn(8, 4), torch.randn(8)
    folded_weight, folded_bias = moments.fold(weight, bias)
    found = torch.addmm(folded_bias, rows, folded_weight.t())
    exact = (rows.double() - moments.mean) / moments.std @ weight.double().t() + bias
    torch.testing.assert_close(found, exact.float(), rtol=0, atol=1e-2)
