"""``pia_pool`` against its torch composition: ``pytest benchmarks/bench_pia_pool.py``.

``[sets, T, D]`` float32, one head, two threads. ``[64, 2, 64]`` is pooling over agents.
``compiled`` is the composition through ``torch.compile``, ``sdpa`` torch's attention with one query
for all sets.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mg2l.ops import pia_pool, reference

BARS = {(64, 2, 64): 1.0, (64, 512, 64): 2.0, (512, 100, 16): 1.0}


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("shape", BARS, ids=str)
def test_pia_pool(benchmark, ratios, check_bars, shape):
    torch.manual_seed(0)
    x, query = torch.randn(shape, requires_grad=True), torch.randn(1, shape[-1], requires_grad=True)
    compiled = torch.compile(reference.pia_pool)

    def sdpa() -> torch.Tensor:
        return F.scaled_dot_product_attention(query.expand(len(x), 1, -1), x, x, scale=1.0)

    torch.testing.assert_close(pia_pool(x, query).pooled, sdpa())
    results = ratios(
        51,
        [x, query],
        native=lambda: pia_pool(x, query).pooled,
        torch=lambda: reference.pia_pool(x, query).pooled,
        compiled=lambda: compiled(x, query).pooled,
        sdpa=sdpa,
    )
    print(f"{list(shape)}: {results}")
    benchmark.extra_info.update(results)
    benchmark.pedantic(lambda: pia_pool(x, query).pooled, rounds=51, warmup_rounds=2)
    check_bars(results, dict.fromkeys(("forward", "forward_backward"), ("torch", BARS[shape])))
