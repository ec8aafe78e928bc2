"""``gae`` against its plain-torch loop and against copying: ``pytest benchmarks/bench_gae.py``.

Two threads, float32, rounds of all candidates interleaved. The copy reads three arrays and writes
one (``addcmul``), and like ``gae`` it returns new memory; ``into`` copies into memory that is there
already, which ``gae`` never has. An element of ``gae`` is 18 bytes: reward 4, value 4, two flags 2,
advantage 4, return 4. An element of the copy is 16.

``extra_info`` holds, from medians and from the fastest rounds: milliseconds, the speed-up over the
loop, and the bandwidth as a fraction of the copy's. The bars apply to the fastest rounds:
whatever else runs on two cores multiplies the median of everything that uses both. Rounds are taken
with several sets of arrays: where their pages lie in a cache is random.

Where TorchRL is installed, ``torchrl`` is its vectorised estimate of the same, which wants arrays
``[N, T, 1]``.
"""

import importlib
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from mg2l.ops import gae, reference

SIZES = [(100, 64), (100, 2048), (1024, 128), (512, 1024), (2048, 4096)]
ARRAYS = 12
GAE_BYTES, COPY_BYTES = 18, 16
BARS = {(512, 1024): {"speedup": 25, "bandwidth_over_copy": 0.6}}


def arguments(steps: int, columns: int) -> tuple[Any, ...]:
    flags = torch.rand(2, steps, columns) < 0.01
    values = torch.randn(steps + 1, columns)
    return torch.randn(steps, columns), values, flags[0], flags[1], 0.99, 0.95


def torchrl(
    rewards: Tensor,
    values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Callable[[], Any] | None:
    """TorchRL's estimate; None where it is not installed."""
    try:
        functional = importlib.import_module("torchrl.objectives.value.functional")
    except ImportError:
        return None
    done = terminated | truncated
    arrays = [x.t().unsqueeze(-1) for x in (values[:-1], values[1:], rewards, done, terminated)]
    arrays = [x.contiguous() for x in arrays]
    return partial(functional.vec_generalized_advantage_estimate, gamma, gae_lambda, *arrays)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("steps", "columns"), SIZES)
def test_gae(benchmark, interleaved, steps, columns):
    seconds: dict[str, list[float]] = {}
    rounds = 200 if steps * columns < 1_000_000 else 20
    for _ in range(ARRAYS):
        args = arguments(steps, columns)
        a, b, c, out = torch.randn(4, steps, columns)
        measured = interleaved(
            rounds,
            native=partial(gae, *args),
            copy=partial(torch.addcmul, a, b, c),
            into=partial(torch.addcmul, a, b, c, out=out),
        )
        measured |= interleaved(3, loop=partial(reference.gae, *args))
        if (other := torchrl(*args)) is not None:
            measured |= interleaved(3, torchrl=other)
        for name, times in measured.items():
            seconds.setdefault(name, []).extend(times)
    benchmark.pedantic(gae, args, rounds=31, warmup_rounds=2)

    results = {}
    for kind, summary in (("median", statistics.median), ("fastest", min)):
        time = {name: summary(times) for name, times in seconds.items()}
        native = GAE_BYTES / time["native"]
        results[kind] = {
            **{f"{name}_ms": round(1e3 * value, 3) for name, value in time.items()},
            "native_gb_per_s": round(steps * columns * native / 1e9, 1),
            "speedup": round(time["loop"] / time["native"], 1),
            "bandwidth_over_copy": round(native * time["copy"] / COPY_BYTES, 2),
            "bandwidth_over_into": round(native * time["into"] / COPY_BYTES, 2),
        }
        print(f"[{steps}, {columns}] {kind}: {results[kind]}")
    benchmark.extra_info.update(results)
    for name, bar in BARS.get((steps, columns), {}).items():
        assert results["fastest"][name] >= bar, f"{name} {results['fastest'][name]}, bar {bar}"


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("path", [gae, reference.gae], ids=["native", "loop"])
def test_gae_backward(benchmark, path):
    rewards, values, *rest = arguments(512, 1024)
    leaves: list[Tensor] = [rewards.requires_grad_(), values.requires_grad_()]

    def step() -> None:
        result = path(*leaves, *rest)
        torch.autograd.grad(result.advantages.sum() + result.returns.sum(), leaves)

    benchmark.pedantic(step, rounds=7, warmup_rounds=1)
