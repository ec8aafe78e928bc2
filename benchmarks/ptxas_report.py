"""What each kernel takes of a GPU: registers, shared memory, spills and occupancy.

``python benchmarks/ptxas_report.py`` prints the table, with ``--archs 80 90`` for these only.
Compiles ``csrc/cuda/*.cu`` with nvcc for each architecture and reads what ptxas says; no GPU is
needed. Exits with status 1 if a kernel spills registers or has a stack frame: local arrays that the
compiler could not keep in registers go to global memory.

Occupancy is the fraction of a multiprocessor's threads that its registers, shared memory and slots
for blocks leave room for (CUDA C++ Programming Guide, compute capabilities). It bounds how much
latency can be hidden; more is not always faster.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

KERNELS = Path(__file__).resolve().parents[1] / "csrc" / "cuda"

# Threads per block that the launchers use, by kernel.
BLOCK_THREADS = {
    "gae_columns_kernel": 128,
    "gae_chunked_kernel": 512,
    "gae_backward_columns_kernel": 128,
    "gae_backward_chunked_kernel": 512,
    "particle_step_kernel": 64,
    "pia_pool_kernel": 128,
    "pia_pool_finish_kernel": 256,
    "pia_pool_backward_logits_kernel": 128,
    "pia_pool_backward_inputs_kernel": 256,
    "pia_pool_backward_query_kernel": 256,
    "pia_pool_backward_combine_kernel": 256,
    "encode_context_kernel": 128,
    "encode_context_finish_kernel": 128,
    "encode_context_backward_kernel": 128,
    "encode_context_pack_kernel": 128,
    "encode_context_unpack_kernel": 128,
    "pair_offsets_kernel": 128,
    "pairwise_lse_kernel": 256,
    "pairwise_lse_finish_kernel": 256,
    "pairwise_lse_backward_kernel": 256,
    "pairwise_lse_backward_combine_kernel": 128,
    "pairwise_lse_products_kernel": 256,
    "clipped_kernel": 256,
    "gaussian_surrogate_kernel": 256,
    "clip_norms_sum_kernel": 256,
    "clip_norms_scale_kernel": 256,
    "contrast_rows_kernel": 32,
    "contrast_keys_kernel": 256,
    "film_kernel": 256,
    "film_backward_kernel": 256,
    "film_backward_sums_kernel": 128,
    "gelu_mlp_kernel": 256,
    "gelu_mlp_backward_kernel": 256,
    "innovation_moments_kernel": 128,
    "innovation_moments_zero_kernel": 128,
    "innovation_moments_backward_kernel": 128,
    "stacked_mlp_kernel": 128,
    "stacked_mlp_backward_kernel": 128,
}


class Multiprocessor(NamedTuple):
    """Resources of a multiprocessor. All have 65536 registers, allocated to warps by 256."""

    threads: int
    blocks: int
    shared_bytes: int
    shared_granule: int
    """Bytes; shared memory is given out in multiples of it."""

    reserved_bytes: int
    """Shared memory of each block that the driver keeps for itself."""

    max_block_shared: int
    """Bytes that a block can ask for, above 48 KiB by opting in only."""


REGISTERS, REGISTER_GRANULE, PARTITIONS, WARP = 65536, 256, 4, 32
KIB = 1024
MULTIPROCESSORS = {
    "75": Multiprocessor(1024, 16, 64 * KIB, 256, 0, 64 * KIB),
    "80": Multiprocessor(2048, 32, 164 * KIB, 128, KIB, 163 * KIB),
    "86": Multiprocessor(1536, 16, 100 * KIB, 128, KIB, 99 * KIB),
    "89": Multiprocessor(1536, 24, 100 * KIB, 128, KIB, 99 * KIB),
    "90": Multiprocessor(2048, 32, 228 * KIB, 128, KIB, 227 * KIB),
    "100": Multiprocessor(2048, 32, 228 * KIB, 128, KIB, 227 * KIB),
    "120": Multiprocessor(1536, 24, 100 * KIB, 128, KIB, 99 * KIB),
}


class Usage(NamedTuple):
    """What ptxas says of one kernel for one architecture."""

    kernel: str
    """Name with template arguments, e.g. ``gae_columns_kernel<float>``."""

    arch: str
    registers: int
    """Per thread."""

    shared_bytes: int
    """Static, per block."""

    stack_bytes: int
    spill_bytes: int
    """Stores and loads together."""

    @property
    def block_threads(self) -> int:
        """Threads per block.

        Raises:
            KeyError: The kernel is not in ``BLOCK_THREADS``.
        """
        return BLOCK_THREADS[self.kernel.split("<")[0]]


def occupancy(arch: str, registers: int, shared_bytes: int, block_threads: int) -> int:
    """Blocks that fit on a multiprocessor of ``arch`` at the same time."""
    chip = MULTIPROCESSORS[arch]
    warps = _round_up(block_threads, WARP) // WARP
    limits = [chip.blocks, chip.threads // WARP // warps]
    if registers > 0:
        # A quarter of the registers belongs to each quarter of the warps' schedulers.
        per_warp = _round_up(registers * WARP, REGISTER_GRANULE)
        fits_one = per_warp * _round_up(warps, PARTITIONS) <= REGISTERS
        limits.append(REGISTERS // PARTITIONS // per_warp * PARTITIONS // warps if fits_one else 0)
    block_bytes = _round_up(shared_bytes + chip.reserved_bytes, chip.shared_granule)
    if block_bytes > 0:
        limits.append(
            chip.shared_bytes // block_bytes if shared_bytes <= chip.max_block_shared else 0
        )
    return min(limits)


def occupancy_share(usage: Usage) -> float:
    """Resident threads of a kernel as a fraction of the multiprocessor's capacity."""
    blocks = occupancy(usage.arch, usage.registers, usage.shared_bytes, usage.block_threads)
    threads = blocks * _round_up(usage.block_threads, WARP)
    return threads / MULTIPROCESSORS[usage.arch].threads


