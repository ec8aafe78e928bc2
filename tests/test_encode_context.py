import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mg2l.ops import EncodedContext, encode_context, native, reference

# (B, T, A, F, H): one of everything, whole and ragged tiles and vectors, the sizes of training, and
# many short contexts, of which several share a tile.
SIZES = [
    (1, 1, 1, 1, 1),
    (3, 60, 2, 6, 16),
    (130, 10, 2, 23, 64, 32),
    (7, 25, 3, 7, 40),
    (70, 2, 2, 5, 16),
    (2, 100, 2, 23, 64),
    (5, 131, 3, 7, 40),
    (0, 4, 2, 3, 8),
]
TOLERANCE: dict[torch.dtype, dict[str, Any]] = {
    torch.float32: {"rtol": 2e-5, "atol": 2e-6},
    torch.float64: {"rtol": 1e-9, "atol": 1e-12},
}


def inputs(
    size: tuple[int, ...],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float64,
    indexed: bool = True,
    own: bool = False,
    seed: int = 0,
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """Context, query and every layer's weight and bias, for `call`; and the index."""
    contexts, transitions, agents, features, *hidden = size
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, dtype=torch.float64).to(device, dtype)

    sets = (agents,) if own else ()
    index = None
    rows: tuple[int, ...] = (contexts, transitions)
    if indexed:
        rows = (77,)
        index = torch.randint(77, (contexts, transitions), generator=generator).to(device)
    arguments = [normal(*rows, agents, features), normal(*sets, hidden[-1])]
    for units in hidden:
        arguments += [normal(*sets, units, features) / features**0.5, normal(*sets, units)]
        features = units
    return tuple(arguments), index


def call(function: Any, arguments: tuple[Tensor, ...], **options: Any) -> EncodedContext:
    """An operator on what `inputs` gives."""
    context, query, *layers = arguments
    result: EncodedContext = function(context, layers[::2], layers[1::2], query, **options)
    return result


def gradients(
    function: Any, arguments: tuple[Tensor, ...], index: Tensor | None, **options: Any
) -> tuple[Tensor, ...]:
    leaves = [a.detach().clone().requires_grad_() for a in arguments]
    if index is not None:
        leaves[0].requires_grad_(False)
    pooled = call(function, tuple(leaves), index=index, **options).pooled
    cotangent = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(1)).to(pooled)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    return torch.autograd.grad((pooled * cotangent).sum(), wanted)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("own", [False, True], ids=["shared weights", "own weights"])
