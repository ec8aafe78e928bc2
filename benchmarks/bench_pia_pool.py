"""``pia_pool`` against its torch composition: ``pytest benchmarks/bench_pia_pool.py``.

``[sets, T, D]`` float32, one head, two threads. ``[64, 2, 64]`` is pooling over agents.
"""

from __future__ import annotations

import pytest
import torch

from mg2l.ops import pia_pool, reference

BARS = {(64, 2, 64): 1.0, (64, 512, 64): 2.0, (512, 100, 16): 1.0}


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("shape", BARS, ids=str)
def test_pia_pool(benchmark, ratios, check_bars, shape):
    torch.manual_seed(0)
    x, query = torch.randn(shape, requires_grad=True), torch.randn(1, shape[-1], requires_grad=True)
    results = ratios(
        51,
        [x, query],
        native=lambda: pia_pool(x, query).pooled,
        torch=lambda: reference.pia_pool(x, query).pooled,
    )
    print(f"{list(shape)}: {results}")
    benchmark.extra_info.update(results)
    benchmark.pedantic(lambda: pia_pool(x, query).pooled, rounds=51, warmup_rounds=2)
    check_bars(results, dict.fromkeys(("forward", "forward_backward"), ("torch", BARS[shape])))
