"""The CUDA kernels of ``encode_context``, executed on the CPU: values, schedules, faults."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from cuda_host import KERNELS, Library, Report, Schedule, build, delete_each, encode_cases, replace
from cuda_host.encode_cases import Sizes
from cuda_host.faults import WRONG, Fault, Outcome, check_case, check_is_found, names, run_cases
from cuda_host.layout import ask

pytestmark = pytest.mark.ci

SOURCES = {
    name: (KERNELS / name).read_text()
    for name in ("encode_context.cuh", "encode_context_backward.cuh", "gelu.cuh")
}

# Around a tile of 32 transitions, squares of 4 x 4, 128 threads and the two buffers of the forward
# pass; tiles of 16 rows where layers are wide.
SIZES = [
    Sizes(1, 1, 1, 1, (1,)),
    Sizes(2, 5, 2, 3, (6,)),
    Sizes(2, 33, 2, 4, (7, 9)),
    Sizes(3, 32, 1, 5, (4, 8, 5)),
    Sizes(1, 97, 3, 23, (36, 4, 3, 8)),
    Sizes(1, 21, 1, 2, (130, 3)),
]


@pytest.fixture(scope="module")
def encode() -> Library:
    return build(KERNELS / "encode_context.cu")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_encode_context(
    encode: Library, sizes: Sizes, own: bool, backward: bool, dtype: type[np.floating]
) -> None:
    for index, (indexed, approximate, pieces) in enumerate(
        [(False, "none", 1), (True, "tanh", 2), (False, "tanh", 3)]
    ):
        case = encode_cases.case(
            sizes, dtype, own=own, indexed=indexed, approximate=approximate,
            pieces=pieces, backward=backward,
        )  # fmt: skip
        check_case(encode, case, Schedule(seed=index, preempt=9 * index))


@pytest.mark.parametrize("seed", range(1, 4))
def test_encode_context_over_schedules(encode: Library, seed: int) -> None:
    for backward, preempt in product([False, True], [0, 4]):
        case = encode_cases.case(
            Sizes(2, 37, 2, 3, (6, 5)), np.float64, own=True, pieces=2, backward=backward
        )
        check_case(encode, case, Schedule(seed=seed, preempt=preempt))


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_bfloat16_is_summed_in_float32(encode: Library, backward: bool, own: bool) -> None:
    case = encode_cases.case(
        Sizes(2, 35, 2, 5, (7, 6)), np.float32, own=own, bfloat16=True, backward=backward
    )
    check_case(encode, case, Schedule(seed=1))
    name = "grad_context" if backward else "weights"
    exact = case.rounded[name]
    found = encode_cases.from_bfloat16(case.outputs[name]).reshape(exact.shape)
    # Rounded once; logits that wait as bfloat16 for their sum are off by their own rounding.
    np.testing.assert_allclose(found, exact, rtol=2**-8 if backward else 2**-5, atol=1e-5)


def test_without_weights(encode: Library) -> None:
    case = encode_cases.case(Sizes(2, 40, 2, 3, (5,)), np.float32, return_weights=False)
    check_case(encode, case, Schedule())


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("backward", [False, True])
def test_no_contexts(encode: Library, backward: bool, own: bool) -> None:
    case = encode_cases.case(Sizes(0, 3, 2, 3, (5,)), np.float32, own=own, backward=backward)
    check_case(encode, case, Schedule())
    if backward:
        assert not case.outputs["partial"].any()


def test_a_row_that_is_not_there_gives_nan_and_is_not_read(encode: Library) -> None:
    for row in (-1, 9, 10**9, -(10**15)):
        case = encode_cases.case(Sizes(2, 3, 1, 2, (4,)), np.float32, indexed=True)
        assert case.inputs["rows"] == 9
        case.inputs["index"][1, 2] = row
        assert not encode.call(case.function, case.arguments)
        assert np.isnan(case.outputs["lse"]).ravel().tolist() == [False, True]
        assert np.isnan(case.outputs["pooled"][1]).all()
        back = encode_cases.case(Sizes(2, 3, 1, 2, (4,)), np.float32, indexed=True, backward=True)
        back.inputs["index"][1, 2] = row
        for name in ("lse", "pooled"):
            back.inputs[name][1] = np.nan
        assert not encode.call(back.function, back.arguments)
        assert np.isnan(back.outputs["partial"].sum(1)[:, :8]).all()


def test_a_context_with_a_logit_that_overflows_is_nan(encode: Library) -> None:
    """As its definition is, also where the logit is alone in its tile; others are as they were."""
    case = encode_cases.case(Sizes(1, 40, 1, 1, (1,)), np.float64, pieces=2)
    case.inputs["packed"][:] = 0
    layer = case.inputs["packed"]
    layer[0] = layer[16] = 1.0  # weight, transposed and not
    layer[36] = -1e308  # query
    case.inputs["context"][:] = 10.0  # 10 times -1e308 overflows
    case.inputs["context"][33] = 0.0
    assert not encode.call(case.function, case.arguments)
    assert np.isnan(case.outputs["weights"]).all()
    assert np.isnan(case.outputs["pooled"]).all()
    assert np.isnan(case.outputs["lse"]).all()


@pytest.mark.parametrize("name", ["float", "double", "bfloat16"])
@pytest.mark.parametrize("parts", [1, 9])
def test_parameters_are_packed_and_gradients_unpacked(
    encode: Library, parts: int, name: str
) -> None:
    assert run_parameters(encode, parts, name) == (Report(), True)


# --- Faults ---


def run_parameters(encode: Library, parts: int = 9, name: str = "double") -> Outcome:
    """Packs the parameters of two layers and a query, and adds up parts of them."""
    rng = np.random.default_rng(0)
    dtype: Any = np.float64 if name == "double" else np.float32
    store: Any = encode_cases.to_bfloat16 if name == "bfloat16" else np.array
    load: Any = encode_cases.from_bfloat16 if name == "bfloat16" else np.array
    sets, features, units = 3, 7, (33, 5)
    shapes = [(33, 7), (5, 33), (5, 0)]
    weights = [store(rng.normal(size=(sets, *shape)).astype(dtype)) for shape in shapes]
    biases = [store(rng.normal(size=(sets, shape[0])).astype(dtype)) for shape in shapes]
    whole = [*zip(weights, biases, strict=True)]
    inputs = [load(weight) if weight.size else None for weight in weights]
    expected = [
        encode_cases.packed_layer(weight, load(bias))
        for weight, bias in zip(inputs, biases, strict=True)
    ]
    where = [ask("packed_offset", features, 2, units, sets, layer) for layer in range(4)]
    sizes = {
        "sets": sets,
        "layers": 3,
        "units": (33, 5, 5),
        "inputs": (7, 33, 0),
    }
    packed = np.empty(where[3], dtype)
    report = encode.call(
        f"mg2l_encode_context_pack_{name}",
        {
            **sizes,
            "offset": where[:3],
            "weight": [weight if weight.size else None for weight in weights],
            "bias": biases,
            "packed": packed,
        },
    )
    right = np.array_equal(packed, np.concatenate([layer.ravel() for layer in expected]))

    layers = [encode_cases.gradient_layer(load(w), load(b)) for w, b in whole[:2]]
    layers.append(encode_cases.pad(load(biases[2]), 1))
    total = np.concatenate(layers, 1)
    starts = [ask("gradient_offset", features, 2, units, layer) for layer in range(4)]
    assert total.shape[1] == starts[3]
    partial = np.zeros((sets, parts, starts[3]), dtype)
    # Whose sums are exact, in any order.
    factors = {0: 1} if parts == 1 else {0: 1, 1: 2, 3: 1, 6: -1, 7: -1, 8: -1}
    for part, factor in factors.items():
        partial[:, part] = factor * total
    found = [(np.empty_like(weight), np.empty_like(bias)) for weight, bias in whole]
    unpacked = encode.call(
        f"mg2l_encode_context_unpack_{name}",
        {
            **sizes,
            "offset": starts[:3],
            "parts": parts,
            "size": starts[3],
            "partial": partial,
            "grad_weight": [weight if weight.size else None for weight, _ in found],
            "grad_bias": [bias for _, bias in found],
        },
    )
    for of_layer, (weight, bias) in zip(found, whole, strict=True):
        right &= np.array_equal(of_layer[0], weight) and np.array_equal(of_layer[1], bias)
    return Outcome(Report([*report, *unpacked]), right)


def run_encode(library: Library) -> Outcome:
    parameters = run_parameters(library)
    contexts = run_cases(
        library,
        (
            encode_cases.case(
                sizes, np.float64, own=own, indexed=indexed, approximate=approximate,
                pieces=pieces, backward=backward,
            )
            for backward in (False, True)
            for sizes, own, indexed, approximate, pieces in [
                (Sizes(2, 131, 2, 6, (9, 7, 5)), True, False, "none", 1),
                (Sizes(2, 3, 2, 3, (5,)), False, True, "tanh", 1),
                (Sizes(2, 37, 2, 35, (5, 6)), False, False, "none", 3),
            ]
        ),
    )  # fmt: skip
    return Outcome(
        Report([*parameters.report, *contexts.report]),
        parameters.values_are_right and contexts.values_are_right,
    )


class EncodeFault(NamedTuple):
    file: str
    fault: Fault


def fault(name: str, old: str, new: str, kind: str, *, occurrence: int = 0) -> EncodeFault:
    file = next(file for file, text in SOURCES.items() if old in text)
    return EncodeFault(
        file, Fault(replace(SOURCES[file], old, new, name=name, occurrence=occurrence), kind, False)
    )


FAULTS = [
    *(
        EncodeFault(file, Fault(mutation, "race", False))
        for file, text in SOURCES.items()
        for mutation in delete_each(text, "__syncthreads();")
    ),
    fault("half of a warp's sum", "int lanes = 16;", "int lanes = 8;", WRONG),
    fault("half of a warp's maximum", "int lanes = 16;", "int lanes = 8;", WRONG, occurrence=1),
    fault("a product past H", "d < width; d += 32", "d < width + 32; d += 32", "out of bounds"),
    fault(
        "rows past the last are read", "row < count && i < plan.features", "true", "out of bounds"
    ),
    fault("an index is not followed", "? at : plan.index[at]", "? at : at", WRONG),
    fault("another agent's row", "from * plan.agents + agent", "from * plan.agents", WRONG),
    fault("no bias", "{bias, bias, bias, bias}", "{}", WRONG),
    fault("a layer reads its own output", "layer[l - 1].features", "layer[l].features", WRONG),
    fault("sums not rescaled", "pooled[h] * rescale", "pooled[h]", WRONG),
    fault("total not rescaled", "running_sum * rescale", "running_sum", WRONG),
    fault("a tile counts twice", "(split + 1) * plan.tiles()", "(split + 2) * plan.tiles()", WRONG),
    fault("splits not rescaled", "part[h] * scalar_t(exp(part[width] - shift))", "part[h]", WRONG),
    fault("total of splits not rescaled", "part[width + 1] * scalar_t", "scalar_t", WRONG),
    fault("sums begin anywhere", "sums[i] = 0;", ";", "uninitialised"),
    fault("pooled is not initialised", "pooled[h] = 0;", ";", "uninitialised"),
    fault("exact and tanh swapped", "if (tanh_gelu) {", "if (!tanh_gelu) {", WRONG),
    fault("slope of the wrong layer", "plan.layer[l - 1];", "plan.layer[l];", WRONG),
    fault("the mean is not subtracted", "- delta)", ")", WRONG),
    fault("no gradient through the logits", "+ grad_logits[row] * q", "", WRONG),
    fault("no gradient of the mean", "weights[row] * g + ", "", WRONG),
    fault("gradients of the query lost", "sums[plan.gradient_query + h] += sum;", "", WRONG),
    fault("biases get no gradient", "sum += grad[row * grad_pitch + unit];", "", WRONG),
    fault("parts left out", "part += kEncodeWarps", "part += 2 * kEncodeWarps", WRONG),
    fault(
        "a warp's parts left out",
        "int other = 1; other < kEncodeWarps",
        "int other = 2; other < kEncodeWarps",
        WRONG,
    ),
    fault(
        "the parameters of one layer", "args.packed[args.offset[l] + at]", "args.packed[at]", WRONG
    ),
    fault("unpack: no bound", "at < args.sets * units * (inputs + 1)", "true", "out of bounds"),
    fault("contexts: no bound", "row + r < count; ++r", "true; ++r", "out of bounds"),
    fault("a tile too few", "left > 0; --left", "left > 1; --left", WRONG),
    fault("tile not reset", "tile = 0;", "", "out of bounds"),
    fault(
        "agents of a set", "own_weights ? 1 : plan.agents", "own_weights ? plan.agents : 1", WRONG
    ),
]


def test_encode_has_no_fault(encode: Library) -> None:
    assert run_encode(encode) == (Report(), True)


@pytest.mark.parametrize(("file", "fault"), FAULTS, ids=names([fault for _, fault in FAULTS]))
def test_encode_fault_is_found(file: str, fault: Fault, tmp_path: Path) -> None:
    edits = {file: fault.mutation.text}
    library = build(KERNELS / "encode_context.cu", edits=edits, folder=tmp_path)
    check_is_found(fault, run_encode(library), "encode_context")
