"""The simulators' compiled library, plain C functions called by ctypes, and checks of their arrays.

Calls release the GIL. A suite's ``simulator.py`` checks what its functions take: here nothing is
converted but what says so.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

import mg2l
from mg2l.core.schema import ConfigError

PATH = Path(mg2l.__file__).with_name("_simulators.abi3.so")
LIBRARY = ctypes.CDLL(str(PATH)) if PATH.exists() else None
"""None where mg2l was installed without compiled code, as ``import mg2l`` says."""

POINTER = ctypes.c_void_p
INTEGER = ctypes.c_int64

_Memory = ctypes.c_char * 0


def require() -> None:
    """Check that there are compiled simulators.

    Raises:
        ConfigError: there are none.
    """
    if LIBRARY is None:
        raise ConfigError(
            "simulator=native needs mg2l with compiled parts, which this installation does not "
            "have; use simulator=package"
        )


def function(name: str, *arguments: Any, returns: Any = None) -> Any:
    """The library's function ``mg2l_<name>``, of these types; None without a library."""
    if LIBRARY is None:
        return None
    found = getattr(LIBRARY, f"mg2l_{name}")
    found.argtypes, found.restype = arguments, returns
    return found


_find_outside = function("find_outside", POINTER, *[INTEGER] * 3, returns=INTEGER)


def address(array: NDArray[Any]) -> Any:
    """What a ``POINTER`` argument takes for the first element of an array."""
    try:
        # Several times faster than array.ctypes.
        return _Memory.from_buffer(array)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # read-only, or with gaps
        return array.ctypes.data


def check(name: str, array: NDArray[Any], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """Check an array that a function reads or writes where it lies.

    Raises:
        TypeError: it has another dtype, or its elements do not follow each other in C order.
        ValueError: it has the wrong shape.
    """
    if array.dtype != dtype or not array.flags.c_contiguous:
        layout = "" if array.flags.c_contiguous else " with gaps or in another order"
        raise TypeError(f"{name} must be a C-contiguous {dtype} array, got {array.dtype}{layout}")
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")


def integers(name: str, values: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """``values`` as C-contiguous int64.

    Raises:
        ValueError: they are not integers, or have another shape.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "iub":
        raise ValueError(f"{name} must be integers, got {array.dtype}")
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    return np.ascontiguousarray(array, np.int64)


def bounded(
    name: str, values: ArrayLike, shape: tuple[int, ...], low: int, high: int
) -> NDArray[np.int64]:
    """Integers as by `integers`, in ``[low, high)``.

    Raises:
        ValueError: one of them is not, or see `integers`.
    """
    array = integers(name, values, shape)
    wrong = _find_outside(address(array), array.size, low, high)
    if wrong >= 0:
        raise outside(name, array.flat[wrong], low, high)
    return array


def outside(name: str, value: Any, low: int, high: int) -> ValueError:
    """The error of a value that is not in ``[low, high)``."""
    return ValueError(f"{name} must be in [{low}, {high}), got {value}")


def check_index(name: str, index: int, count: int) -> int:
    """``index`` itself.

    Raises:
        IndexError: it is not in ``[0, count)``.
    """
    if not 0 <= index < count:
        raise IndexError(f"{name} must be in [0, {count}), got {index}")
    return int(index)


def check_positive(**values: int) -> None:
    """Check sizes and counts.

    Raises:
        ValueError: one of them is below 1.
    """
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def bits_of(generator: Any) -> int:
    """Address of the C interface of a NumPy generator, which must outlive its use.

    Raises:
        TypeError: it is not a generator.
    """
    if not isinstance(generator, np.random.Generator):
        raise TypeError(f"generator must be a numpy.random.Generator, got {generator!r}")
    found: int = generator.bit_generator.ctypes.bit_generator.value
    return found


class Simulator:
    """An object of the library, deleted with this one.

    Args:
        handle: as the library has made it; None where it had no memory.
        delete: the function that deletes it.
    """

    def __init__(self, handle: int | None, delete: Any) -> None:
        if handle is None:
            raise MemoryError(f"{type(self).__name__}: not enough memory for so many environments")
        self._handle = handle
        weakref.finalize(self, delete, handle)


def joined(arrays: Sequence[ArrayLike], dtype: DTypeLike) -> NDArray[Any]:
    """All elements of several arrays, one array after the other."""
    return np.concatenate([np.asarray(array, dtype).ravel() for array in arrays])