@pytest.mark.parametrize("indexed", [False, True], ids=["plain", "indexed"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_matches_reference(dtype, size, indexed, own, approximate, device):
    arguments, index = inputs(size, device, dtype, indexed, own)
    options: dict[str, Any] = {"index": index, "approximate": approximate, "return_weights": True}
    result = call(encode_context, arguments, **options)
    expected = call(reference.encode_context, arguments, **options)
    torch.testing.assert_close(result.pooled, expected.pooled, **TOLERANCE[dtype])
    torch.testing.assert_close(result.weights, expected.weights, **TOLERANCE[dtype])
    if size[0] == 0:
        return
    ours = gradients(encode_context, arguments, index, approximate=approximate)
    theirs = gradients(reference.encode_context, arguments, index, approximate=approximate)
    for grad, wanted in zip(ours, theirs, strict=True):
        # Sums over all transitions: what matters is the error next to the largest entry.
        error = (grad - wanted).abs().max() / wanted.abs().max().clamp(min=0.1)
        assert float(error) < (1e-4 if dtype == torch.float32 else 1e-9)


needs_bfloat16 = pytest.mark.skipif(
    not native.has_bfloat16(), reason="a CPU without avx512_bf16, or nothing compiled"
)


@needs_bfloat16
@pytest.mark.parametrize("own", [False, True], ids=["shared weights", "own weights"])
@pytest.mark.parametrize("size", SIZES[:-1], ids=str)
def test_bfloat16_is_as_accurate_as_its_definition(size, own):
    arguments, index = inputs(size, dtype=torch.float32, own=own)
    wide = tuple(x.double() for x in arguments)

    def results(function: Any, given: tuple[Tensor, ...], **options: Any) -> list[Tensor]:
        pooled = call(function, given, index=index, **options).pooled
        return [pooled, *gradients(function, given, index, **options)]

    exact = results(reference.encode_context, wide)
    defined = results(reference.encode_context, arguments, bfloat16=True)
    ours = results(encode_context, arguments, bfloat16=True)
    plain = results(encode_context, arguments)
    for one, other, right in zip(ours, defined, exact, strict=True):
        assert one.shape == right.shape
        allowed = 2 * float((other - right).abs().max())
        allowed += 64 * torch.finfo(torch.float32).eps * max(float(right.abs().max()), 1.0)
        assert float((one - right).abs().max()) <= allowed
    assert not torch.equal(ours[0], plain[0])


@needs_bfloat16
def test_bfloat16_shares_rows_and_does_not_depend_on_threads(threads):
    """Contexts that gather what each row is encoded to give what they give apart."""
    arguments, index = inputs((40, 100, 2, 23, 64), dtype=torch.float32)
    assert index is not None
    torch.set_num_threads(1)
    alone = call(encode_context, arguments, index=index, bfloat16=True).pooled
    few = call(encode_context, arguments, index=index[:1, :30], bfloat16=True).pooled
    some = call(encode_context, arguments, index=index[:1, :30].repeat(9, 1), bfloat16=True).pooled
    torch.testing.assert_close(some, few.expand_as(some))
    of_one = gradients(encode_context, arguments, index, bfloat16=True)
    torch.set_num_threads(3)
    assert torch.equal(call(encode_context, arguments, index=index, bfloat16=True).pooled, alone)
    of_three = gradients(encode_context, arguments, index, bfloat16=True)
    assert all(torch.equal(a, b) for a, b in zip(of_one, of_three, strict=True))


@needs_bfloat16
def test_bfloat16_opcheck():
    arguments, index = inputs((2, 9, 2, 3, 4, 5), dtype=torch.float32)
    leaves = [a.requires_grad_(i > 0) for i, a in enumerate(arguments)]
    torch.library.opcheck(
        torch.ops.mg2l.encode_context.default,
        (leaves[0], leaves[2::2], leaves[3::2], leaves[1], index, False, True, False),
        rtol=1e-2,
        atol=1e-2,
    )


@needs_bfloat16
def test_bfloat16_is_not_finite_where_an_input_is_not():
    arguments, index = inputs((5, 10, 2, 23, 64), dtype=torch.float32, indexed=False)
    arguments[0][1, 3, 0, 2] = float("nan")
    pooled = call(encode_context, arguments, index=index, bfloat16=True).pooled
    assert pooled[1, 0].isnan().all()
    assert pooled.isnan().sum() == 64


def test_bfloat16_refusals(device):
    arguments, index = inputs((2, 9, 2, 3, 4), device)
    with pytest.raises(RuntimeError, match="with bfloat16 context must be float32 on the CPU, got"):
        call(encode_context, arguments, index=index, bfloat16=True)
    arguments, _ = inputs((2, 9, 2, 3, 4), device, indexed=False)
    arguments[0].requires_grad_()
    with pytest.raises(RuntimeError, match="with bfloat16 the context gets no gradients"):
        call(encode_context, arguments, bfloat16=True)


@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("rows", [1, 60, 5000])
def test_rows_that_contexts_share_are_as_good_as_copies(rows, own, bad):
    """Where each row is held twice or more on average it is encoded once: the same bits."""
    arguments, _ = inputs((9, 70, 3, 23, 64, 40), dtype=torch.float32, own=own)
    context = torch.randn(rows, 3, 23)
    if bad:
        context[0, 1, 2] = torch.nan
    index = torch.randint(rows, (9, 70))
    index[4, 65] = 0
    shared = call(encode_context, (context, *arguments[1:]), index=index, return_weights=True)
    apart = call(encode_context, (context[index], *arguments[1:]), return_weights=True)
    torch.testing.assert_close(shared, apart, rtol=0, atol=0, equal_nan=True)
    assert bool(shared.pooled.isnan().any()) == bad


@pytest.mark.parametrize("own", [False, True], ids=["shared weights", "own weights"])
@pytest.mark.parametrize("transitions", [1, 10, 25, 70])
def test_a_context_does_not_depend_on_those_beside_it(transitions, own):
    """Nor on where it lies among them; one that is not finite is NaN alone."""
    arguments, _ = inputs(
        (9, transitions, 3, 23, 64, 40), dtype=torch.float32, indexed=False, own=own
    )
    arguments[0][4, transitions // 2, 1, 3] = torch.inf
    result = call(encode_context, arguments, return_weights=True)
    bad = torch.zeros(9, 3, dtype=torch.bool)
    bad[4, 1] = True
    assert result.weights is not None
    assert torch.equal(result.pooled.isnan().all(-1), bad)
    assert torch.equal(result.weights.isnan().any(-1), bad)
    for one in range(9):
        alone = call(
            encode_context,
            (arguments[0][one : one + 1], *arguments[1:]),
            return_weights=True,
        )
        for part, whole in zip(alone, result, strict=True):
            assert part is not None
            assert whole is not None
            torch.testing.assert_close(part[0], whole[one], rtol=0, atol=0, equal_nan=True)


def mostly_zeros(arguments: tuple[Tensor, ...], fraction: float = 0.1) -> tuple[Tensor, ...]:
    """With inputs of which only a fraction is not 0, as in maps and one-hot codes."""
    context, *rest = arguments
    chosen = torch.rand(context.shape, generator=torch.Generator().manual_seed(2)) < fraction
    return (torch.where(chosen.to(context.device), context, 0), *rest)


@pytest.mark.parametrize("own", [False, True], ids=["shared weights", "own weights"])
@pytest.mark.parametrize("fraction", [0, 0.1, 0.3])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_inputs_that_are_mostly_zeros(dtype, fraction, own, device):
    """Products of the others alone are summed."""
    arguments, index = inputs((5, 53, 2, 83, 40, 16), device, dtype, own=own)
    arguments = mostly_zeros(arguments, fraction)
    result = call(encode_context, arguments, index=index, return_weights=True)
    expected = call(reference.encode_context, arguments, index=index, return_weights=True)
    torch.testing.assert_close(tuple(result), tuple(expected), **TOLERANCE[dtype])
    ours = gradients(encode_context, arguments, index)
    theirs = gradients(reference.encode_context, arguments, index)
    for grad, wanted in zip(ours, theirs, strict=True):
        error = (grad - wanted).abs().max() / wanted.abs().max().clamp(min=0.1)
        assert float(error) < (1e-4 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("place", ["input", "weight", "gradient"])
def test_zeros_do_not_hide_what_is_not_finite(place, device):
    arguments, index = inputs((2, 20, 1, 83, 16), device)
    context, query, weight, bias = mostly_zeros(arguments)
    context[:, :, 7] = 0
    gradient = torch.ones(2, 1, 16, dtype=context.dtype, device=device)
    assert index is not None
    if place == "input":
        context[int(index[0, 3]), 0, 70] = torch.nan
    elif place == "weight":
        weight[2, 7] = torch.inf
    else:
        gradient[1, 0, 5] = torch.nan
    results = []
    for function in (encode_context, reference.encode_context):
        leaf = weight.clone().requires_grad_()
        pooled = function(context, [leaf], [bias], query, index=index).pooled
        results.append((pooled.detach(), *torch.autograd.grad(pooled, leaf, gradient)))
    (pooled, grad), (_, wanted) = results
    assert torch.equal(pooled.isnan(), results[1][0].isnan())
    assert torch.equal(grad.isnan(), wanted.isnan())


def test_is_the_composition_of_the_layers_taken_literally():
    """Every layer applied to every transition, with its bias, in float64."""
    torch.manual_seed(0)
    context = torch.randn(4, 30, 2, 5, dtype=torch.float64)
    first, second = torch.nn.Linear(5, 8).double(), torch.nn.Linear(8, 6).double()
    key, value = torch.nn.Linear(6, 6, bias=False).double(), torch.nn.Linear(6, 6).double()
    output, query = torch.nn.Linear(6, 3).double(), torch.randn(6, dtype=torch.float64)

    x = second(F.gelu(first(context)))
    weights = torch.softmax(key(x) @ query / 6**0.5, 1)
    literal = output((weights.unsqueeze(-1) * value(x)).sum(1))

    folded = second.weight.t() @ (key.weight.t() @ query) / 6**0.5
    result = encode_context(context, [first.weight], [first.bias], folded, return_weights=True)
    torch.testing.assert_close(output(value(second(result.pooled))), literal)
    torch.testing.assert_close(result.weights, weights.transpose(1, 2).detach())


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("indexed", [False, True])
def test_gradcheck(indexed, own, approximate, device):
    arguments, index = inputs((2, 5, 2, 3, 4, 5), device, indexed=indexed, own=own)
    leaves = [a.requires_grad_(i > 0 or not indexed) for i, a in enumerate(arguments)]

    def pooled(*a: Tensor) -> Tensor:
        return call(encode_context, a, index=index, approximate=approximate).pooled

    assert torch.autograd.gradcheck(pooled, leaves)


@pytest.mark.parametrize("indexed", [False, True])
def test_opcheck(indexed, device):
    arguments, index = inputs((2, 9, 2, 3, 4, 5), device, torch.float32, indexed)
    leaves = [a.requires_grad_(i > 0 or not indexed) for i, a in enumerate(arguments)]
    torch.library.opcheck(
        torch.ops.mg2l.encode_context.default,
        (leaves[0], leaves[2::2], leaves[3::2], leaves[1], index, False, False, False),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_gelu_and_softmax_over_their_whole_range(scale, device):
    """Large logits must not overflow, large inputs must meet the tails of the GELU."""
    (context, query, *layers), index = inputs((3, 60, 2, 4, 16), device, torch.float32)
    arguments = (context * scale, query * scale, *layers)
    result = call(encode_context, arguments, index=index).pooled
    double = tuple(a.double() for a in arguments)
    wide = call(reference.encode_context, double, index=index).pooled
    assert bool(result.isfinite().all())
    torch.testing.assert_close(result.double(), wide, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("own", [False, True])
def test_bfloat16_is_at_most_twice_as_far_off_as_torch(own, device):
    arguments, index = inputs((6, 200, 2, 23, 64), device, torch.bfloat16, own=own)
    wide = tuple(a.double() for a in arguments)
    exact = call(reference.encode_context, wide, index=index).pooled
    ours = call(encode_context, arguments, index=index).pooled
    torchs = call(reference.encode_context, arguments, index=index).pooled
    assert ours.dtype == torch.bfloat16
    assert float((ours - exact).abs().max()) <= 2 * float((torchs - exact).abs().max()) + 1e-5
    for mine, plain, true in zip(
        gradients(encode_context, arguments, index),
        gradients(reference.encode_context, arguments, index),
        gradients(reference.encode_context, wide, index),
        strict=True,
    ):
        assert float((mine - true).abs().max()) <= 2 * float((plain - true).abs().max()) + 1e-5


@pytest.mark.parametrize("fraction", [0.1, 1.0])
def test_results_do_not_depend_on_the_number_of_threads(threads, fraction):
    arguments, index = inputs((9, 70, 2, 83, 64, 64), dtype=torch.float32)
    arguments = mostly_zeros(arguments, fraction)
    torch.set_num_threads(1)
    alone = call(encode_context, arguments, index=index).pooled
    alone_gradients = gradients(encode_context, arguments, index)
    torch.set_num_threads(3)
    assert torch.equal(call(encode_context, arguments, index=index).pooled, alone)
    for ours, theirs in zip(
        gradients(encode_context, arguments, index), alone_gradients, strict=True
    ):
        assert torch.equal(ours, theirs)


CHECK_CAPABILITY = """
import torch
from test_encode_context import gradients, inputs, mostly_zeros
from mg2l.ops import native
from mg2l.ops import encode_context, reference
arguments, index = inputs((3, 100, 2, 83, 40, 24), dtype=torch.float32)
for some in (arguments, mostly_zeros(arguments)):
    ours = gradients(encode_context, some, index)
    theirs = gradients(reference.encode_context, some, index)
    for a, b in zip(ours, theirs, strict=True):
        assert float((a - b).abs().max() / b.abs().max()) < 1e-4
print(native.cpu_build())
"""


@pytest.mark.parametrize(("capability", "text"), [("default", "baseline"), ("avx2", "")])
def test_every_instruction_set_gives_the_same(capability, text):
    environment = os.environ | {
        "ATEN_CPU_CAPABILITY": capability,
        "PYTHONPATH": os.path.dirname(__file__),
    }
    run = subprocess.run(
        [sys.executable, "-c", CHECK_CAPABILITY],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert text in run.stdout


CHECK_MEMORY = """
import resource, sys, torch
from mg2l.ops import encode_context
torch.set_num_threads(2)
transitions = int(sys.argv[1])
context = torch.randn(4, transitions, 2, 16)
weight, bias, query = (torch.randn(*s).requires_grad_() for s in ((256, 16), (256,), (256,)))
def run(some):
    encode_context(some, [weight], [bias], query).pooled.sum().backward()
run(context[:, :64])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(context)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_length_of_a_context():
    """Hidden features of T = 16,384 would take 128 MiB; peak memory of the process stays."""
    run = subprocess.run(
        [sys.executable, "-c", CHECK_MEMORY, "16384"], check=True, capture_output=True, text=True
    )
    assert int(run.stdout) < 4 * 1024  # KiB


def test_rows_gathered_by_index_get_no_gradients(device):
    arguments, index = inputs((2, 5, 2, 3, 4), device)
    arguments[0].requires_grad_()
    with pytest.raises(RuntimeError, match="rows gathered by index get no gradients"):
        call(encode_context, arguments, index=index)


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "half": ({"context": torch.zeros(2, 5, 2, 3).half()}, "context must be float32, float64 or"),
    "rank": ({"context": torch.zeros(5, 2, 3)}, r"context must have shape \[B, T, A, F\], got"),
    "empty": ({"context": torch.zeros(2, 0, 2, 3)}, "a context must hold at least 1 transition"),
    "weight rank": ({"weights": [torch.zeros(4)]}, r"weights\[0\] must have shape \[H, F\] or"),
    "weight width": (
        {"weights": [torch.zeros(4, 5)]},
        r"weights\[0\] must have shape \[H, F\] = \[4, 3\], got \[4, 5\]",
    ),
    "weight agents": (
        {"weights": [torch.zeros(3, 4, 3)]},
        r"weights\[0\] must have shape \[A, H, F\] = \[2, 4, 3\], got \[3, 4, 3\]",
    ),
    "weight dtype": (
        {"weights": [torch.zeros(4, 3).double()]},
        r"weights\[0\] must be float32, got float64",
    ),
    "bias": (
        {"biases": [torch.zeros(2, 4)]},
        r"biases\[0\] must have shape \[H\] = \[4\], got \[2, 4\]",
    ),
    "layers": ({"biases": []}, "weights and biases must hold one tensor for each of at least one"),
    "second layer": (
        {"weights": [torch.zeros(4, 3), torch.zeros(4, 5)], "biases": [torch.zeros(4)] * 2},
        r"weights\[1\] must have shape \[H, F\] = \[4, 4\], got \[4, 5\]",
    ),
    "query": ({"query": torch.zeros(5)}, r"query must have shape \[H\] = \[4\], got \[5\]"),
    "index dtype": (
        {"context": torch.zeros(9, 2, 3), "index": torch.zeros(2, 5, dtype=torch.int32)},
        "index must be int64, got int32",
    ),
    "index rank": (
        {"context": torch.zeros(9, 2, 3), "index": torch.zeros(5, dtype=torch.int64)},
        r"index must have shape \[B, T\], got \[5\]",
    ),
    "rows rank": (
        {"index": torch.zeros(2, 5, dtype=torch.int64)},
        r"context must have shape \[R, A, F\] when index is given",
    ),
    "index too large": (
        {"context": torch.zeros(9, 2, 3), "index": torch.full((2, 5), 9)},
        r"index must be in \[0, R\) = \[0, 9\), got 9",
    ),
    "index negative": (
        {"context": torch.zeros(9, 2, 3), "index": torch.full((2, 5), -1)},
        r"index must be in \[0, R\) = \[0, 9\), got -1",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refuses(case):
    change, message = REFUSALS[case]
    arguments: dict[str, Any] = {
        "context": torch.zeros(2, 5, 2, 3),
        "weights": [torch.zeros(4, 3)],
        "biases": [torch.zeros(4)],
        "query": torch.zeros(4),
        **change,
    }
    with pytest.raises(RuntimeError, match=f"^encode_context: {message}"):
        encode_context(**arguments)


def test_refuses_an_unknown_gelu():
    arguments, index = inputs((1, 2, 1, 3, 4))
    with pytest.raises(ValueError, match="approximate must be 'none' or 'tanh', got 'erf'"):
        call(encode_context, arguments, index=index, approximate="erf")
