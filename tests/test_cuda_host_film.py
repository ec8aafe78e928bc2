"""The CUDA kernels of ``film``, executed on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cuda_host import KERNELS, Library, Report, Schedule, build, film_cases, replace
from cuda_host.faults import WRONG, Fault, Outcome, check_case, check_is_found, names, run_cases

pytestmark = pytest.mark.ci

SOURCE = (KERNELS / "film.cuh").read_text()
# Groups, rows, latents, width: around the lanes of a warp, the columns and threads of a block.
SHAPES = [
    (1, 1, 0, 1), (2, 9, 0, 30), (1, 1, 1, 1), (2, 33, 3, 31), (3, 70, 2, 32), (2, 20, 5, 129),
]  # fmt: skip


@pytest.fixture(scope="module")
def library() -> Library:
    return build(KERNELS / "film.cu")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backward", [False, True])
def test_film(
    library: Library,
    backward: bool,
    shape: tuple[int, int, int, int],
    dtype: type[np.floating],
) -> None:
    for seed in range(2):
        case = film_cases.case(shape, dtype, backward=backward)
        check_case(library, case, Schedule(seed=seed, preempt=5 * seed))


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("shape", [(0, 3, 2, 4), (2, 0, 3, 4), (2, 0, 0, 4), (2, 3, 2, 0)], ids=str)
def test_nothing_to_modulate(
    library: Library, shape: tuple[int, int, int, int], backward: bool
) -> None:
    check_case(library, film_cases.case(shape, np.float32, backward=backward), Schedule())


@pytest.mark.parametrize("number", [-1, 3, 10**9])
def test_a_row_without_a_latent_is_not_hidden(library: Library, number: int) -> None:
    for backward, name in ((False, "y"), (True, "grad_features")):
        case = film_cases.case((2, 5, 3, 4), np.float32, backward=backward)
        case.inputs["index"][2] = number
        assert not library.call(case.function, case.arguments)
        missing = np.isnan(case.outputs[name]).all(-1)
        assert missing.tolist() == [[False, False, True, False, False]] * 2


# --- Faults ---


def run_all(library: Library) -> Outcome:
    shapes = [(2, 9, 0, 30), (2, 70, 3, 131)]
    return run_cases(
        library,
        (film_cases.case(shape, np.float64, backward=b) for shape in shapes for b in (False, True)),
    )


def fault(name: str, old: str, new: str, kind: str) -> Fault:
    return Fault(replace(SOURCE, old, new, name=name), kind, False)


FAULTS = [
    fault("a row too many", "looked_at < in.rows", "looked_at <= in.rows", "out of bounds"),
    fault("the index is ignored", "args.index[row]", "0", WRONG),
    fault("a latent too few", "latent >= args.latents)", "latent >= args.latents - 1)", WRONG),
    fault("all groups are the first", "(group * in.latents + latent) * 2 * width + column",
          "latent * 2 * width + column", "race"),
    fault("no one", "args.y[i] = (scalar_t(1) + scale[0])", "args.y[i] = (scale[0])", WRONG),
    fault("no shift", "* in.features[i] + scale[in.width]", "* in.features[i]", WRONG),
    fault("no one backward", "grad * (scalar_t(1) + in.generated[place])",
          "grad * in.generated[place]", WRONG),
    fault("no return", "  if (in.shared) return;\n", "", "race"),
    fault("a row is kept", "rows &= rows - 1;", "rows = 0;", WRONG),
    fault("the next row", "__ffs(static_cast<int>(rows)) - 1", "__ffs(static_cast<int>(rows))",
          "out of bounds"),
    fault("columns past the width", "      if (column >= width) continue;\n", "", "out of bounds"),
    fault("written past the width", "  if (column >= width) return;\n", "", "race"),
    fault("one warp for all columns", "* kFilmWarps + threadIdx.y) * 32", "* kFilmWarps) * 32",
          "race"),
    fault("scale and shift exchanged", "to[0] = scale", "to[0] = shift", WRONG),
]  # fmt: skip


def test_film_has_no_fault() -> None:
    assert run_all(build(KERNELS / "film.cu")) == (Report(), True)


@pytest.mark.parametrize("fault", FAULTS, ids=names(FAULTS))
def test_film_fault_is_found(fault: Fault, tmp_path: Path) -> None:
    library = build(KERNELS / "film.cu", edits={"film.cuh": fault.mutation.text}, folder=tmp_path)
    check_is_found(fault, run_all(library), "film.cuh")
