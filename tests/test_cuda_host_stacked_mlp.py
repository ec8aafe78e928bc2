"""The CUDA kernels of ``stacked_mlp``, executed on the CPU: values, schedules, faults."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cuda_host import KERNELS, Library, Report, Schedule, build, replace, stacked_mlp_cases
from cuda_host.faults import WRONG, Fault, Outcome, check_case, check_is_found, names, run_cases

pytestmark = pytest.mark.ci

SOURCE = (KERNELS / "stacked_mlp.cuh").read_text()


@pytest.fixture(scope="module")
def stacked_mlp() -> Library:
    return build(KERNELS / "stacked_mlp.cu")


# Around a warp of units and the four rows of a block.
SHAPES = [(1, 1, 1), (2, 3, 31), (3, 4, 32), (1, 5, 33), (2, 2, 70)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("relu", [False, True], ids=["tanh", "relu"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_stacked_mlp(
    stacked_mlp: Library,
    shape: tuple[int, int, int],
    relu: bool,
    backward: bool,
    dtype: type[np.floating],
) -> None:
    for seed in range(3):
        case = stacked_mlp_cases.case(shape, dtype, relu=relu, backward=backward)
        check_case(stacked_mlp, case, Schedule(seed=seed, preempt=5 * seed))


def test_a_linear_layer_adds_its_bias_alone(stacked_mlp: Library) -> None:
    for shape in SHAPES:
        case = stacked_mlp_cases.case(shape, np.float32, normalise=False)
        check_case(stacked_mlp, case, Schedule())


def test_moments_may_be_unwanted(stacked_mlp: Library) -> None:
    case = stacked_mlp_cases.case((2, 3, 40), np.float64, moments=False)
    check_case(stacked_mlp, case, Schedule())


@pytest.mark.parametrize("backward", [False, True])
def test_no_rows(stacked_mlp: Library, backward: bool) -> None:
    case = stacked_mlp_cases.case((2, 0, 8), np.float32, backward=backward)
    check_case(stacked_mlp, case, Schedule())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_not_hidden(stacked_mlp: Library, value: float) -> None:
    case = stacked_mlp_cases.case((1, 2, 5), np.float32)
    case.inputs["product"][0, 0, 3] = value
    assert not stacked_mlp.call(case.function, case.arguments)
    assert np.isnan(case.outputs["features"][0, 0]).any()
    assert np.isfinite(case.outputs["features"][0, 1]).all()


# --- Faults ---


def run_all(library: Library) -> Outcome:
    kinds = [{}, {"relu": False}, {"normalise": False}, {"backward": True}]
    kinds.append({"backward": True, "relu": False})
    return run_cases(
        library,
        (stacked_mlp_cases.case((2, 3, 35), np.float64, **kind) for kind in kinds),
    )


def fault(name: str, old: str, new: str, kind: str, occurrence: int = 0) -> Fault:
    return Fault(replace(SOURCE, old, new, name=name, occurrence=occurrence), kind, False)


BOUND = "if (row >= args.groups * args.rows) return;"
FAULTS = [
    fault("half of a sum", "kMlpWarp / 2; lanes", "kMlpWarp / 4; lanes", WRONG),
    fault("forward: no bound", BOUND, "", "out of bounds"),
    fault("backward: no bound", BOUND, "", "out of bounds", 1),
    fault("a group's bias for all", "row / args.rows * units", "0", WRONG),
    fault("activates always", "if (args.normalise) {", "{", WRONG),
    fault("normalises always", "if (!args.normalise) return;", "", WRONG),
    fault("no epsilon", "variance + args.epsilon", "variance", WRONG),
    fault("squares about 0", "features[i] - mean;", "features[i];", WRONG),
    fault("not centred", "(features[i] - mean) * inverse", "features[i] * inverse", WRONG),
    fault("moments of one row", "moments[2 * row] = mean", "moments[0] = mean", "race"),
    fault("no offset", "grad[i] - offset -", "grad[i] -", WRONG),
    fault("no slope", "- features[i] * slope", "", WRONG),
    fault("passes everything", "features[i] <= zero ? scalar_t(0) : to", "to", WRONG),
    fault("tanh not restored", "features[i] / inverse + mean", "features[i]", WRONG),
]  # fmt: skip


def test_stacked_mlp_has_no_fault() -> None:
    assert run_all(build(KERNELS / "stacked_mlp.cu")) == (Report(), True)


@pytest.mark.parametrize("fault", FAULTS, ids=names(FAULTS))
def test_stacked_mlp_fault_is_found(fault: Fault, tmp_path: Path) -> None:
    edits = {"stacked_mlp.cuh": fault.mutation.text}
    library = build(KERNELS / "stacked_mlp.cu", edits=edits, folder=tmp_path)
    check_is_found(fault, run_all(library), "stacked_mlp.cuh")
