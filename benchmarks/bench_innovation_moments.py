"""Second moments of contexts against torch: ``pytest benchmarks/bench_innovation_moments.py``.

``[B, T, A, D]``, float32, one thread, moments and gradients: the contexts of an update of
`mg2l-regression` (each of at most 20 of its transitions), and those of a rollout, in order; also
against the definition compiled by ``torch.compile``.
"""

from __future__ import annotations

import pytest
import torch

from mg2l.ops import innovation_moments, reference

BARS = {(80, 64, 2, 9): 6.0, (40, 100, 2, 9): 4.0}
FEATURES, OBSERVATION, KEPT = 15, 4, 20


@pytest.mark.parametrize("size", BARS, ids=str)
def test_innovation_moments(benchmark, ratios, check_bars, size):
    torch.manual_seed(0)
    contexts, steps, agents, width = size
    shape: tuple[int, ...] = contexts, steps, agents
    places: torch.Tensor | None = None
    if steps == 64:
        shape = contexts * KEPT, agents
        places = torch.randint(KEPT, (contexts, 1)) + torch.arange(steps)
        places = places % KEPT + KEPT * torch.arange(contexts).unsqueeze(1)
    series = torch.randn(*shape, width, requires_grad=True)
    transitions = torch.randn(*shape, FEATURES)
    behind = transitions.view(-1, agents, FEATURES)
    behind[1:, :, :OBSERVATION] = behind[:-1, :, -OBSERVATION:]
    coefficients = torch.tensor([0.8, 1.2, -0.4], requires_grad=True)
    compiled = torch.compile(reference.innovation_moments)

    def moments(function):
        return function(series, transitions, coefficients, OBSERVATION, places=places)

    results = ratios(
        31,
        [series, coefficients],
        native=lambda: moments(innovation_moments),
        torch=lambda: moments(reference.innovation_moments),
        compiled=lambda: moments(compiled),
    )
    print(f"innovation_moments {size}: {results}")
    benchmark.extra_info.update(results)
    benchmark.pedantic(lambda: moments(innovation_moments), rounds=31, warmup_rounds=2)
    check_bars(results, {"forward_backward": ("torch", BARS[size])})
