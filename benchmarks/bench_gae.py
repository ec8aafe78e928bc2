"""``gae`` against its plain-torch loop and against copying: ``pytest benchmarks/bench_gae.py``.

Two threads, float32. The copy reads three arrays and writes one (``addcmul``), and like ``gae`` it
returns new memory. An element of ``gae`` is 18 bytes: reward 4, value 4, two flags 2, advantage 4,
return 4. An element of the copy is 16. ``extra_info`` holds medians of interleaved rounds: the
speed-up over the loop, the bandwidths [GB/s] and their ratio; ``into`` is the copy into memory
that is there already, which ``gae`` never has.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from mg2l.ops import gae, reference

SIZES = [(100, 64), (512, 1024), (2048, 4096)]
GAE_BYTES, COPY_BYTES = 18, 16
BARS = {(512, 1024): {"speedup": 25, "bandwidth": 0.6}}


def arguments(steps: int, columns: int) -> tuple[Any, ...]:
    torch.manual_seed(0)
    flags = torch.rand(2, steps, columns) < 0.01
    values = torch.randn(steps + 1, columns)
    return torch.randn(steps, columns), values, flags[0], flags[1], 0.99, 0.95


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("steps", "columns"), SIZES)
def test_gae(benchmark, interleaved, steps, columns):
    args = arguments(steps, columns)
    a, b, c, out = torch.randn(4, steps, columns)
    medians = interleaved(
        31,
        native=lambda: gae(*args),
        copy=lambda: torch.addcmul(a, b, c),
        into=lambda: torch.addcmul(a, b, c, out=out),
    )
    medians |= interleaved(5, loop=lambda: reference.gae(*args))
    benchmark.pedantic(gae, args, rounds=31, warmup_rounds=2)

    elements = steps * columns
    bandwidth = {
        name: elements * (GAE_BYTES if name == "native" else COPY_BYTES) / medians[name] / 1e9
        for name in ("native", "copy", "into")
    }
    speedup = medians["loop"] / medians["native"]
    ratio = bandwidth["native"] / bandwidth["copy"]
    benchmark.extra_info.update(
        {f"{name}_ms": round(1e3 * seconds, 3) for name, seconds in medians.items()},
        **{f"{name}_gb_per_s": round(value, 1) for name, value in bandwidth.items()},
        speedup_over_loop=round(speedup, 1),
        bandwidth_over_copy=round(ratio, 2),
        bandwidth_over_copy_into=round(bandwidth["native"] / bandwidth["into"], 2),
    )
    print(benchmark.extra_info)
    bars = BARS.get((steps, columns))
    if bars:
        assert speedup >= bars["speedup"], f"{speedup:.1f} times the loop, bar {bars['speedup']}"
        assert ratio >= bars["bandwidth"], f"{ratio:.2f} of the copy, bar {bars['bandwidth']}"


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("path", [gae, reference.gae], ids=["native", "loop"])
def test_gae_backward(benchmark, path):
    rewards, values, *rest = arguments(512, 1024)
    leaves: list[Tensor] = [rewards.requires_grad_(), values.requires_grad_()]

    def step() -> None:
        result = path(*leaves, *rest)
        torch.autograd.grad(result.advantages.sum() + result.returns.sum(), leaves)

    benchmark.pedantic(step, rounds=7, warmup_rounds=1)
