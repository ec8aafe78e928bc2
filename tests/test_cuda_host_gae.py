"""The CUDA kernels of ``gae``, executed on the CPU: values, schedules, faults."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from cuda_host import KERNELS, Library, Report, Schedule, build, delete_each, replace
from cuda_host.cases import Case
from cuda_host.faults import WRONG, Fault, Outcome, check_case, check_is_found, names, run_cases
from cuda_host.gae_cases import backward_case, forward_case

pytestmark = pytest.mark.ci

SOURCE = (KERNELS / "gae.cuh").read_text()


@pytest.fixture(scope="module")
def gae() -> Library:
    return build(KERNELS / "gae.cu")


# Either side of 64 steps, from which on time is cut into 16 chunks: chunks of equal length and
# ragged ones, and some without any step; columns around a warp and around a block of 128.
GAE_SHAPES = [
    (1, 1),
    (1, 129),
    (7, 33),
    (5, 256),
    (63, 31),
    (64, 1),
    (65, 32),
    (67, 33),
    (80, 5),
    (129, 70),
]
EXTRAS = [frozenset(extras) for extras in ((), ("final",), ("norm",), ("final", "norm"))]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("extras", EXTRAS, ids=lambda extras: "+".join(sorted(extras)) or "plain")
@pytest.mark.parametrize(("steps", "columns"), GAE_SHAPES)
def test_gae(
    gae: Library, steps: int, columns: int, extras: frozenset[str], dtype: type[np.floating]
) -> None:
    for index, flags in enumerate(("none", "random", "all")):
        case = forward_case(steps, columns, dtype, extras=extras, flags=flags)
        check_case(gae, case, Schedule(seed=index, preempt=7 * index))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize(("steps", "columns"), GAE_SHAPES)
def test_gae_backward(
    gae: Library, steps: int, columns: int, final: bool, dtype: type[np.floating]
) -> None:
    for index, flags in enumerate(("none", "random", "all")):
        case = backward_case(steps, columns, dtype, final=final, flags=flags)
        check_case(gae, case, Schedule(seed=index, preempt=7 * index))


@pytest.mark.parametrize("seed", range(1, 9))
def test_gae_over_schedules(gae: Library, seed: int) -> None:
    everything = frozenset({"final", "norm"})
    for (steps, columns), preempt in product([(9, 40), (100, 40)], [0, 4]):
        schedule = Schedule(seed=seed, preempt=preempt)
        check_case(gae, forward_case(steps, columns, np.float64, extras=everything), schedule)
        check_case(gae, backward_case(steps, columns, np.float64, final=True), schedule)


@pytest.mark.parametrize(
    ("steps", "columns", "grid", "block"),
    [
        (63, 200, 2, (128, 1, 1)),  # short: a thread a column
        (64, 200, 7, (32, 16, 1)),  # long and narrow: time in chunks
        (64, 8192, 64, (128, 1, 1)),  # long and wide: a thread a column again
    ],
)
def test_gae_takes_the_kernel_for_the_shape(
    gae: Library, steps: int, columns: int, grid: int, block: tuple[int, int, int]
) -> None:
    for case in (
        forward_case(steps, columns, np.float32, extras=frozenset({"final", "norm"})),
        backward_case(steps, columns, np.float32, final=True),
    ):
        check_case(gae, case, Schedule(check=False))
        assert gae.last_launch == ((grid, 1, 1), block)


@pytest.mark.parametrize("function", ["mg2l_gae_float", "mg2l_gae_backward_float"])
def test_gae_without_columns_launches_nothing(gae: Library, function: str) -> None:
    case = (
        backward_case(5, 0, np.float32, final=True)
        if "backward" in function
        else forward_case(5, 0, np.float32)
    )
    assert not gae.call(case.function, case.arguments)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gae_without_steps(gae: Library, dtype: type[np.floating]) -> None:
    case = forward_case(0, 40, dtype)
    assert not gae.call(case.function, case.arguments)
    moments = case.outputs["moments"]
    np.testing.assert_array_equal(moments, np.zeros((2, 40)))


def test_gae_reads_final_values_only_where_truncated(gae: Library) -> None:
    for steps in (9, 100):
        case = forward_case(steps, 40, np.float64, extras=frozenset({"final", "norm"}))
        unused = ~case.inputs["truncated"].astype(bool) | case.inputs["terminated"].astype(bool)
        case.inputs["final_values"][unused] = np.nan
        check_case(gae, case, Schedule())


@pytest.mark.parametrize("steps", [1, 50, 300])  # both kernels
def test_gae_moments_do_not_cancel(gae: Library, steps: int) -> None:
    """A mean of a million standard deviations."""
    case = forward_case(steps, 40, np.float32, flags="all")
    case.inputs["rewards"] += np.float32(1e6)
    assert not gae.call(case.function, case.arguments)
    advantages = case.outputs["advantages"].astype(np.float64)
    mean, squares = case.outputs["moments"]
    np.testing.assert_allclose(mean, advantages.mean(0), rtol=1e-14)
    deviations = advantages - advantages.mean(0)
    np.testing.assert_allclose(squares, (deviations**2).sum(0), rtol=1e-9, atol=1e-9)


# --- Faults ---


def gae_cases() -> list[Case]:
    """Both kernels of both directions, with everything that is optional and without."""
    everything = frozenset({"final", "norm"})
    return [
        *(
            forward_case(steps, 33, np.float64, extras=extras)
            for steps in (7, 67)
            for extras in (everything, frozenset[str]())
        ),
        *(
            backward_case(steps, 33, np.float64, final=final)
            for steps in (7, 67)
            for final in (True, False)
        ),
    ]


def run_gae(library: Library) -> Outcome:
    return run_cases(library, gae_cases())


def fault(
    name: str, old: str, new: str, kind: str, *, occurrence: int = 0, at_line: bool = False
) -> Fault:
    return Fault(replace(SOURCE, old, new, name=name, occurrence=occurrence), kind, at_line)


BOUNDS = "out of bounds"
BOUND = "if (column >= args.columns) return;"
WORKS = "column < columns && begin < end"
LENGTH = "(steps + kChunks - 1) / kChunks"
FAULTS = [
    *(Fault(mutation, "race", False) for mutation in delete_each(SOURCE, "__syncthreads();")),
    fault("columns: no bound", BOUND, "", "out of bounds"),
    fault("backward columns: no bound", BOUND, "", "out of bounds", occurrence=1),
    fault("chunked: no bound", WORKS, "begin < end", "out of bounds"),
    fault("moments: no bound", "y == 0 && column < args.columns", "y == 0", "out of bounds"),
    fault("a step too many", "walk(0, args.steps,", "walk(0, args.steps + 1,", "out of bounds"),
    fault(
        "backward: a step too many",
        "walk(0, args.steps,",
        "walk(0, args.steps + 1,",
        "out of bounds",
        occurrence=1,
    ),
    fault(
        "value two steps later",
        "values[end * columns]",
        "values[(end + 1) * columns]",
        "out of bounds",
    ),
    fault("a step too few", "walk(0, args.steps,", "walk(1, args.steps,", WRONG),
    fault("last chunk too long", "to < steps ? to : steps", "to", "out of bounds"),
    fault("chunks too short", LENGTH, "steps / kChunks", WRONG),
    fault("own chunk entered", "later > y", "later >= y", WRONG),
    fault("backward: own chunk entered", "earlier < y", "earlier <= y", WRONG),
    fault("factors not written", "factors[y][x] = factor;", "", "uninitialised"),
    fault(
        "backward: offsets not written",
        "offsets[y][x] = offset;",
        "",
        "uninitialised",
        occurrence=1,
    ),
    fault(
        "moments of the first chunk only",
        "moments.merge({counts[chunk][x], means[chunk][x], squares[chunk][x]});",
        "",
        WRONG,
    ),
    fault("means not merged", "mean += delta * weight;", "", WRONG),
    fault("no spread between chunks", "other.squares + delta * delta", "other.squares + 0", WRONG),
    fault("the shift is not taken out", "square_sum - sum * shift", "square_sum", WRONG),
    fault(
        "writes to its input",
        "advantages[step * columns] = carry;",
        "const_cast<scalar_t*>(rewards)[step * columns] = carry;",
        "read-only",
        at_line=True,
    ),
    fault(
        "terminated and truncated swapped",
        "terminated(args.terminated + column),\n        truncated(args.truncated + column),",
        "terminated(args.truncated + column),\n        truncated(args.terminated + column),",
        WRONG,
    ),
    fault(
        "backward: terminated and truncated swapped",
        "cut && !ends);",
        "ends && !cut);",
        WRONG,
    ),
    fault("carry through truncation", "!(ends || cut)", "!ends", WRONG),
    fault(
        "backward: carry through truncation",
        "{ends || cut ?",
        "{ends ?",
        WRONG,
    ),
    fault("truncation ends the value", "if (ends) next", "if (ends || cut) next", WRONG),
    fault("loads before the first step", "last - k > first ? last - k : first", "last - k", BOUNDS),
    fault("loads after the last step", "first + k < last ? first + k : last", "first + k", BOUNDS),
    fault("steps left out", "last -= kAhead<scalar_t>", "last -= kAhead<scalar_t> + 1", WRONG),
    fault("same inputs again", "load(last - kAhead<scalar_t>, begin)", "load(last, begin)", WRONG),
    fault("backward: the same inputs", "load(first + kAhead<scalar_t>,", "load(first,", WRONG),
    fault(
        "final values stay normalised",
        "inputs.final_values[k] * std + mean",
        "inputs.final_values[k]",
        WRONG,
    ),
    fault("backward: boots twice", "|| elsewhere ?", "?", WRONG),
]


def test_gae_has_no_fault() -> None:
    assert run_gae(build(KERNELS / "gae.cu")) == (Report(), True)


@pytest.mark.parametrize("fault", FAULTS, ids=names(FAULTS))
def test_gae_fault_is_found(fault: Fault, tmp_path: Path) -> None:
    library = build(KERNELS / "gae.cu", edits={"gae.cuh": fault.mutation.text}, folder=tmp_path)
    check_is_found(fault, run_gae(library), "gae.cuh")
