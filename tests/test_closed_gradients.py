"""Gradients in closed form are those of the formulas that they stand for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from mg2l.algorithms.transition_encoder import TransitionMoments
from mg2l.estimators.gaussian import Gaussian, kl_to_standard
from mg2l.nn.distributions import GaussianHead
from mg2l.nn.sphere import unit


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def assert_same(
    ours: Callable[..., Tensor], formula: Callable[..., Tensor], *leaves: Tensor
) -> None:
    """Values and gradients, and that the latter are right."""
    one, two = ours(*leaves), formula(*leaves)
    torch.testing.assert_close(one, two)
    cotangent = torch.randn(one.shape, dtype=torch.float64)
    pairs = [torch.autograd.grad((y * cotangent).sum(), leaves) for y in (one, two)]
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a, b)
    assert torch.autograd.gradcheck(ours, leaves)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_unit_vectors():
    assert_same(unit, lambda x: F.normalize(x, dim=-1), leaf(3, 4, 5))
    zero = torch.zeros(1, 3, requires_grad=True)
    unit(zero).sum().backward()
    assert zero.grad is not None
    wanted = torch.zeros(1, 3, requires_grad=True)
    F.normalize(wanted, dim=-1).sum().backward()
    torch.testing.assert_close(zero.grad, wanted.grad)


def test_divergence_from_the_prior():
    def formula(mean: Tensor, std: Tensor) -> Tensor:
        prior = Normal(torch.zeros_like(mean), torch.ones_like(mean))
        return kl_divergence(Normal(mean, std), prior).sum(-1)

    std = (torch.rand(4, 3, dtype=torch.float64) + 0.1).requires_grad_()
    assert_same(lambda mean, std: kl_to_standard(Gaussian(mean, std)), formula, leaf(4, 3), std)


def test_moments_folded_into_a_layer():
    moments = TransitionMoments(4)
    moments.update(torch.randn(9, 4) * 3 + 5)
    mean, std = moments.mean, moments.std
    for part in (0, 1):
        assert_same(
            lambda weight, bias, part=part: moments.fold(weight, bias)[part],
            lambda weight, bias, part=part: (
                weight / std + 0 * bias.unsqueeze(1),
                bias - (weight / std) @ mean,
            )[part],
            leaf(3, 4),
            leaf(3),
        )


@pytest.mark.parametrize("groups", [2, 1])
@pytest.mark.parametrize("padded", [True, False])
def test_log_density_of_actions(groups, padded):
    own = torch.tensor([[[True, True, False]], [[True, True, True]]]) if padded else None
    head: Any = GaussianHead(groups, 4, 3, 1.0, True, own).double()
    action = torch.randn(2, 5, 3, dtype=torch.float64)

    def formula(mean: Tensor, log_std: Tensor) -> Any:
        density = Normal(mean, log_std.exp()).log_prob(action)
        return (density if own is None else density * own).sum(-1)

    def ours(mean: Tensor, log_std: Tensor) -> Any:
        head.log_std = log_std
        return head.evaluate(mean, action, None)[0]

    del head.log_std  # a parameter, in place of which tensors are put
    assert_same(ours, formula, leaf(2, 5, 3), leaf(groups, 1, 3))
