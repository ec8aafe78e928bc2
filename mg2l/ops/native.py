"""Loads the compiled operators and reports how they were built."""

from __future__ import annotations

import ctypes
import multiprocessing
import sys
from pathlib import Path

import torch

CPU_LIBRARY = Path(__file__).parents[1] / "_C.abi3.so"
CUDA_LIBRARY = Path(__file__).parents[1] / "_C_cuda.abi3.so"
CUDA_TORCH = (2, 13)
"""The oldest torch that CUDA operators run with: its stable ABI hands out a CUDA stream."""
REINSTALL = "pip install --force-reinstall mg2l, or in a clone: pip install -e ."


def is_built() -> bool:
    """Whether there are compiled operators."""
    return CPU_LIBRARY.exists()


def devices(name: str) -> list[str]:
    """Kinds of device for which an operator is compiled and loaded."""
    if not is_built():
        return []
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return [device for device in ("cpu", "cuda") if has(f"mg2l::{name}", device.upper())]


def takes_cuda() -> bool:
    """Whether this torch can run CUDA operators."""
    return torch.version.cuda is not None and torch.__version__ >= CUDA_TORCH  # type: ignore[operator]


def load() -> None:
    """Load the operator libraries into ``torch.ops.mg2l``.

    The CUDA library is loaded when torch itself has CUDA, and is not older than `CUDA_TORCH`.

    If there are none, a line on stderr says so, once for a process and those it starts.

    Raises:
        ImportError: The operators have not been built for this torch.
    """
    if not is_built():
        if multiprocessing.parent_process() is not None:
            return
        print(
            "mg2l: installed without compiled operators: they are computed by their definitions "
            "in torch and NumPy, slower; a C++ compiler when mg2l is installed gives them",
            file=sys.stderr,
        )
        return
    _load(CPU_LIBRARY)
    if CUDA_LIBRARY.exists() and takes_cuda():
        _load(CUDA_LIBRARY)


def _load(library: Path) -> None:
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        raise ImportError(
            f"{library.name} cannot be loaded with torch {torch.__version__}: {error}. "
            f"Install mg2l again: {REINSTALL}"
        ) from error


def _describe(library: Path, function: str) -> str | None:
    """Build information of a library, or None if there is no such library."""
    if not library.exists():
        return None
    describe = getattr(ctypes.CDLL(str(library)), function)
    describe.restype = ctypes.c_char_p
    text: bytes = describe()
    return text.decode()


def cpu_build() -> str:
    """Compiler of the CPU operators and the instruction set they use here."""
    text = _describe(CPU_LIBRARY, "mg2l_cpu_build")
    if text is None:
        return "not built (no C++ compiler when it was installed, or MG2L_NATIVE=0)"
    return f"built with {text}"


def has_bfloat16() -> bool:
    """Whether CPU operators are compiled, and may round what they multiply to bfloat16 here."""
    return is_built() and bool(ctypes.CDLL(str(CPU_LIBRARY)).mg2l_has_bfloat16())


def cuda_archs() -> list[str]:
    """Compute capabilities the CUDA operators were compiled for; empty if they were not built."""
    return (_describe(CUDA_LIBRARY, "mg2l_cuda_archs") or "").split()
