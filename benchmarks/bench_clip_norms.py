"""Clipping of gradients against torch: ``pytest benchmarks/bench_clip_norms.py``.

The gradients of two agents' actors, two hidden layers, float32, one thread; below the limit, as
most are, and above it. ``clip_grad_norm_`` of torch clips all of them together.
"""

from __future__ import annotations

import statistics

import pytest
import torch
from torch import nn

from mg2l.ops import clip_norms, reference

BAR = 1.5


@pytest.mark.parametrize("limit", [1e6, 1e-3])
@pytest.mark.parametrize("hidden", [128, 256])
def test_clip_norms(benchmark, interleaved, hidden, limit):
    torch.manual_seed(0)
    shapes = [(hidden, 12), (hidden,), (hidden, hidden), (hidden,), (2, hidden), (2,), (1, 2)]
    gradients = [torch.randn(2, *shape) for shape in shapes]
    parameters = [nn.Parameter(torch.zeros_like(x)) for x in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    seconds = interleaved(
        101,
        native=lambda: clip_norms(gradients, limit, per_group=True),
        definition=lambda: reference.clip_norms(gradients, limit, per_group=True),
        torch=lambda: nn.utils.clip_grad_norm_(parameters, limit),
    )
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    over = {name: round(value / medians["native"], 2) for name, value in medians.items()}
    print(f"{hidden}, {limit}: {1e6 * medians['native']:.1f} us, {over}")
    benchmark.extra_info.update(over)
    benchmark.pedantic(
        lambda: clip_norms(gradients, limit, per_group=True), rounds=101, warmup_rounds=2
    )
    for name in ("definition", "torch"):
        ratio = min(seconds[name]) / min(seconds["native"])
        assert ratio >= BAR, f"{name} takes {ratio} times as long, bar {BAR}"
