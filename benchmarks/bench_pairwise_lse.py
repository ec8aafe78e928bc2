"""``pairwise_lse`` against its torch composition: ``pytest benchmarks/bench_pairwise_lse.py``.

InfoNCE of B queries against M keys, scores by dot products or Gaussian densities, float32, two
threads. Peak memory is what the process takes above what it held before, forward and backward, in a
process of its own.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from mg2l.ops import pairwise_lse, reference

# B, M, D, and how many times faster forward and forward + backward must be.
BARS = {(32, 50, 16): (1.0, 1.0), (1024, 1024, 64): (1.0, 1.0), (8192, 8192, 64): (1.0, 2.0)}
MEMORY = 0.05

PEAK = """
import re, sys, torch
from mg2l.ops import pairwise_lse, reference
size = int(sys.argv[2])
operator = {"native": pairwise_lse, "torch": reference.pairwise_lse}[sys.argv[1]]
torch.set_num_threads(2)
torch.manual_seed(0)

def run(n):
    queries, keys = (torch.randn(n, 64, requires_grad=True) for _ in range(2))
    result = operator(queries, keys, torch.arange(n))
    (result.lse - result.positive).sum().backward()

def kib(field):
    return int(re.search(field + r":\\s+(\\d+)", open("/proc/self/status").read())[1])

run(256)
before = kib("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
run(size)
print(kib("VmHWM") - before)
"""


def info_nce(operator: Any, **arguments: Any) -> torch.Tensor:
    result = operator(**arguments)
    bound: torch.Tensor = result.positive - result.lse
    return bound


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("size", BARS, ids=str)
def test_dot(benchmark, ratios, check_bars, size):
    batch, count, width = size
    torch.manual_seed(0)
    queries = torch.randn(batch, width, requires_grad=True)
    keys = torch.randn(count, width, requires_grad=True)
    arguments = {"queries": queries, "keys": keys, "positive": torch.arange(batch) % count}
    results = ratios(
        51 if batch < 4096 else 5,
        [queries, keys],
        native=lambda: info_nce(pairwise_lse, **arguments),
        torch=lambda: info_nce(reference.pairwise_lse, **arguments),
    )
    print(f"{list(size)}: {results}")
    benchmark.extra_info.update(results)
    benchmark.pedantic(lambda: info_nce(pairwise_lse, **arguments), rounds=5, warmup_rounds=1)
    forward, both = BARS[size]
    check_bars(results, {"forward": ("torch", forward), "forward_backward": ("torch", both)})


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("size", [(32, 50, 16), (160, 160, 16), (2048, 2048, 16)], ids=str)
def test_gaussian(benchmark, ratios, size):
    batch, count, width = size
    torch.manual_seed(0)
    queries = torch.randn(batch, width, requires_grad=True)
    keys = torch.randn(count, width, requires_grad=True)
    std = (torch.rand(count, width) + 0.5).requires_grad_()
    arguments = {"queries": queries, "keys": keys, "positive": torch.arange(batch) % count}
    arguments["std"] = std
    results = ratios(
        31 if batch < 1024 else 5,
        [queries, keys, std],
        native=lambda: info_nce(pairwise_lse, **arguments),
        torch=lambda: info_nce(reference.pairwise_lse, **arguments),
    )
    print(f"{list(size)}: {results}")
    benchmark.extra_info.update(results)
    benchmark.pedantic(lambda: info_nce(pairwise_lse, **arguments), rounds=5, warmup_rounds=1)


def test_peak_memory():
    peak = {}
    for path in ("native", "torch"):
        command = [sys.executable, "-c", PEAK, path, "8192"]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        peak[path] = int(run.stdout) / 1024
    print(f"[8192, 8192, 64]: peak MiB {peak}, {peak['native'] / peak['torch']:.4f}")
    assert peak["native"] < MEMORY * peak["torch"]
