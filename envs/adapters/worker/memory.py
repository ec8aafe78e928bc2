"""Arrays in the memory that all processes share."""

from __future__ import annotations

import math
import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
Layout = dict[str, tuple[str, tuple[int, ...]]]
"""Name to dtype and shape of each array."""


def arrays_in(memory: mmap.mmap, layout: Layout) -> Arrays:
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
