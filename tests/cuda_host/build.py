"""Compiles a kernel's file and the runtime into a library for the CPU."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from cuda_host.library import Library

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
KERNELS = ROOT / "csrc" / "cuda"
PARTICLE = sorted((ROOT / "csrc" / "particle").glob("*.h"))
CACHE = ROOT / "build" / "cuda_host"

COMPILER = "g++"  # not $CXX: which accesses are instrumented, and some flags, are GCC's own
COMMON_FLAGS = ["-std=c++17", "-fPIC", "-fvisibility=hidden"]
WARNINGS = ["-Wall", "-Wextra", "-Werror"]
# _longjmp to another stack is what fibers are; the fortified one aborts.
RUNTIME_FLAGS = [*COMMON_FLAGS, *WARNINGS, "-O2", "-U_FORTIFY_SOURCE"]
# -g1: lines of code for reports; addr2line takes headers for the main file in DWARF 5.
# -fno-gnu-unique: each library keeps its own shared memory.
# -mfma: so that contraction can be chosen; nvcc may fuse any product with the sum it goes into.
KERNEL_FLAGS = [
    *COMMON_FLAGS,
    "-O1",
    "-g1",
    "-gdwarf-4",
    "-fsanitize=thread",
    "-fno-gnu-unique",
    "-mfma",
    "-Wno-unknown-pragmas",  # #pragma unroll
]


def build(
    source: Path,
    *,
    edits: Mapping[str, str] | None = None,
    folder: Path | None = None,
    contract: bool = True,
) -> Library:
    """Compile ``source`` to run on the CPU, or take the library from the last time.

    Libraries are named by a hash of all they are made of, and appear under their name complete, so
    that any number of processes may build at the same time.

    Args:
        source: A ``.cu`` file. Headers are looked for beside it and in ``csrc/cuda``; its
            launchers are declared in ``launchers.h`` beside it.
        edits: New text of files beside ``source``, by file name. Warnings are not errors then.
        contract: Whether products are fused with the sums they go into, as nvcc does where it can.
        folder: Where the library is kept: ``build/cuda_host`` of the repository by default.

    Raises:
        ValueError: ``edits`` names a file that is not there.
        RuntimeError: The compiler refused the source; its message is in the error.
    """
    files = {
        path.name: path.read_text()
        for path in sorted(source.parent.iterdir())
        if path.suffix in (".cu", ".cuh", ".h")
    }
    for name in edits or {}:
        if name not in files:
            raise ValueError(f"there is no {name} in {source.parent}")
    files.update(edits or {})
    folder = CACHE if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    runtime = _build_runtime()
    shared_headers = [path.read_text() for path in [*sorted(KERNELS.glob("*h")), *PARTICLE]]
    contraction = f"-ffp-contract={'fast' if contract else 'off'}"
    flags = [*KERNEL_FLAGS, contraction, *(["-w"] if edits else WARNINGS)]
    key = _hash(runtime.name, *flags, *files, *files.values(), *shared_headers)
    library = folder / f"{source.stem}-{key}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch_name:
            scratch = Path(scratch_name)
            for name, text in files.items():
                (scratch / name).write_text(text)
            kernel, complete = scratch / "kernel.o", scratch / "complete.so"
            include = ["-include", str(HERE / "cuda_host.h"), f"-I{KERNELS}"]
            _compile(*flags, *include, "-x", "c++", "-c", scratch / source.name, to=kernel)
            _compile(
                *("-shared", kernel, runtime, "-Wl,-z,defs", "-Wl,-Bsymbolic", "-ldl"), to=complete
            )
            complete.replace(library)
    return Library(library, files["launchers.h"])


def _build_runtime() -> Path:
    sources = sorted(HERE.glob("*.cpp"))
    texts = [path.read_text() for path in (*sources, *sorted(HERE.glob("*.h")))]
    CACHE.mkdir(parents=True, exist_ok=True)
    runtime = CACHE / f"runtime-{_hash(_compiler_version(), *RUNTIME_FLAGS, *texts)}.o"
    if not runtime.exists():
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            complete = Path(scratch) / "runtime.o"
            _compile(*RUNTIME_FLAGS, "-r", "-nostdlib", *sources, to=complete)
            complete.replace(runtime)
    return runtime


def _compile(*arguments: str | Path, to: Path) -> None:
    command = [COMPILER, *map(str, arguments), "-o", str(to)]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")


@cache
def _compiler_version() -> str:
    return subprocess.run(
        [COMPILER, "--version"], text=True, capture_output=True, check=True
    ).stdout


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]
