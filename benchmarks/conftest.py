"""Shared by the benchmarks."""

import ctypes
import importlib
import random
import time
from collections.abc import Callable, Iterator

import pytest
import torch

# Importing torch and the operators is no part of any measurement.
importlib.import_module("mg2l.ops")


# glibc hands large blocks back to the system as soon as they are free, or keeps them, depending on
# what else is on the heap; a page that comes back costs more than filling it. Here it keeps them.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
if _mallopt is not None:
    for _parameter in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
        _mallopt(_parameter, 1 << 30)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two threads for torch: what the bars of the operators are stated for."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def interleaved() -> Callable[..., dict[str, list[float]]]:
    """Times several functions in turns, so that a busy machine slows all of them alike."""

    def run(rounds: int, **functions: Callable[[], object]) -> dict[str, list[float]]:
        """Seconds of each round of each function."""
        seconds: dict[str, list[float]] = {name: [] for name in functions}
        order = list(functions)
        for name in order:
            functions[name]()
        for _ in range(rounds):
            random.shuffle(order)
            for name in order:
                functions[name]()  # warm: what ran before has filled the caches
                start = time.perf_counter()
                functions[name]()
                seconds[name].append(time.perf_counter() - start)
        return seconds

    return run
