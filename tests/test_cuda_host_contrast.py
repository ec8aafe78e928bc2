"""The CUDA kernels of ``contrast``, executed on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cuda_host import KERNELS, Library, Report, Schedule, build, contrast_cases, replace
from cuda_host.faults import WRONG, Fault, Outcome, check_case, check_is_found, names, run_cases

pytestmark = pytest.mark.ci

SOURCE = (KERNELS / "contrast.cuh").read_text()


@pytest.fixture(scope="module")
def contrast() -> Library:
    return build(KERNELS / "contrast.cu")


# Groups, rows, keys, width: below and above the lanes of a warp and the warps of a block.
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, 5, 3, 16), (1, 9, 40, 35), (2, 270, 2, 3)], ids=str
)
def test_contrast(
    contrast: Library, shape: tuple[int, int, int, int], dtype: type[np.floating]
) -> None:
    for seed in range(2):
        case = contrast_cases.case(shape, dtype)
        check_case(contrast, case, Schedule(seed=seed, preempt=5 * seed))


def test_no_groups(contrast: Library) -> None:
    check_case(contrast, contrast_cases.case((0, 4, 3, 2), np.float32), Schedule())


@pytest.mark.parametrize("positive", [-1, 3, 10**9])
def test_a_row_without_a_key_is_not_hidden(contrast: Library, positive: int) -> None:
    case = contrast_cases.case((2, 5, 3, 4), np.float32)
    case.inputs["positive"][2] = positive
    assert not contrast.call(case.function, case.arguments)
    assert np.isnan(case.outputs["loss"]).all()


@pytest.mark.parametrize("name", ["raw", "keys"])
def test_what_is_not_finite_is_not_hidden(contrast: Library, name: str) -> None:
    case = contrast_cases.case((2, 5, 3, 4), np.float32)
    case.inputs[name].flat[1] = np.nan
    assert not contrast.call(case.function, case.arguments)
    assert np.isnan(case.outputs["loss"]).tolist() == [True, name == "keys"]


def test_vectors_without_a_length(contrast: Library) -> None:
    case = contrast_cases.case((1, 5, 3, 4), np.float64)
    case.inputs["raw"][0, 2, :4] = 0
    case.inputs["keys"][1] = 0
    assert not contrast.call(case.function, case.arguments)
    assert all(np.isfinite(x).all() for x in case.outputs.values())


# --- Faults ---


def run_all(library: Library) -> Outcome:
    shapes = [(2, 20, 3, 5), (1, 9, 40, 35)]
    return run_cases(library, (contrast_cases.case(shape, np.float64) for shape in shapes))


def fault(name: str, old: str, new: str, kind: str) -> Fault:
    return Fault(replace(SOURCE, old, new, name=name), kind, False)


EARLY = "shared[warp][lane] = sum;\n    __syncthreads();"
LATE = "along += slope[d] * (key[d] / norm);\n    }\n    __syncthreads();"
FAULTS = [
    fault("scores read early", "  __syncwarp();\n  const int64_t own", "  const int64_t own",
          "race"),
    fault("scores overwritten", "  __syncwarp();  // all have", "  // all have", "race"),
    fault("factors read early", "  __syncwarp();\n  // Through u", "  // Through u", "race"),
    fault("sums read early", EARLY, "shared[warp][lane] = sum;", "race"),
    fault("sums overwritten", LATE, LATE.rpartition("\n")[0], "race"),
    fault("a row too many", "row < rows && d < width", "row <= rows && d < width", "out of bounds"),
    fault("half of a warp", "  for (int lanes = 16; lanes > 0; lanes /= 2) {\n    value",
          "  for (int lanes = 8; lanes > 0; lanes /= 2) {\n    value", WRONG),
    fault("no temperature", "/ args.temperature;", "/ scalar_t(1);", WRONG),
    fault("the own key is like others", "(k == own ? scalar_t(1) : scalar_t(0))", "0", WRONG),
    fault("keys of any length", "product / divisor(square_of(key, width))", "product", WRONG),
    fault("means are not projected", "slope[d] -= along * (mean[d] / norm)", "", WRONG),
    fault("keys are not projected", "slope[d] -= along * (key[d] / norm)", "", WRONG),
    fault("no slope of softplus", "(std - 1 / std) * sigmoid", "(std - 1 / std)", WRONG),
    fault("one warp missing", "w < kContrastWarps; ++w) whole", "w < 7; ++w) whole", WRONG),
    fault("no weight", "static_cast<double>(args.kl_weight) * means[2]", "means[2]", WRONG),
]  # fmt: skip


def test_contrast_has_no_fault() -> None:
    assert run_all(build(KERNELS / "contrast.cu")) == (Report(), True)


@pytest.mark.parametrize("fault", FAULTS, ids=names(FAULTS))
def test_contrast_fault_is_found(fault: Fault, tmp_path: Path) -> None:
    edits = {"contrast.cuh": fault.mutation.text}
    library = build(KERNELS / "contrast.cu", edits=edits, folder=tmp_path)
    check_is_found(fault, run_all(library), "contrast.cuh")
