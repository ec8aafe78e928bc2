from typing import Any

import pytest
import torch
from torch import Tensor

from mg2l.ops import pairwise_lse, reference

# Groups, queries, keys, width: none of them a multiple of a tile, and one that is.
SIZES = [
    ((), 1, 1, 1),
    ((), 5, 7, 3),
    ((2,), 50, 130, 16),
    ((), 96, 64, 32),
    ((2, 3), 4, 9, 5),
    ((0,), 3, 4, 2),
    ((), 0, 4, 2),
]
FILTERS = ["none", "labels", "mask", "both", "clip"]
TOLERANCE: dict[torch.dtype, dict[str, Any]] = {
    torch.float32: {"rtol": 2e-5, "atol": 2e-5},
    torch.float64: {},
}
GRADIENT_TOLERANCE: dict[torch.dtype, dict[str, Any]] = {
    torch.float32: {"rtol": 5e-4, "atol": 5e-4},
    torch.float64: {},
}


def inputs(
    size: tuple[tuple[int, ...], int, int, int],
    gaussian: bool = False,
    filters: str = "none",
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> tuple[dict[str, Any], list[str]]:
    """Arguments, and the names of those that have gradients."""
    groups, batch, count, width = size
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*groups, *shape, generator=g, dtype=torch.float64).to(device, dtype)

    def integers(high: int, *shape: int) -> Tensor:
        return torch.randint(high, (*groups, *shape), generator=g).to(device)

    arguments: dict[str, Any] = {
        "queries": normal(batch, width),
        "keys": normal(count, width),
        "positive": integers(count, batch),
        "scale": 0.7,
    }
    leaves = ["queries", "keys"]
    if gaussian:
        arguments["std"] = normal(count, width).abs() + 0.3
        leaves.append("std")
    if filters in ("labels", "both"):
        arguments |= {"query_labels": integers(3, batch), "key_labels": integers(3, count)}
    if filters in ("mask", "both"):
        arguments["mask"] = integers(2, batch, count).bool()
        if batch:
            arguments["mask"][..., 0, :] = False
    if filters in ("clip", "both"):
        arguments["clip"] = 1.0
    return arguments, leaves


