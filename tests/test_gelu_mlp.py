import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from mg2l.ops import gelu_mlp, reference

# Rows, and widths from the input on. Around vectors of 4 to 16, tiles of 48 and parts of 384.
SIZES: list[tuple[int, tuple[int, ...]]] = [
    (1, (1, 1)),
    (5, (12, 32, 32)),
    (49, (27, 64, 65, 33)),
    (389, (7, 20, 12, 3)),
    (1600, (14, 64, 64, 64, 7)),
    (0, (4, 8, 2)),
    (3, (0, 4, 2)),
]
DTYPES = [torch.float32, torch.float64]


def inputs(
    rows: int,
    widths: tuple[int, ...],
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(device, dtype)

    pairs = list(itertools.pairwise(widths))
    return (
        draw(rows, widths[0]),
        [draw(units, inputs, scale=max(inputs, 1) ** -0.5) for inputs, units in pairs],
        [draw(units) for _, units in pairs],
    )


def results(function: Any, given: Any) -> list[Tensor]:
    """The value and all gradients."""
    x, weights, biases = given
    leaves = [t.detach().requires_grad_() for t in (x, *weights, *biases)]
    layers = len(weights)
    y = function(leaves[0], leaves[1 : 1 + layers], leaves[1 + layers :])
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return [y.detach(), *torch.autograd.grad((y * cotangent).sum(), leaves)]


def assert_same(given: Any, dtype: torch.dtype) -> None:
    """At most twice the error of plain torch in the same precision, and a few digits of it."""
    x, weights, biases = given
    wide = (x.double(), [w.double() for w in weights], [b.double() for b in biases])
    exact = results(reference.gelu_mlp, wide)
    plain, ours = (results(f, given) for f in (reference.gelu_mlp, gelu_mlp))
    for one, other, right in zip(ours, plain, exact, strict=True):
        assert one.dtype == dtype
        assert one.shape == right.shape
        if dtype == torch.float64:
            torch.testing.assert_close(one, right)
        elif right.numel():
            allowed = 2 * float((other.double() - right).abs().max())
            allowed += 64 * torch.finfo(dtype).eps * max(float(right.abs().max()), 1.0)
            assert float((one.double() - right).abs().max()) <= allowed


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(dtype, sizes, device):
    rows, widths = sizes
    assert_same(inputs(rows, widths, dtype, device), dtype)


def test_tensors_may_be_strided(device):
    x, weights, biases = inputs(50, (6, 8, 4), device=device)
    given = [torch.stack([t, t], -1)[..., 0] for t in (x, *weights, *biases)]
    assert not given[0].is_contiguous()
    strided = (given[0], given[1:3], given[3:])
    for one, other in zip(
        results(gelu_mlp, strided), results(gelu_mlp, (x, weights, biases)), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_nothing_is_kept_without_gradients(device):
    x, weights, biases = inputs(5, (3, 4, 6, 2), device=device)
    plain, none = torch.ops.mg2l.gelu_mlp(x, weights, biases, False)
    y, kept = torch.ops.mg2l.gelu_mlp(x, weights, biases, True)
    assert torch.equal(plain, y)
    assert [tensor.numel() for tensor in (none, kept)] == [0, 5 * (4 + 6)]
    first = torch.nn.functional.linear(x, weights[0], biases[0])
    torch.testing.assert_close(kept[:20].view(5, 4), first)


def test_only_wanted_gradients(device):
    given = inputs(50, (6, 8, 4), torch.float32, device)
    wanted = results(gelu_mlp, given)
    x, weights, biases = given
    weights = [weight.requires_grad_() for weight in weights]
    y = gelu_mlp(x, weights, biases)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    for grad, other in zip(torch.autograd.grad(y, weights, cotangent), wanted[2:4], strict=True):
        torch.testing.assert_close(grad, other)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden(value, device):
    x, weights, biases = inputs(60, (4, 5, 5), torch.float32, device)
    weights[0][2] = value
    ours, theirs = (f(x, weights, biases) for f in (gelu_mlp, reference.gelu_mlp))
    torch.testing.assert_close(ours.isfinite(), theirs.isfinite())
    x, weights, biases = inputs(60, (4, 5, 5), torch.float32, device)
    x[50] = float("nan")
    y, *gradients = results(gelu_mlp, (x, weights, biases))
    assert y[50].isnan().all()
    assert y[:50].isfinite().all()
    assert y[51:].isfinite().all()
    assert all(gradient.isnan().any() for gradient in gradients[1:3])


def test_gradcheck(device):
    x, weights, biases = inputs(3, (4, 5, 3, 2), device=device)
    leaves = [t.requires_grad_() for t in (x, *weights, *biases)]

    def function(x: Tensor, *layers: Tensor) -> Tensor:
        return gelu_mlp(x, layers[:3], layers[3:])

    assert torch.autograd.gradcheck(function, leaves)


def test_opcheck(device):
    x, weights, biases = inputs(5, (3, 4, 2), torch.float32, device)
    leaves = [t.requires_grad_() for t in (x, *weights, *biases)]
    torch.library.opcheck(
        torch.ops.mg2l.gelu_mlp.default,
        (leaves[0], leaves[1:3], leaves[3:], True),
        rtol=1e-4,
        atol=1e-5,
    )


def test_results_do_not_depend_on_the_number_of_threads(threads):
    given = inputs(3000, (20, 64, 64, 7), torch.float32)
    torch.set_num_threads(1)
    alone = results(gelu_mlp, given)
    torch.set_num_threads(3)
    for one, other in zip(results(gelu_mlp, given), alone, strict=True):
        assert torch.equal(one, other)


def layer(units: int = 4, inputs: int = 3) -> Tensor:
    return torch.zeros(units, inputs)


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "axes": ({"x": torch.zeros(2, 5, 3)}, r"x must have shape \[rows, in\], got \[2, 5, 3\]"),
    "integers": ({"x": torch.zeros(5, 3).long()}, "x must be float32 or float64, got int64"),
    "no layers": ({"weights": [], "biases": []}, "weights must hold at least one layer, got 0"),
    "biases": ({"biases": []}, "biases must be as many as weights, 1, got 0"),
    "weight axes": ({"weights": [torch.zeros(4)]}, r"weights\[0\] must have shape \[units, in\]"),
    "inputs": (
        {"weights": [layer(inputs=2)]},
        r"weights\[0\] must have shape \[units, in\] = \[4, 3\], got \[4, 2\]",
    ),
    "no units": ({"weights": [layer(units=0)]}, "must have at least one unit, got 0"),
    "dtype": ({"weights": [layer().double()]}, r"weights\[0\] must be float32, got float64"),
    "bias": ({"biases": [torch.zeros(3)]}, r"biases\[0\] must have shape \[units\] = \[4\], got"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refuses(case):
    change, message = REFUSALS[case]
    arguments: dict[str, Any] = {
        "x": torch.zeros(5, 3),
        "weights": [layer()],
        "biases": [torch.zeros(4)],
        **change,
    }
    with pytest.raises(RuntimeError, match=f"gelu_mlp: .*{message}"):
        gelu_mlp(**arguments)
