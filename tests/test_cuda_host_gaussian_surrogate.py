"""The CUDA kernel of ``gaussian_surrogate``, executed on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cuda_host import KERNELS, Library, Report, Schedule, build, gaussian_surrogate_cases, replace
from cuda_host.faults import WRONG, Fault, Outcome, check_case, check_is_found, names, run_cases

pytestmark = pytest.mark.ci

FILE = "gaussian_surrogate.cuh"
SOURCE = (KERNELS / FILE).read_text()
KINDS: list[dict[str, bool]] = [{}, {"shared": True}, {"weighted": True}, {"padded": True}]


@pytest.fixture(scope="module")
def library() -> Library:
    return build(KERNELS / "gaussian_surrogate.cu")


# Around a warp, a block of 256 threads, and two rows a thread.
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 33, 2), (2, 256, 3), (2, 600, 2)], ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_gaussian_surrogate(
    library: Library,
    kind: dict[str, bool],
    shape: tuple[int, int, int],
    dtype: type[np.floating],
) -> None:
    for seed in range(2):
        case = gaussian_surrogate_cases.case(shape, dtype, **kind)
        check_case(library, case, Schedule(seed=seed, preempt=5 * seed))


@pytest.mark.parametrize("shape", [(0, 4, 2), (2, 0, 2), (2, 4, 0)], ids=str)
def test_nothing_to_sum(library: Library, shape: tuple[int, int, int]) -> None:
    check_case(library, gaussian_surrogate_cases.case(shape, np.float32), Schedule())


def test_what_is_not_finite_is_not_hidden(library: Library) -> None:
    for name in ("mean", "log_std", "action", "before", "advantages"):
        case = gaussian_surrogate_cases.case((2, 5, 2), np.float32)
        case.inputs[name][0, ...].flat[1] = np.nan
        assert not library.call(case.function, case.arguments)
        assert np.isnan(case.outputs["loss"]).tolist() == [True, False]


# --- Faults ---


def run_all(library: Library) -> Outcome:
    cases = (gaussian_surrogate_cases.case((2, 300, 2), np.float64, **kind) for kind in KINDS)
    return run_cases(library, cases)


def fault(name: str, old: str, new: str, kind: str) -> Fault:
    return Fault(replace(SOURCE, old, new, name=name), kind, False)


BOUND = "i < args.rows; i += kClippedThreads) {\n    const int64_t at = start + i;\n    scalar_t"

BARRIER = fault("no barrier", "__syncthreads();  // all have read", "// all have read", "race")
FAULTS = [
    BARRIER,
    fault("all agents as the first", "start = agent * args.rows", "start = 0", "race"),
    fault("one row too many", BOUND, BOUND.replace("<", "<=", 1), "out of bounds"),
    fault("weights ignored", "args.weights == nullptr", "true", WRONG),
    fault("slope not weighted", "row.slope * weight", "row.slope", WRONG),
    fault("padding has a scale", "== 0) return 0", "== 2) return 0", WRONG),
    fault("padding has an entropy", "== 0) continue", "== 2) continue", WRONG),
    fault("padding has a slope", "args.own[agent * width + w] != 0;", "true;", WRONG),
    fault("one deviation for all", "-args.log_std[args.shared ?", "-args.log_std[true ?", WRONG),
    fault("no constant", "square - constant", "square", WRONG),
    fault("mean's slope not scaled", "error * slope * scale", "error * slope", WRONG),
    fault("no slopes subtracted", "one[0] - sums[4]", "one[0]", WRONG),
    fault("no entropy in the slope", "sums[4] - to_entropy", "sums[4]", WRONG),
    fault("the entropy is the constant", "0.5 * numbers", "0.0 * numbers", WRONG),
]  # fmt: skip


def test_gaussian_surrogate_has_no_fault() -> None:
    assert run_all(build(KERNELS / "gaussian_surrogate.cu")) == (Report(), True)


@pytest.mark.parametrize("fault", FAULTS, ids=names(FAULTS))
def test_gaussian_surrogate_fault_is_found(fault: Fault, tmp_path: Path) -> None:
    library = build(
        KERNELS / "gaussian_surrogate.cu", edits={FILE: fault.mutation.text}, folder=tmp_path
    )
    # What the barrier keeps apart is in the function that sums.
    check_is_found(fault, run_all(library), "block_sums.cuh" if fault is BARRIER else FILE)
