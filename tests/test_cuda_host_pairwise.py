"""The CUDA kernels of ``pairwise_lse``, executed on the CPU: values, schedules, faults."""

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
    pairwise_cases,
    replace,
)
from cuda_host.faults import WRONG, Fault, Outcome, check_case, check_is_found, names, run_cases

pytestmark = pytest.mark.ci

SOURCE = (KERNELS / "pairwise_lse.cuh").read_text()


@pytest.fixture(scope="module")
def pairwise() -> Library:
    return build(KERNELS / "pairwise_lse.cu")


# Around a tile of 32 x 32 and a step of 32 coordinates.
PAIR_SIZES = [(1, 1, 1, 1), (2, 5, 7, 3), (1, 33, 40, 35), (1, 32, 32, 32), (2, 31, 65, 2)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("filters", [False, True], ids=["all", "filtered"])
@pytest.mark.parametrize("gaussian", [False, True], ids=["dot", "gaussian"])
@pytest.mark.parametrize("size", PAIR_SIZES, ids=str)
def test_pairwise_lse(
    pairwise: Library,
    size: tuple[int, int, int, int],
    gaussian: bool,
    filters: bool,
    backward: bool,
    dtype: type[np.floating],
) -> None:
    case = pairwise_cases.case(size, dtype, gaussian=gaussian, filters=filters, backward=backward)
    check_case(pairwise, case, Schedule(seed=sum(size), preempt=11))


@pytest.mark.parametrize("seed", range(1, 4))
def test_pairwise_lse_over_schedules(pairwise: Library, seed: int) -> None:
    for backward, preempt in product([False, True], [0, 4]):
        case = pairwise_cases.case(
            (1, 35, 34, 5), np.float64, gaussian=True, filters=True, backward=backward
        )
        check_case(pairwise, case, Schedule(seed=seed, preempt=preempt))


@pytest.mark.parametrize("contract", [False, True], ids=["rounded", "contracted"])
@pytest.mark.parametrize("gaussian", [False, True], ids=["dot", "gaussian"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_copy_of_the_positive_ties_with_it_on_cuda(
    contract: bool, gaussian: bool, dtype: type[np.floating]
) -> None:
    """Whether or not products are fused where the source leaves it to the compiler."""
    library = build(KERNELS / "pairwise_lse.cu", contract=contract)
    case = pairwise_cases.tied_case(dtype, gaussian=gaussian)
    assert not library.call(case.function, case.arguments)
    np.testing.assert_array_equal(case.outputs["rank"], 0)


def test_a_positive_that_is_no_key_gives_nan_and_reads_nothing(pairwise: Library) -> None:
    for key in (-1, 5, 10**9, -(10**15)):
        case = pairwise_cases.case((1, 4, 5, 3), np.float32)
        case.inputs["positive"][0, 1] = key
        assert not pairwise.call(case.function, case.arguments)
        assert np.isnan(case.outputs["lse"]).tolist() == [[False, True, False, False]]
        back = pairwise_cases.case((1, 4, 5, 3), np.float32, backward=True)
        back.inputs["positive"][0, 1] = key
        back.inputs["lse"][0, 1] = np.nan
        assert not pairwise.call(back.function, back.arguments)
        assert np.isnan(back.outputs["grad_query"][0, 1]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pairwise_lse_does_not_hide_what_is_not_finite(pairwise: Library, value: float) -> None:
    for name in ("key", "query"):
        case = pairwise_cases.case((2, 3, 40, 2), np.float32)
        case.inputs[name][0, 2] = value
        assert not pairwise.call(case.function, case.arguments)
        own = slice(None) if name == "key" else 2
        for result in ("lse", "lse_negatives"):
            assert np.isnan(case.outputs[result][0, own]).all()
            assert np.isfinite(case.outputs[result][1]).all()


# --- Faults ---


def run_pairwise(library: Library) -> Outcome:
    kinds = ((False, False), (True, True), (False, True))
    return run_cases(
        library,
        (
            pairwise_cases.case(
                (1, 35, 34, 33), np.float64, gaussian=gaussian, filters=filters, backward=backward
            )
            for backward in (False, True)
            for gaussian, filters in kinds
        ),
    )


def fault(name: str, old: str, new: str, kind: str, *, occurrence: int = 0) -> Fault:
    return Fault(replace(SOURCE, old, new, name=name, occurrence=occurrence), kind, False)


FAULTS = [
    *(Fault(mutation, "race", False) for mutation in delete_each(SOURCE, "__syncthreads();")),
    *(Fault(mutation, "race", False) for mutation in delete_each(SOURCE, "__syncwarp();")),
    fault("offsets: no bound", "if (at >= in.groups * in.keys) return;", "", "out of bounds"),
    fault(
        "sides: no bound of rows",
        "at < count && coordinate < width",
        "coordinate < width",
        "out of bounds",
    ),
    fault(
        "sides: no bound of coordinates", "at < count && coordinate < width", "at < count", WRONG
    ),
    fault(
        "a step of D too long",
        "in.width - d < kSide ? static_cast<int>(in.width - d) : kSide",
        "kSide + 1",
        WRONG,
    ),
    fault(
        "rows of another warp",
        "const int row = threadIdx.y * kRowsPerWarp + r;",
        "const int row = threadIdx.y + r;",
        WRONG,
    ),
    fault("not scaled", "kGaussian ? scalar_t(1) : in.scale", "scalar_t(1)", WRONG),
    fault(
        "the positive among the negatives", "if (in.positive[row] == key) return false;", "", WRONG
    ),
    fault(
        "labels ignored",
        "in.query_labels[row] == in.key_labels[group * in.keys + key]",
        "false",
        WRONG,
    ),
    fault("mask ignored", "in.mask == nullptr || in.mask[row * in.keys + key] != 0", "true", WRONG),
    fault("not clipped", "if (in.clip <= 0) return score;", "return score;", WRONG),
    fault(
        "totals not rescaled",
        "running_sum[r] * exp(previous_max - running_max[r])",
        "running_sum[r]",
        WRONG,
    ),
    fault(
        "lanes not rescaled",
        "running_sum[r] * exp(running_max[r] - row_max)",
        "running_sum[r]",
        WRONG,
    ),
    fault("ties count as above", "score[r] > own[r] ? 1", "score[r] >= own[r] - 1 ? 1", WRONG),
    fault(
        "keys past the last",
        "query < in.queries && key < in.keys &&",
        "query < in.queries &&",
        "out of bounds",
    ),
    fault(
        "results: no bound",
        "if (threadIdx.x == 0 && query < in.queries)",
        "if (threadIdx.x == 0)",
        "out of bounds",
    ),
    fault("gradient through a clipped score", "if (!within) return mean;", "", WRONG),
    fault(
        "no gradient through the positive",
        "(within ? args.grad_lse[at]",
        "(false ? args.grad_lse[at]",
        WRONG,
    ),
    fault(
        "queries: keys past the last",
        "left < kSide ? static_cast<int>(left) : kSide",
        "kSide",
        "out of bounds",
    ),
    fault(
        "keys: queries past the last",
        "left < kSide ? static_cast<int>(left) : kSide",
        "kSide",
        "out of bounds",
        occurrence=1,
    ),
    fault("queries: no bound", "if (first + row >= in.queries) break;", "", "out of bounds"),
    fault("keys: no bound", "if (first + row >= in.keys) break;", "", "out of bounds"),
    fault(
        "queries: sums begin anywhere",
        "column == 0 ? scalar_t(0) : args.grad_query[to]",
        "args.grad_query[to]",
        "uninitialised",
    ),
    fault(
        "std: sums begin anywhere",
        "column == 0 ? scalar_t(0) : args.grad_std[to]",
        "args.grad_std[to]",
        "uninitialised",
    ),
    fault(
        "std: no derivative of the constant", "error * error - scalar_t(1)", "error * error", WRONG
    ),
]


TIE_FAULTS = [
    fault("tile: product rounded", "fma(tile.rows[row][i], column, score[r])",
               "score[r] + tile.rows[row][i] * column", WRONG),
    fault("one: product rounded", "fma(in.scale * query[d], key[d], sum)",
               "sum + in.scale * query[d] * key[d]", WRONG),
    fault("tile: square rounded", "fma(error, error, score[r])", "score[r] + error * error",
               WRONG),
    fault("one: square rounded", "fma(error, error, sum)", "sum + error * error", WRONG),
    fault("tile: offset added separately", "fma(score[r], scalar_t(-0.5) * in.scale, offset)",
               "score[r] * (scalar_t(-0.5) * in.scale) + offset", WRONG),
]  # fmt: skip


@pytest.mark.parametrize("fault", TIE_FAULTS, ids=names(TIE_FAULTS))
def test_a_score_rounded_in_two_ways_is_found(fault: Fault, tmp_path: Path) -> None:
    edits = {"pairwise_lse.cuh": fault.mutation.text}
    library = build(KERNELS / "pairwise_lse.cu", edits=edits, folder=tmp_path, contract=False)
    cases = [pairwise_cases.tied_case(np.float32, gaussian=gaussian) for gaussian in (False, True)]
    check_is_found(fault, run_cases(library, cases), "pairwise_lse.cuh")


def test_pairwise_has_no_fault() -> None:
    assert run_pairwise(build(KERNELS / "pairwise_lse.cu")) == (Report(), True)


@pytest.mark.parametrize("fault", FAULTS, ids=names(FAULTS))
def test_pairwise_fault_is_found(fault: Fault, tmp_path: Path) -> None:
    edits = {"pairwise_lse.cuh": fault.mutation.text}
    library = build(KERNELS / "pairwise_lse.cu", edits=edits, folder=tmp_path)
    check_is_found(fault, run_pairwise(library), "pairwise_lse.cuh")
