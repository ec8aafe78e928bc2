"""The CUDA kernels of ``innovation_moments``, executed on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cuda_host import KERNELS, Library, Report, Schedule, build, innovation_moments_cases, replace
from cuda_host.faults import WRONG, Fault, Outcome, check_case, check_is_found, names, run_cases

pytestmark = pytest.mark.ci

SOURCE = (KERNELS / "innovation_moments.cuh").read_text()
case_of = innovation_moments_cases.case


@pytest.fixture(scope="module")
def kernels() -> Library:
    return build(KERNELS / "innovation_moments.cu")


# Contexts, transitions, agents, width: around the threads of a block, in transitions and entries.
@pytest.mark.parametrize("repeats", [False, True], ids=["in order", "repeats"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, 7, 2, 9), (1, 130, 2, 3), (2, 5, 1, 13)], ids=str
)
def test_innovation_moments(
    kernels: Library,
    shape: tuple[int, int, int, int],
    dtype: type[np.floating],
    backward: bool,
    repeats: bool,
) -> None:
    for seed in range(2):
        case = case_of(shape, dtype, backward=backward, repeats=repeats)
        check_case(kernels, case, Schedule(seed=seed, preempt=5 * seed))


def test_a_gradient_wider_than_a_block(kernels: Library) -> None:
    check_case(kernels, case_of((1, 3, 1, 130), np.float32, backward=True), Schedule())


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("shape", [(0, 4, 2, 3), (2, 0, 2, 3), (2, 4, 0, 3)], ids=str)
def test_nothing_to_sum(kernels: Library, shape: tuple[int, int, int, int], backward: bool) -> None:
    check_case(kernels, case_of(shape, np.float32, backward=backward), Schedule())


@pytest.mark.parametrize("place", [-1, 10**9])
def test_a_place_without_a_row_is_not_hidden(kernels: Library, place: int) -> None:
    case = case_of((2, 9, 2, 3), np.float32, repeats=True)
    case.inputs["places"][1, 4] = place
    assert not kernels.call(case.function, case.arguments)
    nan = np.isnan(case.outputs["moments"])
    assert not nan[0].any()
    assert nan[1, 0].all()
    back = case_of((2, 9, 2, 3), np.float32, repeats=True, backward=True)
    back.inputs["places"][1, 4] = place
    assert not kernels.call(back.function, back.arguments)


# --- Faults ---


def run_all(library: Library) -> Outcome:
    shapes = [(2, 12, 2, 4), (1, 140, 1, 12)]
    options = [{"backward": b, "repeats": r} for b in (False, True) for r in (False, True)]
    cases = (case_of(shape, np.float64, **more) for shape in shapes for more in options)
    return run_cases(library, cases)


def fault(name: str, old: str, new: str, kind: str) -> Fault:
    return Fault(replace(SOURCE, old, new, name=name), kind, False)


LOOKED = "chunk.followed[threadIdx.x] = followed;\n  }\n  __syncthreads();"
FAULTS = [
    fault("chunk read early", LOOKED, LOOKED.replace("  __", "  if (first == 0) __"), "race"),
    fault("chunk overwritten", "  __syncthreads();\n  const int64_t t =", "  const int64_t t =",
          "race"),
    fault("sums read early", "along[2][threadIdx.x] = second;\n  __syncthreads();",
          "along[2][threadIdx.x] = second;", "race"),
    fault("a transition too many", "if (t < args.steps) {", "if (t <= args.steps) {",
          "out of bounds"),
    fault("a number too many", "if (i < args.rows * args.agents * args.width)", "if (true)",
          "out of bounds"),
    fault("all agents as the first", "row * args.agents + agent : -1", "row * args.agents : -1",
          WRONG),
    fault("one observation fewer", "follows && o < args.observation",
          "follows && o < args.observation - 1", WRONG),
    fault("the first follows the last", "if (t >= lag) row", "if (i >= 0) row", WRONG),
    fault("nothing is expected", "x -= weights.of_before", "x -= 0 * weights.of_before", WRONG),
    fault("one kind", "none += followed == 0 ? product", "none += followed < 2 ? product", WRONG),
    fault("no more than one before", "followed < 2;", "followed < 1;", WRONG),
    fault("sums, not means", "two / steps", "two", WRONG),
    fault("half of the gradient", "(grad[i * width + column] + grad[column * width + i])",
          "grad[i * width + column]", WRONG),
    fault("those before have no gradient",
          "args.grad_series[before] -= weights.of_before(followed) * slope;", "", WRONG),
    fault("the second has no gradient",
          "args.grad_series[earlier] -= weights.second * slope;", "", WRONG),
    fault("gradients of other coefficients", "alone -= followed == 1 ?", "alone -= true ?", WRONG),
    fault("one thread missing", "thread < kInnovationThreads; ++thread",
          "thread < 3; ++thread", WRONG),
    fault("gradients are not cleared", "args.grad_series[i] = 0;", ";", "uninitialised"),
]  # fmt: skip


def test_innovation_moments_has_no_fault() -> None:
    assert run_all(build(KERNELS / "innovation_moments.cu")) == (Report(), True)


@pytest.mark.parametrize("fault", FAULTS, ids=names(FAULTS))
def test_innovation_moments_fault_is_found(fault: Fault, tmp_path: Path) -> None:
    edits = {"innovation_moments.cuh": fault.mutation.text}
    library = build(KERNELS / "innovation_moments.cu", edits=edits, folder=tmp_path)
    check_is_found(fault, run_all(library), "innovation_moments.cuh")
