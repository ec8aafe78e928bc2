"""The CUDA kernels of ``clip_norms``, executed on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cuda_host import KERNELS, Library, Report, Schedule, build, clip_norms_cases, replace
from cuda_host.clip_norms_cases import LAUNCH, drawn
from cuda_host.faults import WRONG, Fault, Outcome, check_is_found, names

pytestmark = pytest.mark.ci

SOURCE = (KERNELS / "clip_norms.cuh").read_text()
RIGHT = (Report(), True)


@pytest.fixture(scope="module")
def library() -> Library:
    return build(KERNELS / "clip_norms.cu")


# Numbers of a group in each tensor: around blocks of 256 threads and of 2,048 numbers, and more
# tensors than a launch takes.
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "sizes", [[1], [33, 1, 0, 257], [2047], [2048, 1], [2500, 300], [5] * (LAUNCH + 2)], ids=str
)
@pytest.mark.parametrize(("groups", "limit"), [(1, 1.0), (3, 2.0), (2, 1e6), (2, np.inf)])
def test_clip_norms(
    library: Library, groups: int, limit: float, sizes: list[int], dtype: type[np.floating]
) -> None:
    for seed in range(2):
        schedule = Schedule(seed=seed, preempt=9 * seed)
        gradients = drawn(groups, sizes, dtype)
        assert clip_norms_cases.run(library, gradients, limit, schedule) == RIGHT


@pytest.mark.parametrize("groups", [0, 2])
def test_nothing_to_clip(library: Library, groups: int) -> None:
    assert clip_norms_cases.run(library, drawn(groups, [0], np.float32), 1.0) == RIGHT


def test_what_is_not_finite_is_not_hidden(library: Library) -> None:
    gradients = drawn(2, [5, 300], np.float32)
    gradients[1][0, 7] = np.nan
    assert clip_norms_cases.run(library, gradients, 1.0) == RIGHT
    assert np.isnan(gradients[0][0]).all()
    assert np.isfinite(gradients[0][1]).all()


# --- Faults ---


def run_all(library: Library) -> Outcome:
    found = [
        clip_norms_cases.run(library, drawn(groups, sizes, np.float64), limit)
        for groups, sizes, limit in [
            (2, [2500, 300], 2.0),
            (2, [33, 257], 7.0),
            (2, [5] * (LAUNCH + 2), 1.0),
        ]
    ]
    findings = [finding for outcome in found for finding in outcome.report]
    return Outcome(Report(findings), all(outcome.values_are_right for outcome in found))


def fault(name: str, old: str, new: str, kind: str) -> Fault:
    return Fault(replace(SOURCE, old, new, name=name), kind, False)


WALK = "threadIdx.x; i < size"
PART = "args.partial[group * args.parts + args.first + blockIdx.x]"
FAULTS = [
    fault("one number too many", WALK, WALK.replace("<", "<="), "out of bounds"),
    fault("blocks read the same", "blockIdx.x * kClipThreads + threadIdx.x", "threadIdx.x", WRONG),
    fault("groups leave the same part", PART, "args.partial[args.first + blockIdx.x]", "race"),
    fault("launches leave the same part", "+ args.first +", "+", WRONG),
    fault("one part missing", "i < args.parts", "i < args.parts - 1", WRONG),
    fault("no root", "sqrt(sums[0])", "sums[0]", WRONG),
    fault("small gradients grow", "if (scale >= 1) return;", "", WRONG),
    fault("every block writes the norm", "blockIdx.x == 0 && ", "", "race"),
]  # fmt: skip


def test_clip_norms_has_no_fault() -> None:
    assert run_all(build(KERNELS / "clip_norms.cu")) == RIGHT


@pytest.mark.parametrize("fault", FAULTS, ids=names(FAULTS))
def test_clip_norms_fault_is_found(fault: Fault, tmp_path: Path) -> None:
    edits = {"clip_norms.cuh": fault.mutation.text}
    library = build(KERNELS / "clip_norms.cu", edits=edits, folder=tmp_path)
    check_is_found(fault, run_all(library), "clip_norms.cuh")
