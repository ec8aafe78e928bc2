"""The contrastive loss of Gaussian representations: by hand, and against its definition."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mg2l.estimators.gaussian import Gaussian, kl_to_standard
from mg2l.ops import backend, contrast, reference

DTYPES = [torch.float32, torch.float64]
CHOICES = [backend.NATIVE, backend.TORCH]
OPTIONS = {"temperature": 0.2, "kl_weight": 0.1, "std_floor": 1e-3}
# Groups, rows, keys, width: around vectors of 4 to 16, and blocks of 32 rows and of a 16th of them.
SHAPES = [(1, 1, 1, 1), (2, 31, 3, 16), (3, 33, 40, 5), (1, 700, 17, 33), (0, 4, 2, 3)]


def drawn(shape: tuple[int, int, int, int], dtype: torch.dtype, device: Any) -> list[Tensor]:
    groups, rows, keys, width = shape
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(groups, rows, 2 * width, generator=generator, dtype=torch.float64)
    some = 3 * torch.randn(keys, width, generator=generator, dtype=torch.float64)
    positive = torch.randint(keys, (rows,), generator=generator)
    return [raw.to(device, dtype), some.to(device, dtype), positive.to(device)]


def results(function: Any, raw: Tensor, keys: Tensor, positive: Tensor) -> list[Tensor]:
    """All that is returned, and the gradients of a weighted sum of the losses."""
    leaves = [x.detach().requires_grad_() for x in (raw, keys)]
    found = function(*leaves, positive, **OPTIONS)
    assert [part.requires_grad for part in found] == [True, False, False, False]
    factor = torch.arange(1.0, 1.0 + len(raw)).to(raw)
    return [*(x.detach() for x in found), *torch.autograd.grad((found.loss * factor).sum(), leaves)]


@pytest.mark.parametrize("ops", CHOICES)
def test_by_hand(ops, device):
    """Lengths of means and keys do not count; one of two rows is nearest to its own key."""
    raw = torch.tensor([[[2.0, 0.0, 0.3, -1.0], [0.0, 0.5, 2.0, 30.0]]], device=device)
    keys = torch.tensor([[3.0, 0.0], [0.0, 0.1], [-7.0, 0.0]], device=device)
    positive = torch.tensor([0, 2], device=device)
    found = ops.contrast(raw, keys, positive, temperature=0.5, kl_weight=0.25, std_floor=0.01)
    first = 2 - math.log(math.exp(2) + 1 + math.exp(-2))
    second = -math.log(1 + math.exp(2) + 1)
    bound = math.log(3) + (first + second) / 2
    mean = torch.tensor([[2**0.5, 0.0], [0.0, 2**0.5]], device=device)
    std = torch.nn.functional.softplus(raw[0, :, 2:]) + 0.01
    kl = kl_to_standard(Gaussian(mean, std)).mean()
    torch.testing.assert_close(found.bound.cpu(), torch.tensor([bound]))
    torch.testing.assert_close(found.kl[0], kl)
    torch.testing.assert_close(found.loss, 0.25 * found.kl - found.bound)
    assert found.accuracy.tolist() == [0.5]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(dtype, shape, device):
    given = drawn(shape, dtype, device)
    ours, theirs = results(contrast, *given), results(reference.contrast, *given)
    rtol, atol = (2e-5, 2e-6) if dtype == torch.float32 else (1e-9, 1e-12)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def test_arguments_may_be_strided(device):
    raw, keys, positive = drawn((3, 40, 7, 4), torch.float64, device)
    wide = raw.transpose(0, 1).contiguous().transpose(0, 1)
    column = torch.stack([keys, keys], -1)[..., 0]
    assert not wide.is_contiguous()
    assert not column.is_contiguous()
    strided = results(contrast, wide, column, positive.repeat_interleave(2)[::2])
    for a, b in zip(strided, results(contrast, raw, keys, positive), strict=True):
        torch.testing.assert_close(a, b)


def test_gradcheck(device):
    raw, keys, positive = drawn((2, 9, 4, 3), torch.float64, device)
    leaves = raw.requires_grad_(), keys.requires_grad_()
    assert torch.autograd.gradcheck(lambda r, k: contrast(r, k, positive, **OPTIONS).loss, leaves)


def test_keys_need_no_gradient(device):
    raw, keys, positive = drawn((2, 9, 4, 3), torch.float64, device)
    raw.requires_grad_()
    for function in (contrast, reference.contrast):
        (grad,) = torch.autograd.grad(function(raw, keys, positive, **OPTIONS).loss.sum(), raw)
        assert grad.shape == raw.shape


def test_opcheck(device):
    raw, keys, positive = drawn((2, 9, 4, 3), torch.float64, device)
    given = raw.requires_grad_(), keys.requires_grad_(), positive, *OPTIONS.values()
    torch.library.opcheck(torch.ops.mg2l.contrast.default, given)


def test_vectors_without_a_length(device):
    """A mean or a key of zero points nowhere: its scores are 0, and gradients are finite."""
    raw, keys, positive = drawn((2, 5, 4, 3), torch.float64, device)
    raw[0, 2, :3] = 0
    keys[1] = 0
    ours = contrast(raw, keys, positive, **OPTIONS)
    theirs = reference.contrast(raw, keys, positive, **OPTIONS)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    gradients = results(contrast, raw, keys, positive)[4:]
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["mean", "std", "key"])
def test_what_is_not_finite_is_not_hidden(where, value, device):
    raw, keys, positive = drawn((2, 5, 4, 3), torch.float32, device)
    if where == "key":
        keys[1, 0] = value
    else:
        raw[1, 2, 0 if where == "mean" else 4] = value
    ours = contrast(raw, keys, positive, **OPTIONS)
    theirs = reference.contrast(raw, keys, positive, **OPTIONS)
    for a, b in ((ours.loss, theirs.loss), (ours.bound, theirs.bound), (ours.kl, theirs.kl)):
        torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-4, atol=1e-5)


def test_the_first_of_equal_scores_is_the_nearest(device):
    raw = torch.tensor([[[1.0, 0.0, 0.0, 0.0]] * 2], device=device)
    keys, positive = torch.ones(2, 2, device=device), torch.tensor([0, 1], device=device)
    assert contrast(raw, keys, positive, **OPTIONS).accuracy.tolist() == [0.5]


def test_results_do_not_depend_on_the_number_of_threads(threads):
    given = drawn((2, 5000, 9, 16), torch.float32, "cpu")
    torch.set_num_threads(1)
    alone = results(contrast, *given)
    torch.set_num_threads(3)
    for a, b in zip(results(contrast, *given), alone, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"raw": torch.zeros(2, 4)},
            r"raw must have shape \[G, B, 2 D\] with D >= 1, got \[2, 4\]",
        ),
        ({"raw": torch.zeros(2, 4, 5)}, "raw must have shape"),
        ({"raw": torch.zeros(2, 4, 6).half()}, "raw must be float32 or float64, got float16"),
        ({"keys": torch.zeros(3)}, r"keys must have shape \[K, D\] with K >= 1, got \[3\]"),
        ({"keys": torch.zeros(0, 3)}, "keys must have shape"),
        ({"keys": torch.zeros(5, 4)}, r"keys must have shape \[K, D\] = \[5, 3\], got \[5, 4\]"),
        ({"keys": torch.zeros(5, 3).double()}, "keys must be float32, got float64"),
        ({"positive": torch.zeros(3).long()}, r"positive must have shape \[B\] = \[4\]"),
        ({"positive": torch.zeros(4)}, "positive must be int64"),
        pytest.param(
            {"positive": torch.tensor([0, 1, 2, 5])},
            r"positive must lie in \[0, K\) with K = 5",
            id="positive too large",
        ),
        pytest.param(
            {"positive": torch.tensor([0, -1, 2, 3])},
            "positive must lie in",
            id="positive negative",
        ),
        ({"temperature": 0.0}, "contrast: temperature must be positive, got 0"),
        ({"kl_weight": math.nan}, "contrast: kl_weight must be at least 0"),
        ({"std_floor": 0.0}, "contrast: std_floor must be positive"),
    ],
)
def test_refusals(change, message):
    given = {"raw": torch.zeros(2, 4, 6), "keys": torch.ones(5, 3)}
    with pytest.raises(RuntimeError, match=message):
        contrast(**{**given, "positive": torch.zeros(4).long(), **OPTIONS, **change})
