"""The CUDA kernels of ``pia_pool``, executed on the CPU: values, schedules, faults."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from cuda_host import (
    KERNELS,
    Library,
    Report,
    Schedule,
    build,
    delete_each,
    pia_pool_cases,
    replace,
)
from cuda_host.faults import WRONG, Fault, Outcome, check_case, check_is_found, names, run_cases

pytestmark = pytest.mark.ci

SOURCE = (KERNELS / "pia_pool.cuh").read_text()


@pytest.fixture(scope="module")
def pia_pool() -> Library:
    return build(KERNELS / "pia_pool.cu")


# Around a warp of D and the 4 warps' inputs; sets along an inner axis; more parts than sets; few
# and long sets, which blocks share.
POOL_SHAPES = [
    (1, 1, 1, 1),
    (3, 2, 1, 33),
    (2, 5, 3, 64),
    (1, 9, 2, 7),
    (2, 131, 1, 32),
    (1, 300, 2, 5),
    (65, 3, 1, 4),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("masked", [False, True], ids=["full", "masked"])
@pytest.mark.parametrize("shape", POOL_SHAPES, ids=str)
def test_pia_pool(
    pia_pool: Library,
    shape: tuple[int, int, int, int],
    masked: bool,
    backward: bool,
    dtype: type[np.floating],
) -> None:
    for index, heads in enumerate((1, 3)):
        case = pia_pool_cases.case(shape, heads, dtype, masked=masked, backward=backward)
        check_case(pia_pool, case, Schedule(seed=index, preempt=7 * index))


@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("shape", [(2, 9, 2, 35), (1, 65, 2, 5)], ids=["whole", "split"])
def test_pia_pool_over_schedules(
    pia_pool: Library, shape: tuple[int, int, int, int], seed: int
) -> None:
    for backward, preempt in product([False, True], [0, 4]):
        case = pia_pool_cases.case(shape, 2, np.float64, masked=True, backward=backward)
        check_case(pia_pool, case, Schedule(seed=seed, preempt=preempt))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_masked_inputs_weigh_nothing_in_a_set_that_is_not_finite(
    pia_pool: Library, value: float
) -> None:
    """Whether or not blocks share the set."""
    for length in (9, 300):
        case = pia_pool_cases.case((2, length, 1, 2), 1, np.float32, masked=True)
        mask = case.inputs["mask"]
        case.inputs["x"][1, np.flatnonzero(mask[1, :, 0])[0]] = value
        assert not pia_pool.call(case.function, case.arguments)
        np.testing.assert_array_equal(
            np.isnan(case.outputs["weights"][1, 0, 0]), mask[1, :, 0], strict=True
        )
        assert np.isnan(case.outputs["pooled"][1]).all()
        assert np.isfinite(case.outputs["pooled"][0]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -3e38])
@pytest.mark.parametrize("at", [0, 3, 8])
def test_pia_pool_does_not_hide_what_is_not_finite(
    pia_pool: Library, at: int, value: float
) -> None:
    """Nor a logit that overflows; another set is as it was, and so are gradients."""
    for backward in (False, True):
        case = pia_pool_cases.case((2, 9, 1, 2), 1, np.float32, backward=backward)
        case.inputs["x"][0, at] = value
        case.inputs["query"][:] = 2
        if backward:
            for name in ("lse", "pooled"):
                case.inputs[name][0] = np.nan
        assert not pia_pool.call(case.function, case.arguments)
        for name in ("grad_x",) if backward else ("pooled", "lse", "weights"):
            assert np.isnan(case.outputs[name][0]).all()
            assert np.isfinite(case.outputs[name][1]).all()


@pytest.mark.parametrize("backward", [False, True])
def test_pia_pool_without_sets(pia_pool: Library, backward: bool) -> None:
    case = pia_pool_cases.case((0, 3, 1, 8), 2, np.float32, backward=backward)
    check_case(pia_pool, case, Schedule())
    if backward:
        assert not case.outputs["grad_query"].any()


# --- Faults ---


def run_pia_pool(library: Library) -> Outcome:
    return run_cases(
        library,
        (
            pia_pool_cases.case(shape, 2, np.float64, masked=masked, backward=backward)
            for shape in [(2, 131, 2, 35), (2, 13, 2, 35)]
            for backward in (False, True)
            for masked in (False, True)
        ),
    )


def fault(name: str, old: str, new: str, kind: str, *, occurrence: int = 0) -> Fault:
    return Fault(replace(SOURCE, old, new, name=name, occurrence=occurrence), kind, False)


FAULTS = [
    *(Fault(mutation, "race", False) for mutation in delete_each(SOURCE, "__syncthreads();")),
    fault("half of a warp's sum", "kWarp / 2; lanes", "kWarp / 4; lanes", WRONG),
    fault(
        "a product past D",
        "d < width; d += kWarp",
        "d < width + kWarp; d += kWarp",
        "out of bounds",
    ),
    fault(
        "totals not rescaled", "running_sum * exp(previous_max - running_max)", "running_sum", WRONG
    ),
    fault(
        "warps not rescaled",
        "warp_exp_sum[other] * exp(warp_max[other] - running_max)",
        "warp_exp_sum[other]",
        WRONG,
    ),
    fault(
        "splits not rescaled",
        "total += part[1] * exp(part[0] - largest)",
        "total += part[1]",
        WRONG,
    ),
    fault("means of splits not rescaled", "sum += factors[split] *", "sum +=", WRONG),
    fault(
        "weights of splits not rescaled",
        "t) ? weight * factors[split]",
        "t) ? weight",
        WRONG,
    ),
    fault("an empty split counts", "part[1] == 0 && lse == lse", "part[1] != part[1]", WRONG),
    fault("inputs of all splits", "(split + 1) * in.length / splits", "in.length", "race"),
    fault(
        "a warp left out",
        "int other = 0; other < kPoolWarps",
        "int other = 1; other < kPoolWarps",
        WRONG,
    ),
    fault("pooled: no bound", "if (warp == 0 && d < in.width)", "if (warp == 0)", "out of bounds"),
    fault(
        "masked inputs count",
        "logit == scalar_t(-INFINITY) ? scalar_t(0) : exp",
        "logit == scalar_t(-INFINITY) ? scalar_t(1) : exp",
        WRONG,
    ),
    fault(
        "the mask of another set",
        "set / in.inner * in.length + t",
        "set * in.length + t",
        "out of bounds",
    ),
    fault("a head's query for all", "row % in.heads * in.width", "0", WRONG),
    fault(
        "weights not written", "args.weights[row * in.length + t] = weight;", "", "uninitialised"
    ),
    fault("the mean is not subtracted", "- delta)", ")", WRONG),
    fault(
        "inputs: no bound",
        "if (element >= in.outer * in.inner * in.length * in.width) return;",
        "",
        "out of bounds",
    ),
    fault(
        "sets confused",
        "at / in.inner / in.length * in.inner + at % in.inner",
        "at % in.inner * in.outer + at / in.inner / in.length",
        WRONG,
    ),
    fault(
        "query: sets lost",
        "(part + 1) * inputs / kQueryParts",
        "part * inputs / kQueryParts",
        WRONG,
    ),
    fault("query: no bound", "if (d < in.width) {", "{", "out of bounds"),
    fault("combine: no bound", "if (element >= size) return;", "", "out of bounds"),
    fault(
        "combine: a part left out",
        "int part = 0; part < kQueryParts",
        "int part = 63; part < kQueryParts",
        WRONG,
    ),
    fault(
        "combine: uninitialised parts",
        "part < kQueryParts; ++part) sum",
        "part <= kQueryParts; ++part) sum",
        "out of bounds",
    ),
]


def test_pia_pool_has_no_fault() -> None:
    assert run_pia_pool(build(KERNELS / "pia_pool.cu")) == (Report(), True)


@pytest.mark.parametrize("fault", FAULTS, ids=names(FAULTS))
def test_pia_pool_fault_is_found(fault: Fault, tmp_path: Path) -> None:
    edits = {"pia_pool.cuh": fault.mutation.text}
    library = build(KERNELS / "pia_pool.cu", edits=edits, folder=tmp_path)
    check_is_found(fault, run_pia_pool(library), "pia_pool.cuh")
