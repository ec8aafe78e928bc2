"""The losses of PPO: values by hand, gradients, and the operators against their definitions."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mg2l.ops import backend, reference, surrogate, value_loss

DTYPES = [torch.float32, torch.float64]
CHOICES = [backend.NATIVE, backend.TORCH]
# Around vectors of 4 to 16, and blocks of 4,096 rows.
SHAPES = [(1, 1), (2, 17), (3, 800), (2, 9001), (0, 3)]
OPTIONS: list[dict[str, Any]] = [
    {"clip": clip, "delta": delta} for clip in (None, 0.2) for delta in (None, 0.5, 10.0)
]


def drawn(shape: tuple[int, int], dtype: torch.dtype, device: Any) -> list[Tensor]:
    """Two arguments that are near each other, a third one, and weights."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, *shape, generator=generator, dtype=torch.float64)
    return [t.to(device, dtype) for t in (x[0] * 0.4, x[1] * 0.4, x[2], x[3].abs())]


def results(function: Any, first: Tensor, *others: Any, **options: Any) -> list[Tensor]:
    """All that is returned, and the gradient of a weighted sum of the losses."""
    leaf = first.detach().requires_grad_()
    parts = list(function(leaf, *others, **options))
    assert [part.requires_grad for part in parts] == [True, *[False] * (len(parts) - 1)]
    factor = torch.arange(1.0, 1.0 + len(first)).to(first)
    (gradient,) = torch.autograd.grad((parts[0] * factor).sum(), leaf)
    torch.testing.assert_close(parts[-1] * factor.unsqueeze(1), gradient)
    with torch.no_grad():
        for part, again in zip(parts, function(leaf, *others, **options), strict=True):
            assert torch.equal(part, again)
    return [*(part.detach() for part in parts), gradient]


@pytest.mark.parametrize("delta", [0.5, 1.0, 10.0])
@pytest.mark.parametrize("ops", CHOICES)
def test_the_huber_loss_is_symmetric(ops, delta):
    errors = torch.tensor([-1e4, -100.0, -2.0, -0.3, 0.0, 0.3, 2.0, 100.0, 1e4])
    column = errors.unsqueeze(1)
    found = ops.value_loss(column, column, torch.zeros_like(column), 1.0, delta=delta).loss
    wanted = [
        0.5 * e * e if abs(e) <= delta else delta * (abs(e) - 0.5 * delta) for e in errors.tolist()
    ]
    torch.testing.assert_close(found, torch.tensor(wanted))
    torch.testing.assert_close(found, found.flip(0))
    assert found[0] > 0


@pytest.mark.parametrize("ops", CHOICES)
@pytest.mark.parametrize("delta", [None, 10.0])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(
    ("prediction", "old", "target", "wanted"),
    [
        (1.0, 0.0, 2.0, 0.5 * 1.8**2),  # moved too far towards the target: as if at 0.2
        (0.1, 0.0, 2.0, 0.5 * 1.9**2),  # within reach
        (-1.0, 0.0, 2.0, 0.5 * 3.0**2),  # moved away: the plain error is larger
        (2.0, 0.0, 2.0, 0.5 * 1.8**2),  # there, but too fast
    ],
)
def test_the_clipped_value_loss_by_hand(ops, delta, sign, prediction, old, target, wanted):
    rows = [torch.tensor([[sign * x]]) for x in (prediction, old, target)]
    found = ops.value_loss(*rows, 1.0, clip=0.2, delta=delta).loss
    torch.testing.assert_close(found, torch.tensor([wanted]))


