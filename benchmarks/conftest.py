"""Shared by the benchmarks."""

import ctypes
import importlib
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

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


Ratios = dict[str, dict[str, float]]


@pytest.fixture
def ratios(interleaved: Callable[..., dict[str, list[float]]]) -> Callable[..., Ratios]:
    """Native against plain torch in one run, forward alone and forward with backward."""

    def passes(forward: Callable[[], Tensor], leaves: Sequence[Tensor]) -> list[Callable[[], Any]]:
        def both() -> tuple[Tensor, ...]:
            return torch.autograd.grad(forward().square().sum(), leaves)

        return [torch.no_grad()(forward), both]

    def run(rounds: int, leaves: Sequence[Tensor], **paths: Callable[[], Tensor]) -> Ratios:
        """Milliseconds of every path, and how many times faster ``native`` is than each other.

        Args:
            rounds: rounds of each.
            leaves: what gradients are taken by.
            paths: forward passes; one is called ``native``.

        Returns:
            For ``forward`` and ``forward_backward``: ``<path>_ms``, ``over_<path>`` (of medians)
            and ``over_<path>_fastest`` (of the fastest rounds).
        """
        results: Ratios = {}
        for index, name in enumerate(("forward", "forward_backward")):
            functions = {key: passes(path, leaves)[index] for key, path in paths.items()}
            seconds = interleaved(rounds, **functions)
            median = {key: statistics.median(times) for key, times in seconds.items()}
            fastest = {key: min(times) for key, times in seconds.items()}
            results[name] = {f"{key}_ms": round(1e3 * value, 3) for key, value in median.items()}
            for key in sorted(paths.keys() - {"native"}):
                results[name][f"over_{key}"] = round(median[key] / median["native"], 2)
                results[name][f"over_{key}_fastest"] = round(fastest[key] / fastest["native"], 2)
        return results

    return run


@pytest.fixture
def check_bars() -> Callable[[Ratios, dict[str, tuple[str, float]]], None]:
    """Check the fastest rounds against bars ``{pass: (backend, ratio)}``.

    Whatever else runs on the machine multiplies the median of everything that uses all cores.
    """

    def run(results: Ratios, bars: dict[str, tuple[str, float]]) -> None:
        for name, (backend, bar) in bars.items():
            ratio = results[name][f"over_{backend}_fastest"]
            assert ratio >= bar, f"{name}: {ratio} times faster than {backend}, bar {bar}"

    return run
