"""Loads the compiled operators and knows how they were built."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

CPU_LIBRARY = Path(__file__).with_name("_C.abi3.so")
CUDA_LIBRARY = Path(__file__).with_name("_C_cuda.abi3.so")
REINSTALL = "pip install --force-reinstall mg2l, or in a clone: pip install -e ."


def load() -> None:
    """Load the operator libraries into ``torch.ops.mg2l``.

    The CUDA library is loaded when torch itself has CUDA.

    Raises:
        ImportError: The operators have not been built, or not for this torch.
    """
    if not CPU_LIBRARY.exists():
        raise ImportError(
            f"the compiled operators of mg2l are missing ({CPU_LIBRARY} does not exist). "
            f"Install it again: {REINSTALL}"
        )
    _load(CPU_LIBRARY)
    if CUDA_LIBRARY.exists() and torch.version.cuda is not None:
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
    """What a library says of its own build, or None if there is no such library."""
    if not library.exists():
        return None
    describe = getattr(ctypes.CDLL(str(library)), function)
    describe.restype = ctypes.c_char_p
    text: bytes = describe()
    return text.decode()


def cpu_build() -> str:
    """Compiler of the CPU operators and the instruction set they use here."""
    return _describe(CPU_LIBRARY, "mg2l_cpu_build") or "not built"


def cuda_archs() -> list[str]:
    """Compute capabilities the CUDA operators were compiled for; empty if they were not built."""
    return (_describe(CUDA_LIBRARY, "mg2l_cuda_archs") or "").split()
