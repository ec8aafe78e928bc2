"""The CUDA library as operators of the CPU: kernels, launchers and bindings, in the dispatcher.

As a plugin of pytest, ``-p cuda_host.binding``, it puts them in the place of the kernels for the
CPU, so that the tests of an operator run what a GPU would.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import include_paths, library_paths

from cuda_host.build import (
    CACHE,
    COMMON_FLAGS,
    HERE,
    KERNELS,
    PARTICLE,
    ROOT,
    WARNINGS,
    _build_runtime,
    _compile,
    _hash,
)
from cuda_host.library import MAX_SHARED
from mg2l.ops import native

FLAGS = [*COMMON_FLAGS, *WARNINGS, "-O1", "-Wno-unknown-pragmas"]
MACROS = [
    "-DMG2L_CUDA_HOST=1",
    '-DMG2L_CUDA_ARCHS="host"',
    "-DTORCH_TARGET_VERSION=0x020d000000000000",
]
REGISTERED, HERE_INSTEAD = "STABLE_TORCH_LIBRARY_IMPL(mg2l, CUDA, m)", "CPU"


def build_library() -> Path:
    """Compile all of ``csrc/cuda`` and the runtime, or take the library from the last time."""
    runtime = _build_runtime()
    sources = sorted([*KERNELS.glob("*.cu"), *KERNELS.glob("*.cpp")])
    headers = [*sorted(KERNELS.glob("*h")), *sorted((ROOT / "csrc").glob("*.h")), *PARTICLE]
    texts = [path.read_text() for path in (*sources, *headers)]
    key = _hash(runtime.name, torch.__version__, *FLAGS, *MACROS, *texts)
    library = CACHE / f"operators-{key}.so"
    if library.exists():
        return library
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        scratch = Path(folder)
        shutil.copytree(ROOT / "csrc", scratch / "csrc")

        def compile_one(source: Path) -> Path:
            copy = scratch / source.relative_to(ROOT)
            if source.suffix == ".cu":
                kind = ["-x", "c++", "-include", str(HERE / "cuda_host.h")]
            else:
                text = copy.read_text()
                assert REGISTERED in text, source
                copy.write_text(text.replace(REGISTERED, REGISTERED.replace("CUDA", HERE_INSTEAD)))
                kind = [*MACROS, *(f"-isystem{path}" for path in include_paths())]
            made = copy.with_name(f"{source.name}.o")
            _compile(*FLAGS, *kind, "-c", copy, to=made)
            return made

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_one, sources))
        torch_at = [f"-L{path}" for path in library_paths()]
        linked = ["-Wl,-z,defs", "-Wl,-Bsymbolic", *torch_at, "-ltorch", "-ltorch_cpu", "-lc10"]
        complete = scratch / "complete.so"
        _compile("-shared", *objects, runtime, *linked, "-ldl", to=complete)
        complete.replace(library)
    return library


def pytest_addoption(parser: pytest.Parser) -> None:
    """The way of ``pairwise_lse``."""
    parser.addoption("--products", action="store_true", help="all dot products by torch's")


def pytest_configure(config: pytest.Config) -> None:
    """Put the library's operators in the place of the CPU's."""
    assert native.is_built()
    path = build_library()
    torch.ops.load_library(str(path))
    library = ctypes.CDLL(str(path))
    # Unchecked: its memory is torch's, which the runtime knows nothing of.
    library.cuda_host_begin(0, 0, 0, ctypes.c_uint64(MAX_SHARED))
    library.mg2l_pairwise_products_from.argtypes = [ctypes.c_int64]
    library.mg2l_pairwise_products_from(0 if config.getoption("--products") else 2**62)
