"""Policy loss of Gaussians against torch: ``pytest benchmarks/bench_gaussian_surrogate.py``.

``[A, rows, W]``, float32, one thread, loss and gradient: two agents with two numbers in an action,
32 environments for 100 steps in four minibatches, and as a whole; also against the definition
compiled by ``torch.compile``.
"""

from __future__ import annotations

import pytest
import torch

from mg2l.ops import gaussian_surrogate, reference

ROWS = (800, 3200)
BAR = 2.0


@pytest.mark.parametrize("rows", ROWS)
def test_gaussian_surrogate(benchmark, ratios, check_bars, rows):
    torch.manual_seed(0)
    mean, action = torch.randn(2, rows, 2, requires_grad=True), torch.randn(2, rows, 2)
    log_std = torch.zeros(2, 1, 2, requires_grad=True)
    before, advantages = torch.randn(2, 2, rows)
    compiled = torch.compile(reference.gaussian_surrogate)

    def loss(function):
        given = (mean, log_std, action, before, advantages, 1 / rows)
        return function(*given, clip=0.2, entropy_coef=0.01).loss

    results = ratios(
        101,
        [mean, log_std],
        native=lambda: loss(gaussian_surrogate),
        torch=lambda: loss(reference.gaussian_surrogate),
        compiled=lambda: loss(compiled),
    )
    print(f"2, {rows}: {results}")
    benchmark.extra_info.update(results)
    benchmark.pedantic(lambda: loss(gaussian_surrogate), rounds=101, warmup_rounds=2)
    check_bars(results, {"forward_backward": ("torch", BAR)})
