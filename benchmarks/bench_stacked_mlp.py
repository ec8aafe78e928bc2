"""``stacked_mlp`` against its torch composition: ``pytest benchmarks/bench_stacked_mlp.py``.

``[G, rows, in]`` and the widths of the layers, float32, ReLU, two threads; also against the
definition compiled by ``torch.compile``, and with products of bfloat16 where this CPU has them. The
sizes are those of PPO: two agents, 32 environments for 100 steps, as a whole and in four
minibatches; and a minibatch of 32 agents.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from mg2l.ops import native, reference, stacked_mlp

BARS = {
    (2, 3200, (12, 128, 128)): 1.5,
    (2, 800, (24, 128, 128)): 1.3,
    (2, 3200, (24, 256, 256)): 1.2,
    (32, 800, (146, 128, 128)): 1.2,
}


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("groups", "rows", "widths"), BARS, ids=str)
def test_stacked_mlp(benchmark, ratios, check_bars, groups, rows, widths):
    torch.manual_seed(0)
    x = torch.randn(groups, rows, widths[0])
    weights = [
        (torch.randn(groups, units, inputs) / inputs**0.5).requires_grad_()
        for inputs, units in itertools.pairwise(widths)
    ]
    biases = [torch.zeros(groups, units, requires_grad=True) for units in widths[1:]]
    compiled = torch.compile(reference.stacked_mlp)
    paths = {
        "native": lambda: stacked_mlp(x, weights, biases),
        "torch": lambda: reference.stacked_mlp(x, weights, biases),
        "compiled": lambda: compiled(x, weights, biases),
    }
    if native.has_bfloat16():
        paths["bfloat16"] = lambda: stacked_mlp(x, weights, biases, bfloat16=True)
    results = ratios(31, [*weights, *biases], **paths)
    print(f"{groups}, {rows}, {list(widths)}: {results}")
    benchmark.extra_info.update(results)
    benchmark.pedantic(lambda: stacked_mlp(x, weights, biases), rounds=31, warmup_rounds=2)
    bar = BARS[groups, rows, widths]
    check_bars(results, dict.fromkeys(("forward", "forward_backward"), ("torch", bar)))
