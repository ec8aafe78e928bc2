from typing import Any

import pytest
import torch
from torch import Tensor

from mg2l.ops import pia_pool, reference

# Shape of x and the axis of the sets.
SHAPES = [
    ((1, 1), 0),
    ((3, 2, 64), -2),
    ((2, 100, 3, 24), 1),
    ((4, 33, 7), 1),
    ((5, 2, 3, 6), 0),
    ((0, 3, 4), 1),
    ((2, 3, 2, 4, 5), 2),
]
TOLERANCE: dict[torch.dtype, dict[str, Any]] = {
    torch.float32: {"rtol": 2e-5, "atol": 1e-5},
    torch.float64: {},
}


def inputs(
    shape: tuple[int, ...],
    dim: int,
    heads: int = 1,
    masked: bool = False,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
    """Arguments and keyword arguments; with a mask the first set is empty."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    query = torch.randn(heads, shape[-1], generator=generator, dtype=torch.float64)
    mask = None
    if masked:
        mask = torch.rand(shape[:-1], generator=generator) < 0.7
        sets = mask.movedim(dim + 1 if dim < 0 else dim, -1)
        if sets.numel():
            sets[(0,) * (sets.dim() - 1)] = False
        mask = mask.to(device)
    return (x.to(device, dtype), query.to(device, dtype)), {"dim": dim, "mask": mask}


def gradients(function: Any, arguments: tuple[Tensor, ...], options: dict[str, Any]) -> Any:
    leaves = [a.detach().clone().requires_grad_() for a in arguments]
    pooled = function(*leaves, **options).pooled
    cotangent = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(1)).to(pooled)
    return torch.autograd.grad((pooled * cotangent).sum(), leaves)


def assert_same(arguments: tuple[Tensor, ...], options: dict[str, Any], dtype: torch.dtype) -> None:
    result = pia_pool(*arguments, **options, return_weights=True)
    expected = reference.pia_pool(*arguments, **options, return_weights=True)
    mask = options["mask"]
    if mask is not None:  # the reference divides 0 by 0 in sets without members
        dim = options["dim"]
        empty = ~mask.movedim(dim + 1 if dim < 0 else dim, -1).any(-1)
        assert not bool(result.pooled[empty].any())
    torch.testing.assert_close(result.pooled, expected.pooled, **TOLERANCE[dtype])
    torch.testing.assert_close(result.weights, expected.weights, **TOLERANCE[dtype])
    ours, theirs = (gradients(f, arguments, options) for f in (pia_pool, reference.pia_pool))
    tolerance: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {}
    for grad, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(grad, wanted.nan_to_num(0), **tolerance)


@pytest.mark.parametrize("masked", [False, True], ids=["full", "masked"])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize(("shape", "dim"), SHAPES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_matches_reference(dtype, shape, dim, heads, masked, device):
    arguments, options = inputs(shape, dim, heads, masked, dtype, device)
    assert_same(arguments, options, dtype)


def test_strided_inputs(device):
    arguments, options = inputs((6, 9, 8), 1, 2, True, torch.float32, device)
    wide = torch.stack([arguments[0]] * 2, -1)[..., 0]
    assert not wide.is_contiguous()
    assert_same((wide, arguments[1].t().contiguous().t()), options, torch.float32)


def test_an_empty_set_pools_to_zero_and_has_no_gradients(device):
    x = torch.randn(2, 5, 3, device=device, requires_grad=True)
    query = torch.randn(1, 3, device=device, requires_grad=True)
    mask = torch.tensor([[False] * 5, [True] * 5], device=device)
    result = pia_pool(x, query, mask=mask, return_weights=True)
    assert not bool(result.pooled[0].any())
    assert result.weights is not None
    assert not bool(result.weights[0].any())
    result.pooled.sum().backward()
    assert x.grad is not None
    assert not bool(x.grad[0].any())
    assert bool(x.grad[1].any())


@pytest.mark.parametrize("scale", [1e-3, 100.0])
def test_large_logits_do_not_overflow(scale, device):
    arguments, options = inputs((4, 200, 16), 1, 1, True, torch.float32, device)
    x, query = arguments
    result = pia_pool(x * scale, query * scale, **options).pooled
    expected = reference.pia_pool(x.double() * scale, query.double() * scale, **options).pooled
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck(masked, device):
    arguments, options = inputs((2, 4, 2, 3), 1, 2, masked, device=device)
    leaves = [a.requires_grad_() for a in arguments]
    assert torch.autograd.gradcheck(lambda *a: pia_pool(*a, **options).pooled, leaves)


@pytest.mark.parametrize("masked", [False, True])
def test_opcheck(masked, device):
    (x, query), options = inputs((2, 9, 3, 4), 1, 2, masked, torch.float32, device)
    torch.library.opcheck(
        torch.ops.mg2l.pia_pool.default,
        (x.requires_grad_(), query.requires_grad_(), options["mask"], False),
        rtol=1e-4,
        atol=1e-5,
    )


def test_results_do_not_depend_on_the_number_of_threads(threads):
    arguments, options = inputs((64, 70, 64), 1, 2, True, torch.float32)
    torch.set_num_threads(1)
    alone = gradients(pia_pool, arguments, options)
    torch.set_num_threads(3)
    for ours, theirs in zip(gradients(pia_pool, arguments, options), alone, strict=True):
        assert torch.equal(ours, theirs)


REFUSALS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "last axis": ({"dim": -1}, ValueError, r"dim must be an axis of x \[2, 5, 3\] before the last"),
    "no axis": ({"dim": 4}, ValueError, "dim must be an axis of x"),
    "mask shape": (
        {"mask": torch.ones(2, 4, dtype=torch.bool)},
        ValueError,
        r"mask must have shape \[2, 5\], got \[2, 4\]",
    ),
    "mask dtype": (
        {"mask": torch.ones(2, 5)},
        RuntimeError,
        "pia_pool: mask must be bool, got float32",
    ),
    "query width": (
        {"query": torch.zeros(1, 4)},
        RuntimeError,
        r"pia_pool: query must have shape \[heads, D\] with D = 3, got \[1, 4\]",
    ),
    "query dtype": (
        {"query": torch.zeros(1, 3).double()},
        RuntimeError,
        "pia_pool: query must be float32, got float64",
    ),
    "integers": (
        {"x": torch.zeros(2, 5, 3, dtype=torch.int64)},
        RuntimeError,
        "pia_pool: x must be float32 or float64, got int64",
    ),
    "no inputs": (
        {"x": torch.zeros(2, 0, 3)},
        RuntimeError,
        "pia_pool: a set must hold at least 1 input, got 0",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refuses(case):
    change, error, message = REFUSALS[case]
    arguments: dict[str, Any] = {"x": torch.zeros(2, 5, 3), "query": torch.zeros(1, 3), **change}
    with pytest.raises(error, match=message):
        pia_pool(**arguments)