def find_nvcc() -> Path | None:
    """The compiler, or None if there is no CUDA toolkit."""
    for root in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"):
        if root and (Path(root) / "bin" / "nvcc").exists():
            return Path(root) / "bin" / "nvcc"
    found = shutil.which("nvcc")
    return Path(found).resolve() if found else None


def compile_kernels(nvcc: Path, source: Path, archs: Sequence[str]) -> list[Usage]:
    """What ptxas says of every kernel in ``source``; device code only, no host compiler.

    Raises:
        RuntimeError: nvcc refused the source; its message is in the error.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(str(nvcc), "-std=c++17", "-O3", "--threads=2", "-Xptxas=-v", "--fatbin"),
            *(f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs),
            *(str(source), "-o", str(Path(folder) / "kernels.fatbin")),
        ]
        done = subprocess.run(
            command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}")
    return list(parse(done.stdout))


def parse(log: str) -> Iterator[Usage]:
    """Read what ``nvcc -Xptxas=-v`` prints."""
    pattern = re.compile(
        r"Compiling entry function '(?P<symbol>\w+)' for 'sm_(?P<arch>\w+)'"
        r"(?:(?!Compiling entry function).)*?"
        r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
        r"(?P<loads>\d+) bytes spill loads"
        r"(?:(?!Compiling entry function).)*?"
        r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
        re.DOTALL,
    )
    matches = list(pattern.finditer(log))
    names = _demangle([match["symbol"] for match in matches])
    for match, name in zip(matches, names, strict=True):
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        yield Usage(
            kernel=name,
            arch=match["arch"],
            registers=int(match["registers"]),
            shared_bytes=int(shared[1]) if shared else 0,
            stack_bytes=int(match["stack"]),
            spill_bytes=int(match["stores"]) + int(match["loads"]),
        )


def _demangle(symbols: list[str]) -> list[str]:
    if not symbols:
        return []
    command = ["c++filt", "--no-params", *symbols]
    names = subprocess.run(command, text=True, capture_output=True, check=True).stdout.split("\n")
    # "void mg2l::gae_columns_kernel<float>(mg2l::GaeArgs<float>)", of which we want the middle.
    return [re.sub(r"^(void )?(\w+::)*|\(.*$", "", name) for name in names[: len(symbols)]]


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", nargs="+", default=list(MULTIPROCESSORS), metavar="CC")
    options = parser.parse_args()
    nvcc = find_nvcc()
    if nvcc is None:
        sys.exit("nvcc was not found; set CUDA_HOME to the CUDA toolkit")
    header = (
        "kernel",
        "sm",
        "threads",
        "registers",
        "shared",
        "spill+stack",
        "blocks",
        "occupancy",
    )
    row = "{:40} {:>4} {:>8} {:>10} {:>8} {:>12} {:>7} {:>10}"
    print(row.format(*header))
    failed = False
    for source in sorted(KERNELS.glob("*.cu")):
        usages = compile_kernels(nvcc, source, options.archs)
        for usage in sorted(usages, key=lambda usage: (usage.kernel, int(usage.arch))):
            spilled = usage.spill_bytes + usage.stack_bytes
            failed |= spilled > 0
            threads = usage.block_threads
            blocks = occupancy(usage.arch, usage.registers, usage.shared_bytes, threads)
            share = f"{occupancy_share(usage):.0%}"
            sizes = (threads, usage.registers, usage.shared_bytes, spilled, blocks, share)
            print(row.format(usage.kernel, usage.arch, *sizes))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
