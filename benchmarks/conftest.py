"""Shared by the benchmarks."""

import importlib
import random
import statistics
import time
from collections.abc import Callable, Iterator

import pytest
import torch

# Importing torch and the operators is no part of any measurement.
importlib.import_module("mg2l.ops")


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two threads for torch: what the bars of the operators are stated for."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def interleaved() -> Callable[..., dict[str, float]]:
    """Times several functions in turns, so that a busy machine slows all of them alike."""

    def run(rounds: int, **functions: Callable[[], object]) -> dict[str, float]:
        """Median seconds of each function."""
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
        return {name: statistics.median(times) for name, times in seconds.items()}

    return run
