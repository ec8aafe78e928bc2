"""``film`` and its gradients against torch: ``pytest benchmarks/bench_film.py``.

Features ``[A, rows, H]`` and N scales and shifts, float32, one thread: two agents with a minibatch
of 2,000 rows, each with its own or with those of one of 160 environments. The operator is called as
PPO calls it, without a graph; the definition, also compiled by ``torch.compile``, with autograd.
"""

from __future__ import annotations

import statistics

import pytest
import torch

from mg2l.ops import reference
from mg2l.ops.film import film_vjp

ROWS, WIDTH = 2000, 128
BARS = {ROWS: 1.5, 160: 2.5}


@pytest.mark.parametrize("latents", BARS)
def test_film(benchmark, interleaved, latents):
    torch.manual_seed(0)
    features, grad = torch.randn(2, 2, ROWS, WIDTH)
    generated = torch.randn(2, latents, 2 * WIDTH)
    index = None if latents == ROWS else torch.randint(latents, (ROWS,))
    leaves = features.clone().requires_grad_(), generated.clone().requires_grad_()
    compiled = torch.compile(reference.film)

    @torch.no_grad()
    def native():
        _, pull = film_vjp(features, generated, index)
        return pull(grad)

    def by_autograd(function):
        return torch.autograd.grad(function(*leaves, index), leaves, grad)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = interleaved(
        101,
        native=native,
        torch=lambda: by_autograd(reference.film),
        compiled=lambda: by_autograd(compiled),
    )
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    results = {f"{name}_ms": round(1e3 * median, 3) for name, median in medians.items()}
    for name in ("torch", "compiled"):
        results[f"over_{name}"] = round(medians[name] / medians["native"], 2)
    print(f"2, {ROWS}, {latents}, {WIDTH}: {results}")
    benchmark.extra_info.update(results)
    benchmark.pedantic(native, rounds=101, warmup_rounds=2)
    torch.set_num_threads(threads)
    assert min(seconds["torch"]) / min(seconds["native"]) > BARS[latents]
