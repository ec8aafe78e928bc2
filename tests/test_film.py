"""Features that are scaled and shifted: values, gradients, and against the definition."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mg2l.ops import backend, film, reference
from mg2l.ops.film import film_vjp

DTYPES = [torch.float32, torch.float64]
CHOICES = [backend.NATIVE, backend.TORCH]
# Agents, rows, latents (0: one for each row), width: around vectors, strips and warps.
SHAPES = [
    (1, 1, 0, 1), (2, 7, 0, 5), (3, 40, 0, 128), (1, 1, 1, 1), (2, 33, 4, 5), (2, 70, 3, 67),
    (3, 300, 40, 128), (2, 5, 9, 130), (2, 0, 3, 4), (2, 0, 0, 4), (0, 3, 2, 4), (2, 3, 2, 0),
]  # fmt: skip


def drawn(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: Any
) -> tuple[Tensor, Tensor, Tensor | None]:
    groups, rows, latents, width = shape
    generator = torch.Generator().manual_seed(0)

    def randn(*sizes: int) -> Tensor:
        x = torch.randn(*sizes, generator=generator, dtype=torch.float64)
        return x.to(device, dtype)

    index = None
    if latents:
        index = torch.randint(latents, (rows,), generator=generator).to(device)
    return randn(groups, rows, width), randn(groups, latents or rows, 2 * width), index


def results(function: Any, features: Tensor, generated: Tensor, index: Tensor | None) -> Any:
    """The value, and the gradients of a weighted sum of it."""
    leaves = [x.detach().requires_grad_() for x in (features, generated)]
    y = function(*leaves, index)
    weights = torch.linspace(-1, 2, max(y.numel(), 1), dtype=y.dtype, device=y.device)
    gradients = torch.autograd.grad((y * weights[: y.numel()].view(y.shape)).sum(), leaves)
    with torch.no_grad():
        again = function(*leaves, index)
    torch.testing.assert_close(again, y.detach(), rtol=0, atol=0, equal_nan=True)
    return [y.detach(), *gradients]


@pytest.mark.parametrize("ops", CHOICES)
def test_rows_are_scaled_and_shifted(ops, device):
    features = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]], device=device)
    generated = torch.tensor([[[0.0, 1.0, 10.0, 20.0], [-1.0, 0.5, 0.0, 1.0]]], device=device)
    found = ops.film(features, generated)
    assert found.tolist() == [[[11.0, 24.0], [0.0, 7.0]]]
    found = ops.film(features, generated, torch.tensor([1, 1], device=device))
    assert found.tolist() == [[[0.0, 4.0], [0.0, 7.0]]]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(dtype, shape, device):
    given = drawn(shape, dtype, device)
    for a, b in zip(results(film, *given), results(reference.film, *given), strict=True):
        assert a.dtype == dtype
        assert a.is_contiguous()
        torch.testing.assert_close(a, b, rtol=1e-5 if dtype == torch.float32 else 1e-10, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_without_a_graph(shape, device):
    features, generated, index = drawn(shape, torch.float64, device)
    leaves = features.clone().requires_grad_(), generated.clone().requires_grad_()
    wanted = film(*leaves, index)
    grad = torch.randn(wanted.shape, dtype=wanted.dtype, device=device)
    with torch.no_grad():
        y, pull = film_vjp(features, generated, index)
        found = pull(grad)
    assert torch.equal(y, wanted)
    for a, b in zip(found, torch.autograd.grad(wanted, leaves, grad), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("latents", [0, 3])
def test_arguments_may_be_strided(latents, device):
    features, generated, index = drawn((3, 20, latents, 6), torch.float64, device)

    def spread(x):
        return None if x is None else torch.stack([x, x + 1], -1)[..., 0]

    wide = spread(features), spread(generated), spread(index)
    for a, b in zip(results(film, *wide), results(film, features, generated, index), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("latents", [0, 3])
def test_gradcheck(latents, device):
    features, generated, index = drawn((2, 6, latents, 3), torch.float64, device)
    leaves = (features.requires_grad_(), generated.requires_grad_())
    assert torch.autograd.gradcheck(lambda f, g: film(f, g, index), leaves)


@pytest.mark.parametrize("latents", [0, 3])
def test_opcheck(latents, device):
    features, generated, index = drawn((2, 6, latents, 3), torch.float64, device)
    leaves = (features.requires_grad_(), generated.requires_grad_())
    torch.library.opcheck(torch.ops.mg2l.film.default, (*leaves, index))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("latents", [0, 3])
@pytest.mark.parametrize("which", [0, 1])
def test_what_is_not_finite_is_not_hidden(which, latents, value, device):
    given = drawn((2, 9, latents, 20), torch.float32, device)
    changed = given[which]
    assert changed is not None
    changed[1, 2, 3] = value
    for a, b in zip(results(film, *given), results(reference.film, *given), strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)


def test_latents_of_no_row_have_no_gradient(device):
    features, generated, _ = drawn((2, 4, 3, 5), torch.float64, device)
    index = torch.full((4,), 1, device=device)
    _, _, to_generated = results(film, features, generated, index)
    assert not to_generated[:, [0, 2]].any()
    assert to_generated[:, 1].all()


@pytest.mark.parametrize("latents", [0, 40])
def test_results_do_not_depend_on_the_number_of_threads(threads, latents):
    given = drawn((3, 3000, latents, 200), torch.float32, "cpu")
    torch.set_num_threads(1)
    alone = results(film, *given)
    torch.set_num_threads(3)
    for a, b in zip(results(film, *given), alone, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(2, 5)}, r"features must have shape \[A, rows, H\], got \[2, 5\]"),
        ({"features": torch.zeros(2, 5, 3).half()}, "features must be float32 or float64"),
        ({"generated": torch.zeros(2, 4, 3)}, r"\[A, N, 2 H\] = \[2, 4, 6\], got \[2, 4, 3\]"),
        ({"generated": torch.zeros(1, 4, 6)}, "generated must have shape"),
        ({"generated": torch.zeros(4, 6)}, r"generated must have shape \[A, N, 2 H\], got \[4, 6"),
        ({"generated": torch.zeros(2, 4, 6).double()}, "generated must be float32, got float64"),
        ({"index": None}, r"generated must have shape \[A, rows, 2 H\] = \[2, 5, 6\], got \[2, 4"),
        ({"index": torch.zeros(4).long()}, r"index must have shape \[rows\] = \[5\], got \[4\]"),
        ({"index": torch.zeros(5).int()}, "index must be int64, got int32"),
    ],
)
def test_refuses(change, message):
    given: dict[str, Any] = {"features": torch.zeros(2, 5, 3), "generated": torch.zeros(2, 4, 6)}
    given["index"] = torch.zeros(5).long()
    with pytest.raises(RuntimeError, match=message):
        film(**{**given, **change})


@pytest.mark.parametrize("number", [-1, 4, 10**12])
def test_refuses_an_index_out_of_range(number):
    features, generated = torch.zeros(2, 5, 3), torch.zeros(2, 4, 6)
    index = torch.tensor([0, 1, number, 3, 2])
    message = rf"film: index must be in \[0, N\) = \[0, 4\), got {number}"
    with pytest.raises(RuntimeError, match=message):
        film(features, generated, index)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.mg2l.film_backward(features, features, generated, index)


def test_backward_refuses_a_gradient_of_another_shape():
    features, generated = torch.zeros(2, 5, 3), torch.zeros(2, 5, 6)
    with pytest.raises(RuntimeError, match=r"film_backward: grad must have shape \[A, rows, H\]"):
        torch.ops.mg2l.film_backward(features[:, 1:], features, generated, None)
