"""The CUDA kernels of ``surrogate`` and ``value_loss``, executed on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_host import KERNELS, Library, Report, Schedule, build, clipped_cases, replace
from cuda_host.faults import WRONG, Fault, Outcome, check_case, check_is_found, names, run_cases

pytestmark = pytest.mark.ci

SOURCE = (KERNELS / "clipped.cuh").read_text()
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("surrogate", {}),
    ("surrogate", {"weighted": True}),
    ("value_loss", {}),
    ("value_loss", {"weighted": True}),
    ("value_loss", {"clip": None}),
    ("value_loss", {"delta": None}),
]


@pytest.fixture(scope="module")
def clipped() -> Library:
    return build(KERNELS / "clipped.cu")


# Around a warp, a block of 256 threads, and two rows a thread.
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1), (3, 33), (2, 256), (2, 600)], ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_clipped(
    clipped: Library,
    kind: tuple[str, dict[str, Any]],
    shape: tuple[int, int],
    dtype: type[np.floating],
) -> None:
    for seed in range(2):
        case = clipped_cases.case(kind[0], shape, dtype, **kind[1])
        check_case(clipped, case, Schedule(seed=seed, preempt=5 * seed))


@pytest.mark.parametrize("shape", [(0, 4), (2, 0)], ids=str)
@pytest.mark.parametrize("operator", ["surrogate", "value_loss"])
def test_nothing_to_sum(clipped: Library, operator: str, shape: tuple[int, int]) -> None:
    check_case(clipped, clipped_cases.case(operator, shape, np.float32), Schedule())


@pytest.mark.parametrize("operator", ["surrogate", "value_loss"])
def test_what_is_not_finite_is_not_hidden(clipped: Library, operator: str) -> None:
    for name in ("first", "second", "third"):
        case = clipped_cases.case(operator, (2, 5), np.float32)
        case.inputs[name][0, 3] = np.nan
        assert not clipped.call(case.function, case.arguments)
        assert np.isnan(case.outputs["loss"]).tolist() == [True, False]


# --- Faults ---


def run_all(library: Library) -> Outcome:
    return run_cases(
        library,
        (clipped_cases.case(name, (2, 300), np.float64, **options) for name, options in KINDS),
    )


def fault(name: str, old: str, new: str, kind: str) -> Fault:
    return Fault(replace(SOURCE, old, new, name=name), kind, False)


FAULTS = [
    fault("one row too many", "i < args.rows", "i <= args.rows", "out of bounds"),
    fault("all agents as the first", "start = agent * args.rows", "start = 0", "race"),
    fault("weights ignored", "args.weights == nullptr", "true", WRONG),
    fault("slope not weighted", "row.slope * weight", "row.slope", WRONG),
    fault("the larger surrogate", "clipped < plain ? clipped", "clipped > plain ? clipped", WRONG),
    fault("the smaller loss", "plain > clipped ? plain", "plain < clipped ? plain", WRONG),
    fault("clipped has a slope", "plain >= clipped ? slope : scalar_t(0)", "slope", WRONG),
    fault("the ratio is not clipped", "scalar_t(1) - clip", "scalar_t(0)", WRONG),
    fault("the Huber loss stays quadratic", "size <= delta ?", "true ?", WRONG),
]  # fmt: skip


SUMS = (KERNELS / "block_sums.cuh").read_text()
SUM_FAULTS = [
    Fault(replace(SUMS, "__syncthreads();", "", name="no barrier"), "race", False),
    Fault(replace(SUMS, "lanes = 16", "lanes = 8", name="half of a warp"), WRONG, False),
    Fault(replace(SUMS, "< kWarps", "< kWarps - 1", name="one warp missing"), WRONG, False),
]  # fmt: skip


def test_clipped_has_no_fault() -> None:
    assert run_all(build(KERNELS / "clipped.cu")) == (Report(), True)


@pytest.mark.parametrize("fault", FAULTS, ids=names(FAULTS))
def test_clipped_fault_is_found(fault: Fault, tmp_path: Path) -> None:
    edits = {"clipped.cuh": fault.mutation.text}
    library = build(KERNELS / "clipped.cu", edits=edits, folder=tmp_path)
    check_is_found(fault, run_all(library), "clipped.cuh")


@pytest.mark.parametrize("fault", SUM_FAULTS, ids=names(SUM_FAULTS))
def test_fault_of_the_sums_is_found(fault: Fault, tmp_path: Path) -> None:
    edits = {"block_sums.cuh": fault.mutation.text}
    library = build(KERNELS / "clipped.cu", edits=edits, folder=tmp_path)
    check_is_found(fault, run_all(library), "block_sums.cuh")