def gradients(function: Any, arguments: dict[str, Any], leaves: list[str]) -> tuple[Tensor, ...]:
    """Gradients of a random combination of all finite results."""
    given = arguments | {name: arguments[name].detach().clone().requires_grad_() for name in leaves}
    result = function(**given)
    g = torch.Generator().manual_seed(1)
    total = sum(
        (torch.where(x.isfinite(), x, 0) * torch.randn(x.shape, generator=g).to(x)).sum()
        for x in result[:4]
    )
    assert isinstance(total, Tensor)
    return torch.autograd.grad(total, [given[name] for name in leaves])


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("gaussian", [False, True], ids=["dot", "gaussian"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_matches_reference(dtype, size, gaussian, filters, device):
    arguments, leaves = inputs(size, gaussian, filters, dtype, device)
    result, expected = pairwise_lse(**arguments), reference.pairwise_lse(**arguments)
    for name, ours, theirs in zip(result._fields, result, expected, strict=True):
        tolerance = TOLERANCE[dtype] if ours.is_floating_point() else {}
        torch.testing.assert_close(ours, theirs, **tolerance)
        assert ours.dtype == theirs.dtype, name
    ours_theirs = (gradients(f, arguments, leaves) for f in (pairwise_lse, reference.pairwise_lse))
    for grad, wanted in zip(*ours_theirs, strict=True):
        torch.testing.assert_close(grad, wanted, **GRADIENT_TOLERANCE[dtype])


def test_strided_inputs(device):
    arguments, leaves = inputs(((2,), 20, 30, 8), True, "both", torch.float64, device)
    for name in ("queries", "keys", "std"):
        arguments[name] = arguments[name].transpose(1, 2).contiguous().transpose(1, 2)
        assert not arguments[name].is_contiguous()
    ours_theirs = (gradients(f, arguments, leaves) for f in (pairwise_lse, reference.pairwise_lse))
    for grad, wanted in zip(*ours_theirs, strict=True):
        torch.testing.assert_close(grad, wanted)


def test_without_negatives(device):
    """Then only the positive is left, and nothing is not a number."""
    query = torch.randn(2, 3, device=device, requires_grad=True)
    key = torch.randn(4, 3, device=device, requires_grad=True)
    mask = torch.tensor([[False] * 4, [True] * 4], device=device)
    result = pairwise_lse(query, key, torch.tensor([1, 2], device=device), mask=mask)
    assert result.negatives.tolist() == [0, 3]
    assert result.rank[0] == 0
    assert result.mean[0] == 0
    assert result.lse_negatives[0] == -torch.inf
    torch.testing.assert_close(result.lse[0], result.positive[0])
    result.lse.sum().backward()
    for leaf in (query, key):
        assert leaf.grad is not None
        assert bool(leaf.grad.isfinite().all())


@pytest.mark.parametrize("gaussian", [False, True])
def test_a_copy_of_the_positive_ties_with_it(gaussian, device):
    g = torch.Generator().manual_seed(0)
    keys = torch.randn(1, 70, generator=g).expand(130, 70).to(device)
    queries = torch.randn(60, 70, generator=g).to(device)
    positive = torch.randint(130, (60,), generator=g).to(device)
    std = torch.full_like(keys, 0.3) if gaussian else None
    assert not bool(pairwise_lse(queries, keys, positive, std=std).rank.any())


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_large_scores_do_not_overflow(scale, device):
    arguments, leaves = inputs(((), 60, 100, 16), dtype=torch.float32, device=device)
    arguments["scale"] = scale
    double = {k: v.double() if k in leaves else v for k, v in arguments.items()}
    result, expected = pairwise_lse(**arguments), reference.pairwise_lse(**double)
    for ours, theirs in zip(result[:4], expected[:4], strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5 * scale + 1e-6)


def test_narrow_gaussians_far_from_the_origin(device):
    """Squares of large numbers must not cancel."""
    g = torch.Generator().manual_seed(0)
    keys = 50 + 1e-2 * torch.randn(80, 8, generator=g, dtype=torch.float64)
    queries = keys[:40] + 1e-2 * torch.randn(40, 8, generator=g, dtype=torch.float64)
    arguments: dict[str, Any] = {
        "queries": queries.float().to(device),
        "keys": keys.float().to(device),
        "positive": torch.arange(40, device=device),
        "std": torch.full((80, 8), 1e-2, device=device),
    }
    leaves = ["queries", "keys", "std"]
    double = {k: v.double() if k in leaves else v for k, v in arguments.items()}
    torch.testing.assert_close(
        pairwise_lse(**arguments).lse.double(),
        reference.pairwise_lse(**double).lse,
        rtol=1e-4,
        atol=1e-3,
    )
    ours = gradients(pairwise_lse, arguments, leaves)
    for grad, wanted in zip(ours, gradients(reference.pairwise_lse, double, leaves), strict=True):
        torch.testing.assert_close(
            grad.double(), wanted, rtol=1e-2, atol=1e-3 * float(wanted.abs().max())
        )


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("gaussian", [False, True], ids=["dot", "gaussian"])
def test_gradcheck(gaussian, filters, device):
    arguments, leaves = inputs(((), 4, 5, 3), gaussian, filters, device=device)

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        result = pairwise_lse(**arguments | dict(zip(leaves, values, strict=True)))
        kept = torch.where(result.lse_negatives.isfinite(), result.lse_negatives, 0)
        return result.lse, kept, result.mean, result.positive

    values = [arguments[name].requires_grad_() for name in leaves]
    assert torch.autograd.gradcheck(function, values)


@pytest.mark.parametrize("filters", ["none", "both"])
@pytest.mark.parametrize("gaussian", [False, True], ids=["dot", "gaussian"])
def test_opcheck(gaussian, filters, device):
    arguments, leaves = inputs(((2,), 9, 12, 4), gaussian, filters, torch.float32, device)
    for name in leaves:
        arguments[name].requires_grad_()
    order = ("std", "query_labels", "key_labels", "mask", "clip")
    torch.library.opcheck(
        torch.ops.mg2l.pairwise_lse.default,
        (
            *(arguments[name] for name in ("queries", "keys", "positive", "scale")),
            *(arguments.get(name) for name in order),
        ),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("gaussian", [False, True], ids=["dot", "gaussian"])
def test_results_do_not_depend_on_the_number_of_threads(gaussian, threads):
    arguments, leaves = inputs(((), 500, 300, 24), gaussian, "labels", torch.float32)
    torch.set_num_threads(1)
    alone, gradients_alone = pairwise_lse(**arguments), gradients(pairwise_lse, arguments, leaves)
    torch.set_num_threads(3)
    together = pairwise_lse(**arguments), gradients(pairwise_lse, arguments, leaves)
    for ours, theirs in zip((*together[0], *together[1]), (*alone, *gradients_alone), strict=True):
        assert torch.equal(ours, theirs)


def test_more_queries_than_are_multiplied_at_a_time(device):
    """On CUDA the products of so many queries are made in two chunks."""
    arguments, leaves = inputs(((), 65_600, 5, 3), False, "both", torch.float64, device)
    for ours, theirs in zip(
        pairwise_lse(**arguments), reference.pairwise_lse(**arguments), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    ours_theirs = (gradients(f, arguments, leaves) for f in (pairwise_lse, reference.pairwise_lse))
    for grad, wanted in zip(*ours_theirs, strict=True):
        torch.testing.assert_close(grad, wanted)


def test_info_nce_from_its_parts(device):
    arguments, _ = inputs(((), 32, 32, 8), dtype=torch.float32, device=device)
    arguments["positive"] = torch.arange(32, device=device)
    result = pairwise_lse(**arguments)
    scores = arguments["scale"] * arguments["queries"] @ arguments["keys"].t()
    wanted = -torch.nn.functional.cross_entropy(scores, arguments["positive"])
    torch.testing.assert_close((result.positive - result.lse).mean(), wanted)
    assert torch.equal(result.rank == 0, scores.argmax(1) == arguments["positive"])


REFUSALS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "clip": ({"clip": 0.0}, ValueError, "clip must be positive, got 0.0"),
    "one axis": (
        {"queries": torch.zeros(3)},
        ValueError,
        r"queries must have shape \[\*G, B, D\], got \[3\]",
    ),
    "groups": (
        {"keys": torch.zeros(2, 5, 3)},
        ValueError,
        r"keys must have 2 axes after those of the groups \[\], got \[2, 5, 3\]",
    ),
    "width": (
        {"keys": torch.zeros(5, 4)},
        RuntimeError,
        r"keys must have shape \[G, M, D\] with G = 1 and D = 3, got \[1, 5, 4\]",
    ),
    "dtype": (
        {"keys": torch.zeros(5, 3).double()},
        RuntimeError,
        "pairwise_lse: keys must be float32, got float64",
    ),
    "integers": (
        {"queries": torch.zeros(2, 3, dtype=torch.int64)},
        RuntimeError,
        "pairwise_lse: queries must be float32 or float64, got int64",
    ),
    "positive dtype": (
        {"positive": torch.zeros(2)},
        RuntimeError,
        "pairwise_lse: positive must be int64, got float32",
    ),
    "positive shape": (
        {"positive": torch.zeros(3, dtype=torch.int64)},
        RuntimeError,
        r"positive must have shape \[G, B\] = \[1, 2\], got \[1, 3\]",
    ),
    "positive range": (
        {"positive": torch.tensor([0, 5])},
        RuntimeError,
        r"positive must lie in \[0, M\) with M = 5, got 5",
    ),
    "no keys": (
        {"keys": torch.zeros(0, 3)},
        RuntimeError,
        "there must be at least 1 key, got 0",
    ),
    "std": ({"std": torch.ones(4, 3)}, RuntimeError, "std must have shape of keys"),
    "one label": (
        {"query_labels": torch.zeros(2, dtype=torch.int64)},
        RuntimeError,
        "query_labels and key_labels must be given together, got only query_labels",
    ),
    "mask": (
        {"mask": torch.ones(2, 4, dtype=torch.bool)},
        RuntimeError,
        r"mask must have shape \[G, B, M\] = \[1, 2, 5\], got \[1, 2, 4\]",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refuses(case):
    change, error, message = REFUSALS[case]
    arguments: dict[str, Any] = {
        "queries": torch.zeros(2, 3),
        "keys": torch.zeros(5, 3),
        "positive": torch.zeros(2, dtype=torch.int64),
        **change,
    }
    with pytest.raises(error, match=message):
        pairwise_lse(**arguments)
