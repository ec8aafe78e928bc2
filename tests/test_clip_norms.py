"""Clipping of gradients: by hand, against the definition and torch's own, and refusals."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mg2l.ops import backend, clip_norms, reference

DTYPES = [torch.float32, torch.float64]
CHOICES = [backend.NATIVE, backend.TORCH]
# Of a group in each tensor: around vectors and blocks of 4,096, and more tensors than a launch has.
SIZES: list[list[tuple[int, ...]]] = [
    [(1,)],
    [(5, 3), (5,), ()],
    [(4097,), (4, 4096), (7,)],
    [(0, 3), (2,)],
    [(3, 5)] * 70,
]


def drawn(groups: int, sizes: list[tuple[int, ...]], dtype: torch.dtype, device: Any) -> Any:
    """Gradients, the norm of each group about ten times that of the next."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for size in sizes:
        x = torch.randn(groups, *size, generator=generator, dtype=torch.float64)
        x *= 10.0 ** -torch.arange(groups).view(-1, *[1] * len(size))
        made.append(x.to(device, dtype))
    return made


def clipped(function: Any, gradients: list[Tensor], limit: float, per_group: bool) -> list[Tensor]:
    """Norms, and the gradients afterwards."""
    copies = [x.clone() for x in gradients]
    return [function(copies, limit, per_group=per_group), *copies]


@pytest.mark.parametrize("ops", CHOICES)
def test_by_hand(ops, device):
    gradients = [
        torch.tensor([[3.0], [0.3], [0.0]], device=device),
        torch.tensor([[0.0, 4.0], [0.4, 0.0], [0.0, 0.0]], device=device),
    ]
    norms, first, second = clipped(ops.clip_norms, gradients, 2.5, per_group=True)
    torch.testing.assert_close(norms.cpu(), torch.tensor([5.0, 0.5, 0.0]))
    torch.testing.assert_close(first.cpu(), torch.tensor([[1.5], [0.3], [0.0]]))
    torch.testing.assert_close(second.cpu(), torch.tensor([[0.0, 2.0], [0.4, 0.0], [0.0, 0.0]]))
    norms, first, _ = clipped(ops.clip_norms, gradients, 10.0, per_group=False)
    torch.testing.assert_close(norms.cpu(), torch.tensor([25.25]).sqrt())
    assert torch.equal(first, gradients[0])


@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("limit", [0.3, 20.0, 1e6, math.inf])
@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: str(sizes[:3]))
@pytest.mark.parametrize("groups", [0, 1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(dtype, groups, sizes, limit, per_group, device):
    gradients = drawn(groups, sizes, dtype, device)
    ours = clipped(clip_norms, gradients, limit, per_group)
    # In float64: over some ten thousand numbers, torch's norms are less precise than ours.
    wide = [x.double() for x in gradients]
    theirs = clipped(reference.clip_norms, wide, limit, per_group)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a, b.to(dtype))


@pytest.mark.parametrize("limit", [0.3, 1e6])
def test_together_it_is_that_of_torch(limit, device):
    gradients = drawn(2, SIZES[2], torch.float64, device)
    parameters = [nn.Parameter(torch.zeros_like(x)) for x in gradients]
    for parameter, x in zip(parameters, gradients, strict=True):
        parameter.grad = x.clone()
    wanted = nn.utils.clip_grad_norm_(parameters, limit)
    norms, *after = clipped(clip_norms, gradients, limit, per_group=False)
    torch.testing.assert_close(norms.squeeze(0), wanted)
    for x, parameter in zip(after, parameters, strict=True):
        torch.testing.assert_close(x, parameter.grad)


def test_gradients_below_the_limit_keep_their_bits(device):
    gradients = drawn(3, SIZES[1], torch.float32, device)
    _, *after = clipped(clip_norms, gradients, 1.0, per_group=True)
    for x, before in zip(after, gradients, strict=True):
        assert torch.equal(x[2], before[2])
        assert not torch.equal(x[0], before[0])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_not_hidden(value, device):
    gradients = drawn(3, SIZES[1], torch.float32, device)
    gradients[1][1, 2] = value
    for function in (clip_norms, reference.clip_norms):
        norms, *after = clipped(function, gradients, 1.0, per_group=True)
        assert norms.isfinite().tolist() == [True, False, True]
        assert [bool(x.isfinite().all()) for x in after[1]] == [True, False, True]
        assert clipped(function, gradients, 1.0, per_group=False)[0].isfinite().tolist() == [False]


def test_opcheck(device):
    gradients = drawn(2, SIZES[1], torch.float64, device)
    torch.library.opcheck(torch.ops.mg2l.clip_norms.default, (gradients, 0.5, True))
    torch.library.opcheck(torch.ops.mg2l.clip_norms.default, (gradients, 0.5, False))


def test_results_do_not_depend_on_the_number_of_threads(threads):
    gradients = drawn(2, [(300, 300), (77,)], torch.float32, "cpu")
    torch.set_num_threads(1)
    alone = clipped(clip_norms, gradients, 0.3, per_group=True)
    torch.set_num_threads(3)
    for a, b in zip(clipped(clip_norms, gradients, 0.3, per_group=True), alone, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("gradients", "limit", "message"),
    [
        ([], 1.0, "clip_norms: gradients must not be empty"),
        ([torch.zeros(2)], 0.0, "clip_norms: limit must be positive, got 0"),
        ([torch.zeros(2)], math.nan, "limit must be positive"),
        ([torch.zeros(2).long()], 1.0, r"gradients\[0\] must be float32 or float64, got int64"),
        (
            [torch.zeros(2), torch.zeros(2).double()],
            1.0,
            r"gradients\[1\] must be float32, got float64",
        ),
        ([torch.zeros(2, 3).t()], 1.0, r"gradients\[0\] must be contiguous"),
        (
            [torch.zeros(2, 3), torch.zeros(3)],
            1.0,
            r"gradients\[1\] must have shape \[G, \*\] = \[2, \*\], got \[3\]",
        ),
        ([torch.zeros(())], 1.0, r"gradients\[0\] must have shape \[G, \*\], got \[\]"),
    ],
)
def test_refusals(gradients, limit, message):
    with pytest.raises(RuntimeError, match=message):
        clip_norms(gradients, limit, per_group=True)
