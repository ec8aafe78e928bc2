"""PPO's losses against their formulas in torch: ``pytest benchmarks/bench_clipped.py``.

``[A, rows]``, float32, one thread, loss and gradient: two agents, 32 environments for 100 steps in
four minibatches, and as a whole; also against the definition compiled by ``torch.compile``.
"""

from __future__ import annotations

import pytest
import torch

from mg2l.ops import reference, surrogate, value_loss

ROWS = (800, 3200)
BAR = 1.5


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("operator", [surrogate, value_loss])
def test_clipped(benchmark, ratios, check_bars, operator, rows):
    torch.manual_seed(0)
    x = torch.randn(2, rows, requires_grad=True)
    before, aim = torch.randn(2, 2, rows)
    more, options = ((0.2,), {}) if operator is surrogate else ((), {"clip": 0.2, "delta": 10.0})
    definition = getattr(reference, operator.__name__)
    compiled = torch.compile(definition)

    def loss(function):
        return function(x, before, aim, 1 / rows, *more, **options).loss

    results = ratios(
        101,
        [x],
        native=lambda: loss(operator),
        torch=lambda: loss(definition),
        compiled=lambda: loss(compiled),
    )
    print(f"{operator.__name__} 2, {rows}: {results}")
    benchmark.extra_info.update(results)
    benchmark.pedantic(lambda: loss(operator), rounds=101, warmup_rounds=2)
    check_bars(results, {"forward_backward": ("torch", BAR)})
