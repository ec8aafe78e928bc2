"""What the CUDA kernels take of a GPU: no spills, no stack, and how many blocks fit at a time."""

from __future__ import annotations

import importlib.util
import itertools
import re
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cuda_host import KERNELS, ROOT, Schedule, build, pia_pool_cases
from cuda_host.build import COMPILER, HERE
from cuda_host.gae_cases import backward_case, forward_case
from cuda_host.sass import instructions, straight_runs

pytestmark = pytest.mark.ci


def load_script() -> ModuleType:
    path = ROOT / "benchmarks" / "ptxas_report.py"
    spec = importlib.util.spec_from_file_location("ptxas_report", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


report: Any = load_script()
NVCC = report.find_nvcc()
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no CUDA toolkit")
BUILT = ROOT / "build" / "cuda"

LOG = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN4mg2l8a_kernelIfEEvPT_' for 'sm_90'
ptxas info    : Function properties for _ZN4mg2l8a_kernelIfEEvPT_
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 56 registers, used 1 barriers, 4096 bytes smem, 432 bytes cmem[0]
ptxas info    : Compile time = 75.856 ms
ptxas info    : Compiling entry function 'plain' for 'sm_75'
ptxas info    : Function properties for plain
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 48 registers, used 0 barriers, 16 bytes cumulative stack size
"""


def test_the_log_is_read() -> None:
    assert list(report.parse(LOG)) == [
        ("a_kernel<float>", "90", 56, 4096, 16, 20),
        ("plain", "75", 48, 0, 0, 0),
    ]


@pytest.mark.skipif(not (BUILT / "build.ninja").exists(), reason="built without nvcc")
@pytest.mark.parametrize("source", sorted(KERNELS.glob("*.cu")), ids=lambda path: path.name)
def test_kernels_stay_in_registers(source: Path) -> None:
    """By what ptxas said when they were built."""
    usages = list(report.parse((BUILT / f"{source.stem}.log").read_text()))
    archs = re.findall(r"\bsm_(\w+)", (BUILT / "build.ninja").read_text())
    kernels = {usage.kernel for usage in usages}
    assert kernels
    assert {(usage.kernel, usage.arch) for usage in usages} == set(
        itertools.product(kernels, archs)
    )
    for usage in usages:
        assert usage.stack_bytes == usage.spill_bytes == 0, usage
        assert report.occupancy_share(usage) > 0, f"not one block fits: {usage}"


@needs_nvcc
@pytest.mark.parametrize("arch", ["80", "90"])
def test_scores_are_fused_and_not_predicated(arch: str, tmp_path: Path) -> None:
    """The loop over coordinates has 16 products, each one FFMA, and no branch."""
    cubin = tmp_path / "pairwise_lse.cubin"
    flags = ["-std=c++17", "-O3", "-cubin", f"-arch=sm_{arch}"]
    subprocess.run([str(NVCC), *flags, KERNELS / "pairwise_lse.cu", "-o", cubin], check=True)
    # Scores of queries against keys, and in the backward pass of keys against queries as well.
    for kernel, count in (
        ("pairwise_lse_kernelILNS_6ScoresE0Ef", 1),
        ("pairwise_lse_backward_kernelILb0Ef", 2),
    ):
        runs = sorted(
            straight_runs(instructions(cubin, kernel)),
            key=lambda run: sum(instruction.name == "LDS" for instruction in run),
        )
        for loop in runs[-count:]:
            floating = [i for i in loop if i.name in ("FFMA", "FMUL", "FADD")]
            assert len(loop) < 50, (kernel, len(loop))
            assert [i.name for i in floating] == ["FFMA"] * 16, kernel
            assert not any(i.predicated for i in floating), kernel


@needs_nvcc
def test_spills_are_seen(tmp_path: Path) -> None:
    source = tmp_path / "greedy.cu"
    source.write_text(
        """
        __global__ void __launch_bounds__(1024, 2) greedy_kernel(float* x) {
          float values[80];
          #pragma unroll
          for (int i = 0; i < 80; ++i) values[i] = x[i * 4096 + threadIdx.x];
          __syncthreads();
          #pragma unroll
          for (int i = 0; i < 80; ++i) x[i * 4096 + threadIdx.x] = values[i] * values[79 - i];
        }
        """
    )
    (usage,) = report.compile_kernels(NVCC, source, ["80"])
    assert usage.kernel == "greedy_kernel"
    assert usage.spill_bytes > 0
    with pytest.raises(KeyError, match="greedy_kernel"):
        _ = usage.block_threads


def test_block_sizes_are_those_of_the_launches() -> None:
    library = build(KERNELS / "gae.cu")
    launched = {}
    for name, steps in (("columns", 7), ("chunked", 100)):
        for prefix, case in (
            ("gae", forward_case(steps, 5, np.float32)),
            ("gae_backward", backward_case(steps, 5, np.float32, final=False)),
        ):
            assert not library.call(case.function, case.arguments, schedule=Schedule(check=False))
            launched[f"{prefix}_{name}_kernel"] = int(np.prod(library.last_launch.block))
    assert launched.items() <= report.BLOCK_THREADS.items()
    pool = build(KERNELS / "pia_pool.cu")
    for backward, kernel in (
        (False, "pia_pool_kernel"),
        (True, "pia_pool_backward_combine_kernel"),
    ):
        case = pia_pool_cases.case((1, 2, 1, 3), 1, np.float32, backward=backward)
        assert not pool.call(case.function, case.arguments, schedule=Schedule(check=False))
        assert int(np.prod(pool.last_launch.block)) == report.BLOCK_THREADS[kernel]


@pytest.mark.parametrize(
    ("arch", "registers", "shared_bytes", "threads", "blocks"),
    [
        ("80", 32, 0, 1024, 2),  # all 2048 threads
        ("80", 33, 0, 1024, 1),  # 40 registers a thread are given out: 40960 a block
        ("80", 16, 0, 32, 32),  # slots for blocks
        ("80", 16, 40 * 1024, 128, 4),  # 41 KiB of 164 with the driver's
        ("90", 66, 16384, 512, 1),  # 72 registers a thread: 14 warps of 16 a second block
        ("75", 16, 65536, 128, 1),
        ("86", 16, 99 * 1024, 128, 1),
        ("86", 16, 99 * 1024 + 1, 128, 0),
    ],
)
def test_occupancy(arch: str, registers: int, shared_bytes: int, threads: int, blocks: int) -> None:
    assert report.occupancy(arch, registers, shared_bytes, threads) == blocks


def occupancy_header() -> Path | None:
    header = None if NVCC is None else NVCC.parents[1] / "include" / "cuda_occupancy.h"
    return header if header is not None and header.exists() else None


@pytest.mark.skipif(occupancy_header() is None, reason="no cuda_occupancy.h")
def test_occupancy_is_nvidias(tmp_path: Path) -> None:
    header = occupancy_header()
    assert header is not None
    program = tmp_path / "occupancy"
    include = ["-isystem", str(header.parent)]
    source = HERE / "occupancy" / "occupancy.cpp"
    subprocess.run([COMPILER, "-std=c++17", *include, source, "-o", program], check=True)
    cases = list(
        itertools.product(
            report.MULTIPROCESSORS,
            (16, 24, 32, 33, 40, 63, 64, 65, 66, 80, 92, 128, 168, 255),
            (0, 1, 4096, 12288, 16384, 40000, 49152, 65536, 99 * 1024, 163 * 1024, 232449),
            (32, 64, 96, 128, 160, 256, 384, 512, 1000, 1024),
        )
    )
    lines = []
    for arch, registers, shared_bytes, threads in cases:
        chip = report.MULTIPROCESSORS[arch]
        sizes = (chip.threads, chip.shared_bytes, chip.reserved_bytes, chip.max_block_shared)
        numbers = (int(arch[:-1]), int(arch[-1]), *sizes, registers, shared_bytes, threads)
        lines.append(" ".join(map(str, numbers)))
    output = subprocess.run(
        [program], input="\n".join(lines), text=True, capture_output=True, check=True
    ).stdout
    expected = [int(line) for line in output.split()]
    assert len(expected) == len(cases)
    differing = [
        (case, blocks, report.occupancy(*case))
        for case, blocks in zip(cases, expected, strict=True)
        if report.occupancy(*case) != blocks
    ]
    assert not differing, differing[:5]
