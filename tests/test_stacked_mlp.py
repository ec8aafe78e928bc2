import itertools
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from mg2l.ops import native, reference, stacked_mlp

# G, rows, and widths from the input on. Around vectors of 4 to 16, tiles of 96 and parts of 384.
SIZES = [
    (1, 1, (1, 1)),
    (2, 5, (12, 32, 32)),
    (3, 97, (27, 64, 65, 33)),
    (2, 389, (7, 20, 12)),
    (1, 800, (24, 128, 128)),
    (2, 0, (4, 8)),
    (0, 3, (4, 8)),
]
DTYPES = [torch.float32, torch.float64]
needs_bfloat16 = pytest.mark.skipif(
    not native.has_bfloat16(), reason="a CPU without avx512_bf16, or nothing compiled"
)


def inputs(
    groups: int,
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
        draw(groups, rows, widths[0]),
        [draw(groups, units, inputs, scale=inputs**-0.5) for inputs, units in pairs],
        [draw(groups, units) for _, units in pairs],
    )


def results(function: Any, given: Any, options: dict[str, Any]) -> list[Tensor]:
    """The value and all gradients."""
    x, weights, biases = given
    leaves = [t.detach().requires_grad_() for t in (x, *weights, *biases)]
    layers = len(weights)
    y = function(leaves[0], leaves[1 : 1 + layers], leaves[1 + layers :], **options)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return [y.detach(), *torch.autograd.grad((y * cotangent).sum(), leaves)]


def assert_same(given: Any, options: dict[str, Any], dtype: torch.dtype) -> None:
    """At most twice the error of plain torch in the same precision, and a few digits of it."""
    x, weights, biases = given
    wide = (x.double(), [w.double() for w in weights], [b.double() for b in biases])
    exact = results(reference.stacked_mlp, wide, options)
    plain, ours = (results(f, given, options) for f in (reference.stacked_mlp, stacked_mlp))
    for one, other, right in zip(ours, plain, exact, strict=True):
        assert one.dtype == dtype
        if dtype == torch.float64:
            torch.testing.assert_close(one, right)
            continue
        assert one.shape == right.shape
        if right.numel():
            allowed = 2 * float((other.double() - right).abs().max())
            allowed += 64 * torch.finfo(dtype).eps * max(float(right.abs().max()), 1.0)
            assert float((one.double() - right).abs().max()) <= allowed