@pytest.mark.parametrize("ops", CHOICES)
def test_the_surrogate_by_hand(ops):
    """A ratio that rose beyond the bound counts where that is worse; one within it as it is."""
    ratios, advantages = torch.tensor([[1.5, 1.5, 0.5, 1.1]]), torch.tensor([[2.0, -2.0, 3.0, 1.0]])
    change = ratios.log()
    found = ops.surrogate(change, torch.zeros(1, 4), advantages, 1 / 4, 0.2)
    torch.testing.assert_close(found.loss, -torch.tensor([2.4 - 3.0 + 1.5 + 1.1]) / 4)
    torch.testing.assert_close(found.clip_fraction, torch.tensor([0.75]))
    torch.testing.assert_close(found.kl, (ratios - 1 - change).mean(1))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(dtype, shape, weighted, device):
    first, second, third, weights = drawn(shape, dtype, device)
    w = weights / shape[1] if weighted else 1 / shape[1]
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [("surrogate", (0.2,), {})]
    calls += [("value_loss", (), options) for options in OPTIONS]
    for name, more, options in calls:
        arguments = (first, second, third, w, *more)
        ours = results(getattr(backend.NATIVE, name), *arguments, **options)
        theirs = results(getattr(reference, name), *arguments, **options)
        rtol, atol = (2e-5, 2e-6) if dtype == torch.float32 else (1e-9, 1e-12)
        for a, b in zip(ours, theirs, strict=True):
            assert a.dtype == dtype
            torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def test_rows_may_be_strided(device):
    first, second, third, weights = drawn((3, 50), torch.float64, device)
    wide = [torch.stack([x, x], -1)[..., 0] for x in (first, second, third, weights)]
    assert not wide[0].is_contiguous()
    for a, b in zip(
        results(surrogate, *wide, 0.2),
        results(surrogate, first, second, third, weights, 0.2),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("weighted", [False, True])
def test_gradcheck(weighted, device):
    first, second, third, weights = drawn((2, 30), torch.float64, device)
    w = weights if weighted else 0.1
    first.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: surrogate(x, second, third, w, 0.2).loss, first)
    for options in OPTIONS:
        assert torch.autograd.gradcheck(
            lambda x, options=options: value_loss(x, second, third, w, **options).loss, first
        )


@pytest.mark.parametrize("weighted", [False, True])
def test_opcheck(weighted, device):
    first, second, third, weights = drawn((2, 30), torch.float64, device)
    given = (first.requires_grad_(), second, third, weights if weighted else None, 0.5)
    torch.library.opcheck(torch.ops.mg2l.surrogate.default, (*given, 0.2))
    torch.library.opcheck(torch.ops.mg2l.value_loss.default, (*given, 0.2, None))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("argument", [0, 1, 2])
def test_what_is_not_finite_is_not_hidden(argument, value, device):
    rows = drawn((3, 20), torch.float32, device)[:3]
    rows[argument][1, 7] = value
    for name, more, options in (
        ("surrogate", (0.2,), {}),
        ("value_loss", (), {"clip": 0.2, "delta": 1.0}),
        ("value_loss", (), {"clip": 0.2}),
    ):
        ours = getattr(backend.NATIVE, name)(*rows, 0.1, *more, **options)
        theirs = getattr(reference, name)(*rows, 0.1, *more, **options)
        torch.testing.assert_close(ours.loss, theirs.loss, equal_nan=True, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", [-200.0, -100.0, -80.0, 80.0, 88.5, 100.0])
def test_ratios_overflow_and_vanish_where_exp_does(change, device):
    """A policy that moved far loses as much as the formula says, not as much as a bound of exp."""
    first = torch.full((1, 3), change, device=device)
    zeros, ones = torch.zeros_like(first), torch.ones_like(first)
    for advantage in (ones, -ones):
        ours = surrogate(first, zeros, advantage, 1.0, 0.2)
        theirs = reference.surrogate(first, zeros, advantage, 1.0, 0.2)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-5, atol=1e-30)


def test_results_do_not_depend_on_the_number_of_threads(threads):
    given = drawn((2, 50_000), torch.float32, "cpu")
    torch.set_num_threads(1)
    alone = results(surrogate, *given, 0.2)
    torch.set_num_threads(3)
    for a, b in zip(results(surrogate, *given, 0.2), alone, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"advantages": torch.zeros(2, 4)}, r"advantages must have shape \[A, rows\] = \[2, 5\]"),
        ({"before": torch.zeros(2, 5).double()}, "before must be float32, got float64"),
        ({"log_probs": torch.zeros(5)}, r"log_probs must have shape \[A, rows\], got \[5\]"),
        ({"weights": torch.zeros(5)}, "weights must have shape"),
        ({"clip": 0.0}, "surrogate: clip must be positive, got 0"),
    ],
)
def test_refusals(change, message):
    rows = {name: torch.zeros(2, 5) for name in ("log_probs", "before", "advantages", "weights")}
    with pytest.raises(RuntimeError, match=message):
        surrogate(**{**rows, "clip": 0.2, **change})
