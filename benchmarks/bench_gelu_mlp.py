"""Layers with GELU against torch: ``pytest benchmarks/bench_gelu_mlp.py``.

Rows and widths, float32, one thread, with gradients of weights and biases: the distinct transitions
of an update of `mg2l-regression` on `mpe-goals` and on `mpe-hunting-4`; also against the definition
compiled by ``torch.compile``.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from mg2l.ops import gelu_mlp, reference

BARS = {(6400, (14, 64, 64, 64, 7)): 1.1, (12300, (26, 64, 64, 64, 7)): 1.1}


@pytest.mark.parametrize("size", BARS, ids=str)
def test_gelu_mlp(benchmark, ratios, check_bars, size):
    torch.manual_seed(0)
    rows, widths = size
    pairs = list(itertools.pairwise(widths))
    x = torch.randn(rows, widths[0])
    weights = [(torch.randn(o, i) / i**0.5).requires_grad_() for i, o in pairs]
    biases = [torch.randn(o).requires_grad_() for _, o in pairs]
    compiled = torch.compile(reference.gelu_mlp)

    results = ratios(
        31,
        [*weights, *biases],
        native=lambda: gelu_mlp(x, weights, biases),
        torch=lambda: reference.gelu_mlp(x, weights, biases),
        compiled=lambda: compiled(x, weights, biases),
    )
    print(f"gelu_mlp {size}: {results}")
    benchmark.extra_info.update(results)
    benchmark.pedantic(lambda: gelu_mlp(x, weights, biases), rounds=31, warmup_rounds=2)
    check_bars(results, {"forward_backward": ("torch", BARS[size])})