@pytest.mark.parametrize("relu", [False, True], ids=["tanh", "relu"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(dtype, sizes, relu, device):
    groups, rows, widths = sizes
    given = inputs(groups, rows, widths, dtype, device)
    for plain_last in (False, True)[: len(given[1])]:  # at least one layer is normalised
        assert_same(given, {"relu": relu, "plain_last": plain_last}, dtype)


def test_groups_may_share_their_inputs_and_rows_may_be_strided(device):
    x, weights, biases = inputs(3, 50, (6, 8, 4), torch.float64, device)
    for shared in (x[:1].expand(3, -1, -1), x.transpose(0, 1).contiguous().transpose(0, 1)):
        assert not shared.is_contiguous()
        assert_same((shared, weights, biases), {}, torch.float64)
    wide = torch.stack([x, x], -1)[..., 0]
    assert_same((wide, weights, biases), {}, torch.float64)


def test_nothing_is_kept_without_gradients(device):
    x, weights, biases = inputs(2, 5, (3, 4, 4), device=device)
    plain = torch.ops.mg2l.stacked_mlp(x, weights, biases, True, False, False, False)
    kept = torch.ops.mg2l.stacked_mlp(x, weights, biases, True, False, False, True)
    assert torch.equal(plain[0], kept[0])
    assert [tensor.numel() for tensor in plain[1:]] == [0, 0]
    assert [tensor.numel() for tensor in kept[1:]] == [2 * 5 * 4, 2 * 2 * 5 * 2]


def test_only_wanted_gradients(device):
    x, weights, biases = inputs(2, 5, (3, 4), device=device)
    weights[0].requires_grad_()
    (grad,) = torch.autograd.grad(stacked_mlp(x, weights, biases).sum(), weights)
    assert grad.shape == weights[0].shape


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden(relu, value, device):
    x, weights, biases = inputs(1, 3, (4, 5, 5), torch.float32, device)
    weights[0][0, 2] = value
    ours = stacked_mlp(x, weights, biases, relu=relu)
    theirs = reference.stacked_mlp(x, weights, biases, relu=relu)
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    x, weights, biases = inputs(1, 3, (4, 5, 5), torch.float32, device)
    x[0, 1] = float("nan")
    y = stacked_mlp(x, weights, biases, relu=relu)
    assert y[0, 1].isnan().all()
    assert y[0, [0, 2]].isfinite().all()


def mostly_zeros(x: Tensor, fraction: float = 0.1) -> Tensor:
    """Inputs of which all but about a fraction are 0."""
    generator = torch.Generator().manual_seed(2)
    return x * (torch.rand(x.shape, generator=generator) < fraction).to(x)


@pytest.mark.parametrize("relu", [False, True], ids=["tanh", "relu"])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.3, 0.6])
@pytest.mark.parametrize("widths", [(64, 96, 24), (130, 40, 40), (67, 64), (300, 33, 20)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inputs_that_are_mostly_zeros(dtype, widths, fraction, relu, device):
    x, weights, biases = inputs(2, 391, widths, dtype, device)
    x = mostly_zeros(x, fraction)
    for rows in (x, x[:, :1], x[:1].expand(2, -1, -1)):
        assert_same((rows, weights, biases), {"relu": relu}, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zeros_that_are_left_out_change_no_bit(dtype, device):
    # A tile is listed or not by its first row: the others' results must not depend on it.
    x, weights, biases = inputs(2, 192, (130, 64, 5), dtype, device)
    x = mostly_zeros(x)
    dense = x.clone()
    dense[:, ::96] = 1
    cotangent = torch.randn(2, 192, 5, generator=torch.Generator().manual_seed(3)).to(x)
    cotangent[:, ::96] = 0
    found = []
    for given in (x, dense):
        leaves = [weight.clone().requires_grad_() for weight in weights]
        y = stacked_mlp(given, leaves, biases)
        gradients = torch.autograd.grad((y * cotangent).sum(), leaves)
        found.append([y[:, cotangent[0, :, 0] != 0].detach(), *gradients])
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("place", ["weight", "row", "gradient"])
def test_zeros_do_not_hide_what_is_not_finite(place, device):
    x, weights, biases = inputs(1, 100, (80, 16, 4), torch.float32, device)
    x = mostly_zeros(x)
    x[:, :, 3] = 0
    cotangent = torch.ones(1, 100, 4, device=device)
    if place == "weight":
        weights[0][0, 5, 3] = float("inf")
    elif place == "row":
        x[0, 7, 11] = float("nan")
    else:
        cotangent[0, 9] = float("inf")
    found = []
    for function in (reference.stacked_mlp, stacked_mlp):
        leaves = [weight.clone().requires_grad_() for weight in weights]
        y = function(x, leaves, biases)
        gradients = torch.autograd.grad(y, leaves, cotangent)
        found.append([y.detach(), *([] if place == "weight" else gradients)])
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours.isfinite(), theirs.isfinite())


@pytest.mark.parametrize("plain_last", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_gradcheck(relu, plain_last, device):
    x, weights, biases = inputs(2, 3, (4, 5, 3), device=device)
    leaves = [t.requires_grad_() for t in (x, *weights, *biases)]

    def function(x: Tensor, *layers: Tensor) -> Tensor:
        return stacked_mlp(x, layers[:2], layers[2:], relu=relu, plain_last=plain_last)

    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("plain_last", [False, True])
def test_opcheck(plain_last, device):
    x, weights, biases = inputs(2, 5, (3, 4, 2), torch.float32, device)
    leaves = [t.requires_grad_() for t in (x, *weights, *biases)]
    torch.library.opcheck(
        torch.ops.mg2l.stacked_mlp.default,
        (leaves[0], leaves[1:3], leaves[3:], True, plain_last, False, True),
        rtol=1e-4,
        atol=1e-5,
    )


def test_results_do_not_depend_on_the_number_of_threads(threads):
    given = inputs(3, 900, (20, 64, 64), torch.float32)
    torch.set_num_threads(1)
    alone = results(stacked_mlp, given, {})
    torch.set_num_threads(3)
    for one, other in zip(results(stacked_mlp, given, {}), alone, strict=True):
        assert torch.equal(one, other)


@needs_bfloat16
@pytest.mark.parametrize("relu", [False, True], ids=["tanh", "relu"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_bfloat16_is_as_accurate_as_its_definition(sizes, relu):
    groups, rows, widths = sizes
    given = inputs(groups, rows, widths, torch.float32)
    wide = tuple(x.double() if isinstance(x, Tensor) else [y.double() for y in x] for x in given)
    for plain_last in (False, True)[: len(given[1])]:
        options = {"relu": relu, "plain_last": plain_last}
        exact = results(reference.stacked_mlp, wide, options)
        defined = results(reference.stacked_mlp, given, {**options, "bfloat16": True})
        ours = results(stacked_mlp, given, {**options, "bfloat16": True})
        for one, other, right in zip(ours, defined, exact, strict=True):
            assert (one.shape, one.dtype) == (right.shape, torch.float32)
            if right.numel():
                allowed = 2 * float((other - right).abs().max())
                allowed += 64 * torch.finfo(torch.float32).eps * max(float(right.abs().max()), 1.0)
                assert float((one - right).abs().max()) <= allowed


@needs_bfloat16
@pytest.mark.parametrize("width", [1, 15, 16, 31, 33, 64])
def test_bfloat16_rounds_what_is_multiplied_and_nothing_else(width):
    """A plain last layer and all sums stay float32; features of one layer are the definition's."""
    given = inputs(2, 37, (width, 40, 3), torch.float32)
    options: dict[str, Any] = {"plain_last": True, "bfloat16": True}
    ours = results(stacked_mlp, given, options)
    for one, defined in zip(ours, results(reference.stacked_mlp, given, options), strict=True):
        # A gradient that lies between two bfloat16 may round to either.
        assert float((one - defined).abs().max()) <= 2e-3 * max(float(defined.abs().max()), 1.0)
    torch.testing.assert_close(ours[0], reference.stacked_mlp(*given, **options))
    assert not torch.allclose(ours[0], stacked_mlp(*given, plain_last=True), rtol=1e-5, atol=1e-5)


@needs_bfloat16
def test_bfloat16_does_not_hide_what_is_not_finite():
    x, weights, biases = inputs(1, 5, (4, 40, 40), torch.float32)
    x[0, 1, 2] = float("nan")
    y, *gradients = results(stacked_mlp, (x, weights, biases), {"bfloat16": True})
    assert y[0, 1].isnan().all()
    assert y[0, [0, 2, 3, 4]].isfinite().all()
    assert all(gradient.isnan().any() for gradient in gradients)


@needs_bfloat16
def test_bfloat16_does_not_depend_on_the_number_of_threads(threads):
    given = inputs(3, 900, (21, 64, 64), torch.float32)
    torch.set_num_threads(1)
    alone = results(stacked_mlp, given, {"bfloat16": True})
    torch.set_num_threads(3)
    for one, other in zip(results(stacked_mlp, given, {"bfloat16": True}), alone, strict=True):
        assert torch.equal(one, other)


@needs_bfloat16
def test_bfloat16_opcheck():
    x, weights, biases = inputs(2, 5, (3, 4, 2), torch.float32)
    leaves = [t.requires_grad_() for t in (x, *weights, *biases)]
    torch.library.opcheck(
        torch.ops.mg2l.stacked_mlp.default,
        (leaves[0], leaves[1:3], leaves[3:], True, False, True, True),
        rtol=1e-2,
        atol=1e-2,
    )


def test_bfloat16_is_refused_of_float64(device):
    given = inputs(2, 5, (3, 4), torch.float64, device)
    with pytest.raises(RuntimeError, match="with bfloat16 x must be float32 on the CPU, got float"):
        stacked_mlp(*given, bfloat16=True)


def test_bfloat16_is_refused_by_other_devices(device):
    if torch.device(device).type == "cpu":
        pytest.skip("no other device")
    given = inputs(2, 5, (3, 4), torch.float32, device)
    with pytest.raises(RuntimeError, match=r"must be float32 on the CPU, got float32 on cuda:0"):
        stacked_mlp(*given, bfloat16=True)


def test_bfloat16_is_refused_by_other_cpus():
    program = """
import torch
from mg2l.ops import native, stacked_mlp
assert not native.has_bfloat16()
try:
    stacked_mlp(torch.ones(1, 2, 3), [torch.ones(1, 4, 3)], [torch.ones(1, 4)], bfloat16=True)
except RuntimeError as error:
    print(error)
"""
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert "stacked_mlp: bfloat16 needs a CPU with avx512_bf16" in done.stdout


def layer(groups: int = 2, units: int = 4, inputs: int = 3) -> Tensor:
    return torch.zeros(groups, units, inputs)


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "axes": ({"x": torch.zeros(5, 3)}, r"x must have shape \[G, rows, in\], got \[5, 3\]"),
    "integers": ({"x": torch.zeros(2, 5, 3).long()}, "x must be float32 or float64, got int64"),
    "no layers": ({"weights": [], "biases": []}, "at least one normalised layer, got 0"),
    "plain alone": ({"plain_last": True}, "at least one normalised layer, got 1"),
    "biases": ({"biases": []}, "biases must be as many as weights, 1, got 0"),
    "weight axes": ({"weights": [torch.zeros(4, 3)]}, r"weights\[0\] must have shape \[G, units"),
    "inputs": (
        {"weights": [layer(inputs=2)]},
        r"weights\[0\] must have shape \[G, units, in\] = \[2, 4, 3\], got \[2, 4, 2\]",
    ),
    "groups": ({"weights": [layer(groups=1)]}, r"= \[2, 4, 3\], got \[1, 4, 3\]"),
    "no units": ({"weights": [layer(units=0)]}, "must have at least one unit, got 0"),
    "dtype": ({"weights": [layer().double()]}, r"weights\[0\] must be float32, got float64"),
    "bias": ({"biases": [torch.zeros(2, 3)]}, r"biases\[0\] must have shape \[G, units\] = \[2, 4"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_refuses(case):
    change, message = REFUSALS[case]
    arguments: dict[str, Any] = {
        "x": torch.zeros(2, 5, 3),
        "weights": [layer()],
        "biases": [torch.zeros(2, 4)],
        **change,
    }
    with pytest.raises(RuntimeError, match=f"stacked_mlp: .*{message}"):
        stacked_mlp(**arguments)
