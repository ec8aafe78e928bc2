"""Arrays in the memory that all processes share."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
Layout = dict[str, tuple[str, tuple[int, ...]]]
"""Name to dtype and shape of each array."""


def mapped(descriptor: int, size: int) -> Any:
    """Map shared memory for good, and close its descriptor, which a stray write could use.

    ``mmap.mmap`` would keep a duplicate of that open.

    Raises:
        OSError: the system refuses.
    """
    system = ctypes.CDLL(None, use_errno=True)
    system.mmap.restype = ctypes.c_void_p
    system.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    access = mmap.PROT_READ | mmap.PROT_WRITE
    address = system.mmap(None, size, access, mmap.MAP_SHARED, descriptor, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "shared memory cannot be mapped")
    os.close(descriptor)
    return (ctypes.c_char * size).from_address(address)


def arrays_in(memory: Any, layout: Layout) -> Arrays:
    """The arrays of a layout, one after the other in shared memory."""
    arrays, offset = {}, 0
    for name, (dtype, shape) in layout.items():
        arrays[name] = np.ndarray(shape, dtype, memory, offset)
        offset += _padded(arrays[name].nbytes)
    return arrays


def size_of(layout: Layout) -> int:
    """Bytes that ``arrays_in`` needs."""
    sizes = (np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in layout.values())
    return sum(map(_padded, sizes))


def _padded(size: int) -> int:
    """``size`` [bytes] up to whole cache lines."""
    return -(-size // 64) * 64
