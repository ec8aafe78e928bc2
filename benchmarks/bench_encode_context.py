"""``encode_context`` against plain torch: ``pytest benchmarks/bench_encode_context.py``.

Contexts gathered by index from a replay of 100,000 rows, one hidden layer, F = 23, H = 64, two
threads. ``literal`` is the composition as the method is written: gather, transition encoder
(linear, GELU, linear), keys and values of every transition, softmax, weighted sum, output.
``folded`` is the operator's own definition in torch, with all that is linear applied once per
context, ``compiled`` the same through ``torch.compile``. All compute the same vectors from the same
parameters.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mg2l.ops import encode_context, reference

ROWS, FEATURES, HIDDEN = 100_000, 23, 64
SIZES = [(160, 10, 2), (128, 100, 2), (32, 512, 3)]
BARS = {"forward": ("literal", 8.0), "forward_backward": ("literal", 5.0)}


def parameters() -> dict[str, Tensor]:
    torch.manual_seed(0)
    h, f = HIDDEN, FEATURES
    shapes = {
        "first": (h, f), "first_bias": (h,), "second": (h, h), "second_bias": (h,), "query": (h,),
        "key": (h, h), "value": (h, h), "value_bias": (h,), "output": (h, h), "output_bias": (h,),
    }  # fmt: skip
    drawn = {name: torch.randn(shape) / math.sqrt(shape[-1]) for name, shape in shapes.items()}
    return {name: tensor.requires_grad_() for name, tensor in drawn.items()}


def literal(rows: Tensor, index: Tensor, p: dict[str, Tensor]) -> Tensor:
    hidden = F.gelu(F.linear(rows[index], p["first"], p["first_bias"]))
    x = F.linear(hidden, p["second"], p["second_bias"])
    keys, values = F.linear(x, p["key"]), F.linear(x, p["value"], p["value_bias"])
    weights = torch.softmax(keys @ p["query"] / math.sqrt(HIDDEN), 1)
    pooled = (weights.unsqueeze(-1) * values).sum(1)
    return F.linear(pooled, p["output"], p["output_bias"])


def folded(operator: Any, rows: Tensor, index: Tensor, p: dict[str, Tensor]) -> Tensor:
    query = p["second"].t() @ (p["key"].t() @ p["query"]) / math.sqrt(HIDDEN)
    pooled = operator(rows, [p["first"]], [p["first_bias"]], query, index=index).pooled
    x = F.linear(pooled, p["second"], p["second_bias"])
    return F.linear(F.linear(x, p["value"], p["value_bias"]), p["output"], p["output_bias"])


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("contexts", "transitions", "agents"), SIZES)
def test_encode_context(benchmark, ratios, check_bars, contexts, transitions, agents):
    p = parameters()
    rows = torch.randn(ROWS, agents, FEATURES)
    index = torch.randint(ROWS, (contexts, transitions))
    torch.testing.assert_close(
        folded(encode_context, rows, index, p), literal(rows, index, p), rtol=1e-4, atol=1e-4
    )
    compiled = torch.compile(reference.encode_context)
    results = ratios(
        21,
        list(p.values()),
        native=lambda: folded(encode_context, rows, index, p),
        literal=lambda: literal(rows, index, p),
        folded=lambda: folded(reference.encode_context, rows, index, p),
        compiled=lambda: folded(compiled, rows, index, p),
    )
    print(f"[{contexts}, {transitions}, {agents}]: {results}")
    benchmark.extra_info.update(results)
    benchmark.pedantic(lambda: folded(encode_context, rows, index, p), rounds=15, warmup_rounds=2)
    if transitions >= 100:
        check_bars(results, BARS)
