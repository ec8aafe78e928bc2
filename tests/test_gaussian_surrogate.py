"""The policy loss of Gaussian policies: by its parts, gradients, and against its definition."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from mg2l.ops import backend, gaussian_surrogate, reference

DTYPES = [torch.float32, torch.float64]
CHOICES = [backend.NATIVE, backend.TORCH]
OPTIONS: dict[str, Any] = {"clip": 0.2, "entropy_coef": 0.03}
# Agents, rows, numbers of an action: those with loops of their own, and around blocks of 1,024.
SHAPES = [(1, 1, 1), (3, 17, 2), (2, 800, 3), (2, 2100, 6), (2, 5, 0), (0, 3, 2), (2, 0, 2)]
NAMES = ("mean", "log_std", "action", "before", "advantages", "weights", "own")


def drawn(
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    device: Any,
    shared: bool = False,
    weighted: bool = False,
    padded: bool = False,
) -> dict[str, Any]:
    """Arguments: of a policy near the one that acted, which had standard deviations of 1."""
    agents, rows, width = shape
    generator = torch.Generator().manual_seed(0)

    def randn(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64)

    mean, noise, moved = randn(3, *shape)
    log_std = 0.1 * randn(1 if shared else agents, 1, width)
    before, advantages, weights = randn(3, agents, rows)
    own = torch.arange(width) < torch.arange(1, agents + 1).view(-1, 1, 1)
    density = Normal(mean, torch.ones_like(mean)).log_prob(mean + noise)
    density = (density * own if padded else density).sum(-1)
    given = {
        "mean": mean + 0.1 * moved,
        "log_std": log_std,
        "action": mean + noise,
        "before": density + 0.1 * before,
        "advantages": advantages,
    }
    made: dict[str, Any] = {name: x.to(device, dtype) for name, x in given.items()}
    made["weights"] = weights.abs().to(device, dtype) / 3 if weighted else 1 / max(rows, 1)
    if padded:
        made["own"] = own.to(device)
        made["action"] = made["action"] * made["own"]
    return made


def results(function: Any, given: dict[str, Any]) -> list[Tensor]:
    """All that is returned, and the gradients of a weighted sum of the losses."""
    leaves = [given[name].detach().requires_grad_() for name in NAMES[:2]]
    arguments = {**given, "mean": leaves[0], "log_std": leaves[1], **OPTIONS}
    parts = function(**arguments)
    assert [part.requires_grad for part in parts] == [True, *[False] * (len(parts) - 1)]
    factor = torch.arange(1.0, 1.0 + len(leaves[0])).to(leaves[0])
    gradients = torch.autograd.grad((parts.loss * factor).sum(), leaves)
    each = factor.view(-1, 1, 1)
    torch.testing.assert_close(parts.mean_slope * each, gradients[0])
    to_log_std = (parts.log_std_slope * each).sum_to_size(leaves[1].shape)
    torch.testing.assert_close(to_log_std, gradients[1])
    with torch.no_grad():
        for part, again in zip(parts, function(**arguments), strict=True):
            assert torch.equal(part, again)
    return [*(part.detach() for part in parts), *gradients]


@pytest.mark.parametrize("ops", CHOICES)
@pytest.mark.parametrize("padded", [False, True])
def test_parts_are_those_of_the_surrogate_and_of_normals(ops, padded, device):
    given = drawn((2, 30, 2), torch.float64, device, weighted=True, padded=padded)
    normal = Normal(given["mean"], given["log_std"].exp().expand_as(given["mean"]))
    own = given.get("own", torch.ones(2, 1, 2, dtype=torch.bool, device=device))
    log_probs = (normal.log_prob(given["action"]) * own).sum(-1)
    entropy = ((normal.entropy() * own).sum(-1) * given["weights"]).sum(1)
    rows = (given["before"], given["advantages"], given["weights"])
    wanted = reference.surrogate(log_probs, *rows, OPTIONS["clip"])
    found = ops.gaussian_surrogate(**given, **OPTIONS)
    torch.testing.assert_close(found.surrogate, wanted.loss)
    torch.testing.assert_close(found.entropy, entropy)
    torch.testing.assert_close(found.loss, wanted.loss - OPTIONS["entropy_coef"] * entropy)
    torch.testing.assert_close(found.kl, wanted.kl)
    torch.testing.assert_close(found.clip_fraction, wanted.clip_fraction)
    assert wanted.clip_fraction.min() > 0


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(dtype, shape, shared, weighted, padded, device):
    given = drawn(shape, dtype, device, shared, weighted, padded)
    ours, theirs = results(gaussian_surrogate, given), results(reference.gaussian_surrogate, given)
    rtol, atol = (5e-5, 1e-5) if dtype == torch.float32 else (1e-9, 1e-12)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def test_arguments_may_be_strided(device):
    given = drawn((3, 50, 2), torch.float64, device, weighted=True, padded=True)
    wide = {name: torch.stack([x, x], -1)[..., 0] for name, x in given.items()}
    assert not wide["mean"].is_contiguous()
    for a, b in zip(
        results(gaussian_surrogate, wide), results(gaussian_surrogate, given), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_gradcheck(shared, padded, device):
    given = drawn((2, 20, 2), torch.float64, device, shared, weighted=True, padded=padded)
    leaves = [given.pop(name).requires_grad_() for name in NAMES[:2]]
    assert torch.autograd.gradcheck(
        lambda mean, log_std: gaussian_surrogate(mean, log_std, **given, **OPTIONS).loss, leaves
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_opcheck(weighted, device):
    given = drawn((2, 20, 2), torch.float64, device, weighted=weighted, padded=weighted)
    leaves = [given[name].requires_grad_() for name in NAMES[:2]]
    rows = [given[name] for name in NAMES[2:5]]
    weights = (given["weights"], 0.0) if weighted else (None, given["weights"])
    options = (*OPTIONS.values(), given.get("own"))
    op = torch.ops.mg2l.gaussian_surrogate.default
    torch.library.opcheck(op, (*leaves, *rows, *weights, *options))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("argument", NAMES[:5])
def test_what_is_not_finite_is_not_hidden(argument, value, device):
    given = drawn((3, 20, 2), torch.float32, device)
    given[argument][1, 0, ...] = value
    ours = gaussian_surrogate(**given, **OPTIONS)
    theirs = reference.gaussian_surrogate(**given, **OPTIONS)
    for a, b in ((ours.loss, theirs.loss), (ours.kl, theirs.kl), (ours.entropy, theirs.entropy)):
        torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-4, atol=1e-5)


def test_a_policy_that_has_not_moved_has_ratios_of_one(device):
    given = drawn((2, 800, 2), torch.float32, device)
    given["log_std"] = torch.zeros_like(given["log_std"])
    ones = torch.ones_like(given["mean"])
    given["before"] = Normal(given["mean"], ones).log_prob(given["action"]).sum(-1)
    found = gaussian_surrogate(**given, **OPTIONS)
    torch.testing.assert_close(found.surrogate, -given["advantages"].mean(1))
    assert found.kl.abs().max() < 1e-8  # the rounding of a log-density
    assert not found.clip_fraction.any()


def test_results_do_not_depend_on_the_number_of_threads(threads):
    given = drawn((2, 50_000, 2), torch.float32, "cpu")
    torch.set_num_threads(1)
    alone = results(gaussian_surrogate, given)
    torch.set_num_threads(3)
    for a, b in zip(results(gaussian_surrogate, given), alone, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": torch.zeros(2, 5)}, r"mean must have shape \[A, rows, W\], got \[2, 5\]"),
        ({"mean": torch.zeros(2, 5, 3).half()}, "mean must be float32 or float64, got float16"),
        ({"log_std": torch.zeros(3, 1, 3)}, r"log_std must have shape \[A or 1, 1, W\] = \[2, 1"),
        ({"log_std": torch.zeros(2, 3)}, "log_std must have shape"),
        ({"action": torch.zeros(2, 5, 2)}, r"action must have shape \[A, rows, W\] = \[2, 5, 3\]"),
        ({"before": torch.zeros(2, 5).double()}, "before must be float32, got float64"),
        ({"advantages": torch.zeros(2, 4)}, r"advantages must have shape \[A, rows\] = \[2, 5\]"),
        ({"weights": torch.zeros(5)}, "weights must have shape"),
        ({"own": torch.zeros(2, 1, 3)}, "own must be bool, got float32"),
        ({"own": torch.zeros(2, 3).bool()}, r"own must have shape \[A, 1, W\] = \[2, 1, 3\]"),
        ({"clip": 0.0}, "gaussian_surrogate: clip must be positive, got 0"),
        ({"entropy_coef": -1.0}, "gaussian_surrogate: entropy_coef must be at least 0, got -1"),
    ],
)
def test_refusals(change, message):
    given: dict[str, Any] = {"mean": torch.zeros(2, 5, 3), "log_std": torch.zeros(2, 1, 3)}
    given |= {"action": torch.zeros(2, 5, 3), "weights": 0.2}
    given |= {name: torch.zeros(2, 5) for name in ("before", "advantages")}
    with pytest.raises(RuntimeError, match=message):
        gaussian_surrogate(**{**given, **OPTIONS, **change})
