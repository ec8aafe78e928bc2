"""The kernels of csrc/cuda, executed thread by thread on the CPU, against their definition.

Every run is checked as well: no race, no access out of bounds, nothing read before it is written.
First the runtime that does this is tested on kernels of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from cuda_host import KERNELS, Library, Schedule, build, pairwise_cases, pia_pool_cases
from cuda_host.build import HERE
from cuda_host.cases import Case, largest_errors
from cuda_host.gae_cases import backward_case, forward_case
from cuda_host.library import parse_launchers

pytestmark = pytest.mark.ci

SCHEDULES = [
    Schedule(),
    Schedule(seed=1),
    Schedule(seed=2, preempt=3),
    Schedule(seed=3, preempt=20),
    Schedule(preempt=5),
]


@pytest.fixture(scope="module")
def self_test() -> Library:
    return build(HERE / "kernels" / "reduce.cu")


@pytest.fixture(scope="module")
def gae() -> Library:
    return build(KERNELS / "gae.cu")


@pytest.fixture(scope="module")
def pia_pool() -> Library:
    return build(KERNELS / "pia_pool.cu")


@pytest.fixture(scope="module")
def pairwise() -> Library:
    return build(KERNELS / "pairwise_lse.cu")


# The runtime.


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 256), (9, 1000)])
def test_row_sum_and_scan(self_test: Library, rows: int, columns: int, schedule: Schedule) -> None:
    x = np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32)
    sums, scan = np.empty(rows, np.float32), np.empty_like(x)
    arguments = {"rows": rows, "columns": columns, "x": x}
    assert not self_test.call("row_sum", {**arguments, "sums": sums}, schedule=schedule)
    assert not self_test.call("row_scan", {**arguments, "scan": scan}, schedule=schedule)
    np.testing.assert_allclose(sums, x.sum(1, dtype=np.float64), atol=1e-4)
    np.testing.assert_allclose(scan, x.cumsum(1, dtype=np.float64), atol=1e-4)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_histogram(self_test: Library, schedule: Schedule) -> None:
    x = np.random.default_rng(0).random(4000, np.float32)
    counts = np.arange(64, dtype=np.int32)
    arguments = {"count": 4000, "x": x, "counts": counts}
    assert not self_test.call("histogram", arguments, in_out=["counts"], schedule=schedule)
    expected = np.bincount((x * 64).astype(np.int64), minlength=64) + np.arange(64)
    np.testing.assert_array_equal(counts, expected)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_warps(self_test: Library, schedule: Schedule) -> None:
    rng = np.random.default_rng(0)
    tiles = rng.normal(size=(3, 32, 32)).astype(np.float32)
    transposed = np.empty_like(tiles)
    arguments = {"tiles": 3, "x": tiles, "transposed": transposed}
    assert not self_test.call("warp_transpose", arguments, schedule=schedule)
    np.testing.assert_array_equal(transposed, tiles.swapaxes(1, 2))

    x = rng.normal(size=101).astype(np.float32)
    positive, largest = np.empty(101, np.int32), np.empty_like(x)
    arguments = {"count": 101, "x": x, "positive": positive, "largest": largest}
    assert not self_test.call("warp_vote", arguments, schedule=schedule)
    for start in range(0, 101, 32):
        warp = slice(start, min(start + 32, 101))
        assert (positive[warp] == (x[warp] > 0).sum()).all()
        assert (largest[warp] == x[warp].max()).all()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("columns", [1, 100, 1024])
def test_dynamic_shared_memory(self_test: Library, columns: int, schedule: Schedule) -> None:
    x = np.random.default_rng(0).normal(size=(2, columns)).astype(np.float32)
    reversed_x = np.empty_like(x)
    arguments = {"rows": 2, "columns": columns, "x": x, "reversed": reversed_x}
    assert not self_test.call("reverse", arguments, schedule=schedule)
    np.testing.assert_array_equal(reversed_x, x[:, ::-1])


def test_preemption_and_seeds_change_the_schedule(self_test: Library) -> None:
    x, sums = np.ones((2, 1000), np.float32), np.empty(2, np.float32)

    def count(schedule: Schedule) -> tuple[int, int]:
        before = self_test.switches, self_test.accesses
        arguments = {"rows": 2, "columns": 1000, "x": x, "sums": sums}
        assert not self_test.call("row_sum", arguments, schedule=schedule)
        return self_test.switches - before[0], self_test.accesses - before[1]

    in_order, accesses = count(Schedule())
    often, _ = count(Schedule(preempt=4))
    assert 0.2 * accesses < often - in_order < 0.3 * accesses
    assert count(Schedule(seed=1, preempt=9)) == count(Schedule(seed=1, preempt=9))
    assert len({count(Schedule(seed=seed, preempt=9)) for seed in range(1, 5)}) > 1


def test_launches_no_gpu_would_take_are_reported(self_test: Library) -> None:
    for function, rows, columns in (("row_sum", 0, 8), ("reverse", 1, 1025), ("reverse", 1, 0)):
        x = np.zeros((rows, columns), np.float32)
        output = {"sums": x[:, :0]} if function == "row_sum" else {"reversed": x.copy()}
        report = self_test.call(function, {"rows": rows, "columns": columns, "x": x, **output})
        assert report.kinds == {"launch"}


def test_shared_memory_has_a_limit(self_test: Library) -> None:
    x, reversed_x = np.ones(1, np.float32), np.zeros(1, np.float32)
    arguments = {"x": x, "reversed": reversed_x}
    assert not self_test.call("greedy", {"bytes": 64 * 1024, **arguments})
    report = self_test.call("greedy", {"bytes": 64 * 1024 + 4, **arguments})
    assert report.kinds == {"launch"}
    assert "65540 bytes of shared memory" in str(report)


def test_a_misaligned_access_is_reported_and_does_not_end_the_process(self_test: Library) -> None:
    x, pairs = np.arange(10, dtype=np.float32), np.zeros(4)
    arguments = {"count": 4, "x": x, "pairs": pairs}
    assert not self_test.call("pairs", {"shift": 0, **arguments})
    np.testing.assert_array_equal(pairs, x[:8].view(np.float64))
    report = self_test.call("pairs", {"shift": 1, **arguments})
    assert report.kinds == {"misaligned"}
    assert "of 'x'" in str(report)


def test_arguments_are_checked_against_the_declaration(self_test: Library) -> None:
    x, sums = np.ones((2, 8), np.float32), np.empty(2, np.float32)
    arguments = {"rows": 2, "columns": 8, "sums": sums}
    with pytest.raises(TypeError, match=r"needs \['x'\]"):
        self_test.call("row_sum", arguments)
    with pytest.raises(TypeError, match=r"no parameters \['y'\]"):
        self_test.call("row_sum", {**arguments, "x": x, "y": x})
    for wrong in (x.astype(np.float64), x[:, ::2], None):
        with pytest.raises(TypeError, match="x must be a contiguous array of float"):
            self_test.call("row_sum", {**arguments, "x": wrong})
    with pytest.raises(ValueError, match="cannot read the parameter 'int a\\[3\\]'"):
        parse_launchers("MG2L_API int f(int a[3], void* stream);")


def test_compiler_errors_reach_the_reader(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="nonsense"):
        build(HERE / "kernels" / "reduce.cu", edits={"reduce.cuh": "nonsense"}, folder=tmp_path)
    with pytest.raises(ValueError, match=r"there is no other\.cuh"):
        build(HERE / "kernels" / "reduce.cu", edits={"other.cuh": ""}, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


BUILD_AND_SUM = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import numpy as np
from cuda_host import build
from cuda_host.build import HERE
library = build(HERE / "kernels" / "reduce.cu", folder=Path(sys.argv[2]))
x, sums = np.ones((1, 500), np.float32), np.empty(1, np.float32)
assert not library.call("row_sum", {"rows": 1, "columns": 500, "x": x, "sums": sums})
assert sums[0] == 500
"""


