"""The CUDA kernels of ``gelu_mlp``, executed on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cuda_host import KERNELS, Library, Report, Schedule, build, replace
from cuda_host.faults import WRONG, Fault, Outcome, check_case, check_is_found, names, run_cases
from cuda_host.gelu_mlp_cases import backward_case, forward_case

pytestmark = pytest.mark.ci

SOURCE = (KERNELS / "gelu_mlp.cuh").read_text()
SIZES = [(1, 1), (3, 33), (2, 128), (5, 103)]  # around the threads of a block, 256


@pytest.fixture(scope="module")
def kernels() -> Library:
    return build(KERNELS / "gelu_mlp.cu")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gelu_mlp(kernels: Library, size: tuple[int, int], dtype: type[np.floating]) -> None:
    for activate in (True, False):
        for keep in (True, False):
            case = forward_case(*size, dtype, activate=activate, keep=keep)
            check_case(kernels, case, Schedule(seed=1, preempt=5))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gelu_mlp_backward(
    kernels: Library, size: tuple[int, int], dtype: type[np.floating]
) -> None:
    check_case(kernels, backward_case(*size, dtype), Schedule(seed=1, preempt=5))


def test_no_rows(kernels: Library) -> None:
    check_case(kernels, forward_case(0, 5, np.float32), Schedule())
    check_case(kernels, backward_case(0, 5, np.float32), Schedule())


# --- Faults ---


def run_all(library: Library) -> Outcome:
    forward = [forward_case(5, 103, np.float64, activate=activate) for activate in (True, False)]
    return run_cases(library, [*forward, backward_case(5, 103, np.float64)])


def fault(name: str, old: str, new: str, kind: str) -> Fault:
    return Fault(replace(SOURCE, old, new, name=name), kind, False)


PAST = "  if (i >= args.rows * args.units) return;\n  const scalar_t h"
FAULTS = [
    fault("a number too many", PAST, PAST.replace(">=", ">"), "out of bounds"),
    fault("every bias is the first", "args.bias[i % args.units]", "args.bias[0]", WRONG),
    fault("every layer is activated", "if (args.activate) gelu", "gelu", WRONG),
    fault("what is kept is activated", "args.kept[i] = h;\n  scalar_t value = h, slope;",
          "args.kept[i] = h * h;\n  scalar_t value = h, slope;", WRONG),
    fault("no slope", "args.grad[i] * slope", "args.grad[i]", WRONG),
]  # fmt: skip


def test_gelu_mlp_has_no_fault() -> None:
    assert run_all(build(KERNELS / "gelu_mlp.cu")) == (Report(), True)


@pytest.mark.parametrize("fault", FAULTS, ids=names(FAULTS))
def test_gelu_mlp_fault_is_found(fault: Fault, tmp_path: Path) -> None:
    edits = {"gelu_mlp.cuh": fault.mutation.text}
    library = build(KERNELS / "gelu_mlp.cu", edits=edits, folder=tmp_path)
    check_is_found(fault, run_all(library), "gelu_mlp.cuh")
