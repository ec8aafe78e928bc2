"""Sizes and places in the buffers of operators, asked of the bindings' own headers."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
from collections.abc import Sequence
from functools import cache

from cuda_host.build import CACHE, COMMON_FLAGS, COMPILER, HERE, KERNELS, WARNINGS


@cache
def _library() -> ctypes.CDLL:
    source = HERE / "boundary" / "layout.cpp"
    files = [source, *sorted(KERNELS.glob("*_layout.h"))]
    key = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
    path = CACHE / f"layout-{key}.so"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        flags = [*COMMON_FLAGS, *WARNINGS, "-shared", f"-I{KERNELS}"]
        subprocess.run([COMPILER, *flags, str(source), "-o", str(partial)], check=True)
        partial.rename(path)
    return ctypes.CDLL(str(path))


def ask(function: str, *arguments: int | Sequence[int]) -> int:
    """What a function of the header says; a sequence is passed as an array of int64."""
    given: list[object] = []
    for argument in arguments:
        if isinstance(argument, int):
            given.append(ctypes.c_int64(argument))
        else:
            given.append((ctypes.c_int64 * len(argument))(*argument))
    call = getattr(_library(), function)
    call.restype = ctypes.c_int64
    return int(call(*given))