def test_processes_may_build_at_the_same_time(tmp_path: Path) -> None:
    words = [sys.executable, "-c", BUILD_AND_SUM, str(HERE.parent), str(tmp_path)]
    processes = [subprocess.Popen(words) for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    library = build(HERE / "kernels" / "reduce.cu", folder=tmp_path).path
    assert list(tmp_path.iterdir()) == [library]
    before = os.stat(library).st_mtime_ns
    build(HERE / "kernels" / "reduce.cu", folder=tmp_path)
    assert os.stat(library).st_mtime_ns == before


# The operators.


def test_every_launcher_has_cases() -> None:
    """Whoever adds a kernel adds it here, and its cases below."""
    declared = set(parse_launchers((KERNELS / "launchers.h").read_text()))
    assert declared == {
        "mg2l_gae_float",
        "mg2l_gae_double",
        "mg2l_gae_backward_float",
        "mg2l_gae_backward_double",
        "mg2l_pia_pool_float",
        "mg2l_pia_pool_double",
        "mg2l_pia_pool_backward_float",
        "mg2l_pia_pool_backward_double",
        "mg2l_pairwise_lse_float",
        "mg2l_pairwise_lse_double",
        "mg2l_pairwise_lse_backward_float",
        "mg2l_pairwise_lse_backward_double",
        *(  # test_cuda_host_encode.py
            f"mg2l_encode_context{part}_{dtype}"
            for part in ("", "_backward", "_pack", "_unpack")
            for dtype in ("float", "double", "bfloat16")
        ),
    }


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


def check_case(library: Library, case: Case, schedule: Schedule) -> None:
    report = library.call(case.function, case.arguments, schedule=schedule)
    assert not report
    for name, (error, allowed) in largest_errors(case).items():
        assert error <= allowed, name


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


# Around a warp of D and the 4 warps' inputs; sets along an inner axis; more parts than sets.
POOL_SHAPES = [
    (1, 1, 1, 1),
    (3, 2, 1, 33),
    (2, 5, 3, 64),
    (1, 9, 2, 7),
    (2, 131, 1, 32),
    (65, 3, 1, 4),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("masked", [False, True], ids=["full", "masked"])
@pytest.mark.parametrize("shape", POOL_SHAPES, ids=str)
def test_pia_pool(
    pia_pool: Library,
    shape: tuple[int, int, int, int],
    masked: bool,
    backward: bool,
    dtype: type[np.floating],
) -> None:
    for index, heads in enumerate((1, 3)):
        case = pia_pool_cases.case(shape, heads, dtype, masked=masked, backward=backward)
        check_case(pia_pool, case, Schedule(seed=index, preempt=7 * index))


@pytest.mark.parametrize("seed", range(1, 5))
def test_pia_pool_over_schedules(pia_pool: Library, seed: int) -> None:
    for backward, preempt in product([False, True], [0, 4]):
        case = pia_pool_cases.case((2, 9, 2, 35), 2, np.float64, masked=True, backward=backward)
        check_case(pia_pool, case, Schedule(seed=seed, preempt=preempt))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -3e38])
@pytest.mark.parametrize("at", [0, 3, 8])
def test_pia_pool_does_not_hide_what_is_not_finite(
    pia_pool: Library, at: int, value: float
) -> None:
    """Nor a logit that overflows; another set is as it was, and so are gradients."""
    for backward in (False, True):
        case = pia_pool_cases.case((2, 9, 1, 2), 1, np.float32, backward=backward)
        case.inputs["x"][0, at] = value
        case.inputs["query"][:] = 2
        if backward:
            for name in ("lse", "pooled"):
                case.inputs[name][0] = np.nan
        assert not pia_pool.call(case.function, case.arguments)
        for name in ("grad_x",) if backward else ("pooled", "lse", "weights"):
            assert np.isnan(case.outputs[name][0]).all()
            assert np.isfinite(case.outputs[name][1]).all()


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


@pytest.mark.parametrize("backward", [False, True])
def test_pia_pool_without_sets(pia_pool: Library, backward: bool) -> None:
    case = pia_pool_cases.case((0, 3, 1, 8), 2, np.float32, backward=backward)
    check_case(pia_pool, case, Schedule())
    if backward:
        assert not case.outputs["grad_query"].any()


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
