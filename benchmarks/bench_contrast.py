"""The encoder's contrastive losses against torch: ``pytest benchmarks/bench_contrast.py``.

``[G, B, K, D]``, float32, one thread, loss and gradients: two agents' 160 contexts against the keys
of 3 and 40 tasks, and many contexts; also against the definition compiled by ``torch.compile``.
"""

from __future__ import annotations

import pytest
import torch

from mg2l.ops import contrast, reference

BARS = {(2, 160, 3, 16): 2.0, (2, 160, 40, 16): 2.0, (1, 4096, 100, 32): 1.15}
OPTIONS = {"temperature": 0.2, "kl_weight": 0.1, "std_floor": 1e-3}


@pytest.mark.parametrize("size", BARS, ids=str)
def test_contrast(benchmark, ratios, check_bars, size):
    torch.manual_seed(0)
    groups, rows, keys, width = size
    raw = torch.randn(groups, rows, 2 * width, requires_grad=True)
    some = torch.randn(keys, width, requires_grad=True)
    positive = torch.randint(keys, (rows,))
    compiled = torch.compile(reference.contrast)

    def loss(function):
        return function(raw, some, positive, **OPTIONS).loss

    results = ratios(
        101,
        [raw, some],
        native=lambda: loss(contrast),
        torch=lambda: loss(reference.contrast),
        compiled=lambda: loss(compiled),
    )
    print(f"contrast {size}: {results}")
    benchmark.extra_info.update(results)
    benchmark.pedantic(lambda: loss(contrast), rounds=101, warmup_rounds=2)
    check_bars(results, {"forward_backward": ("torch", BARS[size])})
