"""The runtime that executes CUDA kernels on the CPU, on kernels of its own.

The kernels of csrc/cuda follow in test_cuda_host_<op>.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cuda_host import KERNELS, Library, Schedule, build
from cuda_host.build import HERE
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
    assert not self_test.call("row_sum", {**arguments, "y": sums}, schedule=schedule)
    assert not self_test.call("row_scan", {**arguments, "y": scan}, schedule=schedule)
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
    arguments = {"rows": 2, "columns": columns, "x": x, "y": reversed_x}
    assert not self_test.call("reverse", arguments, schedule=schedule)
    np.testing.assert_array_equal(reversed_x, x[:, ::-1])


def test_preemption_and_seeds_change_the_schedule(self_test: Library) -> None:
    x, sums = np.ones((2, 1000), np.float32), np.empty(2, np.float32)

    def count(schedule: Schedule) -> tuple[int, int]:
        before = self_test.switches, self_test.accesses
        arguments = {"rows": 2, "columns": 1000, "x": x, "y": sums}
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
        y = x[:, :0] if function == "row_sum" else x.copy()
        report = self_test.call(function, {"rows": rows, "columns": columns, "x": x, "y": y})
        assert report.kinds == {"launch"}


KIB = 1024


@pytest.mark.parametrize(
    ("static_floats", "dynamic_bytes", "opt_in", "max_shared", "fault"),
    [
        (12 * KIB, 0, False, 64 * KIB, ""),
        (12 * KIB + 1, 0, False, 227 * KIB, "49156 bytes of static shared memory"),
        (1 * KIB, 44 * KIB, False, 64 * KIB, ""),
        (1 * KIB, 44 * KIB + 4, False, 64 * KIB, "45056 are allowed without cudaFuncSetAttribute"),
        (1 * KIB, 60 * KIB, True, 64 * KIB, ""),
        (1 * KIB, 60 * KIB + 4, True, 64 * KIB, "61444 bytes of dynamic shared memory beside 4096"),
        (12 * KIB, 16 * KIB + 4, True, 64 * KIB, "a block has 65536"),
        (1 * KIB, 223 * KIB, True, 227 * KIB, ""),
        (1 * KIB, 223 * KIB + 4, True, 227 * KIB, "a block has 232448"),
    ],
)
def test_shared_memory_has_the_limits_of_a_gpu(
    self_test: Library,
    static_floats: int,
    dynamic_bytes: int,
    opt_in: bool,
    max_shared: int,
    fault: str,
) -> None:
    """48 KiB static; 48 KiB together unless the launcher opts in; then what a block of a GPU has.

    64 KiB on compute capability 7.5, 227 KiB on 9.0.
    """
    y = np.zeros(1, np.float32)
    arguments = {
        "static_floats": static_floats,
        "dynamic_bytes": dynamic_bytes,
        "opt_in": opt_in,
        "y": y,
    }
    report = self_test.call("much_shared", arguments, max_shared=max_shared)
    assert report.kinds == ({"launch"} if fault else set())
    assert fault in str(report)
    assert (y[0] == 1) == (not fault)  # refused: nothing ran


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
    arguments = {"rows": 2, "columns": 8, "y": sums}
    with pytest.raises(TypeError, match=r"needs \['x'\]"):
        self_test.call("row_sum", arguments)
    with pytest.raises(TypeError, match=r"no fields \['z'\]"):
        self_test.call("row_sum", {**arguments, "x": x, "z": x})
    for wrong in (x.astype(np.float64), x[:, ::2], None):
        with pytest.raises(TypeError, match="x must be a contiguous array of float"):
            self_test.call("row_sum", {**arguments, "x": wrong})
    struct = "struct Args {{\n  {};\n}};\nMG2L_API int f(const Args* args, void* stream);"
    with pytest.raises(ValueError, match=r"Args: cannot read the field 'int a\[3\];'"):
        parse_launchers(struct.format("int a[3]"))
    with pytest.raises(ValueError, match="f must take a pointer to one struct"):
        parse_launchers("MG2L_API int f(int64_t n, float* x, void* stream);")


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
assert not library.call("row_sum", {"rows": 1, "columns": 500, "x": x, "y": sums})
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


def test_every_launcher_has_cases() -> None:
    """Add new kernels here, and their cases in a file of their own."""
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
        "mg2l_pairwise_lse_products_float",
        "mg2l_pairwise_lse_products_double",
        "mg2l_particle_step_float",
        "mg2l_particle_step_double",
        "mg2l_film_float",
        "mg2l_film_double",
        "mg2l_film_backward_float",
        "mg2l_film_backward_double",
        "mg2l_surrogate_float",
        "mg2l_surrogate_double",
        "mg2l_value_loss_float",
        "mg2l_value_loss_double",
        "mg2l_gaussian_surrogate_float",
        "mg2l_gaussian_surrogate_double",
        *(
            f"mg2l_clip_norms_{part}_{dtype}"
            for part in ("sum", "scale")
            for dtype in ("float", "double")
        ),
        "mg2l_contrast_float",
        "mg2l_contrast_double",
        *(
            f"mg2l_{operator}{part}_{dtype}"
            for operator in ("gelu_mlp", "innovation_moments")
            for part in ("", "_backward")
            for dtype in ("float", "double")
        ),
        "mg2l_stacked_mlp_float",
        "mg2l_stacked_mlp_double",
        "mg2l_stacked_mlp_backward_float",
        "mg2l_stacked_mlp_backward_double",
        *(
            f"mg2l_encode_context{part}_{dtype}"
            for part in ("", "_backward", "_pack", "_unpack")
            for dtype in ("float", "double", "bfloat16")
        ),
    }
