"""How the cost of an encoder update grows with tasks, agents and the length of contexts.

``pytest benchmarks/bench_scaling.py`` holds the growth against linear; ``python
benchmarks/bench_scaling.py --plot scaling.png`` draws it. Each point is the fastest of some rounds,
forward and backward, default encoder (three hidden layers of 64, 16-dimensional representations).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import pytest
import torch

from mg2l.algorithms.mg2l.config import MG2LConfig
from mg2l.algorithms.mg2l.encoder import TaskEncoder
from mg2l.algorithms.mg2l.objective import Objective

FEATURES = 23
SIZES = {
    "tasks": [2, 10, 50, 200],
    "agents": [2, 10, 30, 100],
    "transitions": [100, 1000, 10_000],
}
BAR = 1.15
"""Exponent of growth over the last two sizes, where fixed costs no longer hide it."""


def update(
    tasks: int, agents: int, transitions: int, queries: int
) -> tuple[Callable[[], None], list[int]]:
    """One update with ``keys: context`` and shared negatives, and the contexts it has encoded.

    A context of every task serves all queries: B + K contexts are encoded, not B K.
    """
    torch.manual_seed(0)
    config = MG2LConfig(keys="context", negatives="shared")
    encoder = TaskEncoder(config, agents, FEATURES)
    objective = Objective(config, tasks, encoder, torch.Generator().manual_seed(0))
    encoded: list[int] = []
    encoder.register_forward_hook(lambda _, contexts, __: encoded.append(len(contexts[0])))
    ids = torch.randint(tasks, (queries,))
    contexts = torch.randn(queries, transitions, agents, FEATURES)
    keys = torch.randn(tasks, transitions, agents, FEATURES)

    def run() -> None:
        encoded.clear()
        loss, _ = objective(contexts, ids, keys, encoder, measure_gap=False)
        encoder.zero_grad()
        loss.backward()

    return run, encoded


def of_axis(axis: str, size: int) -> tuple[Callable[[], None], list[int]]:
    """The update that a point of an axis times."""
    if axis == "tasks":
        return update(size, 2, 100, queries=16)
    if axis == "agents":
        return update(2, size, 100, queries=8)
    return update(2, 2, size, queries=8)


def seconds(axis: str) -> list[float]:
    """The fastest round at every size of an axis."""
    found = []
    for size in SIZES[axis]:
        run, _ = of_axis(axis, size)
        run()
        rounds = []
        for _ in range(5):
            start = time.perf_counter()
            run()
            rounds.append(time.perf_counter() - start)
        found.append(min(rounds))
    return found


def exponent(sizes: list[int], times: list[float]) -> float:
    """Slope of the last two points in logarithms: 1 is linear."""
    return math.log(times[-1] / times[-2]) / math.log(sizes[-1] / sizes[-2])


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("axis", SIZES)
def test_cost_grows_linearly(benchmark, axis):
    times = seconds(axis)
    found = exponent(SIZES[axis], times)
    table = {size: round(1e3 * t, 2) for size, t in zip(SIZES[axis], times, strict=True)}
    print(f"{axis}: ms {table}, exponent {found:.2f}")
    benchmark.extra_info.update({"ms": {str(k): v for k, v in table.items()}, "exponent": found})
    run, _ = of_axis(axis, SIZES[axis][1])
    benchmark.pedantic(run, rounds=5)
    assert found <= BAR


def test_shared_negatives_encode_a_context_per_task():
    run, encoded = update(tasks=50, agents=2, transitions=10, queries=16)
    run()
    assert encoded == [16, 50]


def main() -> None:
    """Measure every axis and draw it."""
    import matplotlib.pyplot as plt

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--plot", default="scaling.png", help="file to write (default: %(default)s)"
    )
    path = parser.parse_args().plot
    torch.set_num_threads(2)
    figure, axes = plt.subplots(1, len(SIZES), figsize=(9, 3), sharey=True)
    for axis, (name, sizes) in zip(axes, SIZES.items(), strict=True):
        times = [1e3 * t for t in seconds(name)]
        print(name, dict(zip(sizes, (round(t, 2) for t in times), strict=True)))
        axis.loglog(sizes, times, "o-")
        axis.loglog(sizes, [times[-1] * s / sizes[-1] for s in sizes], ":", color="grey")
        axis.set_xlabel(name)
    axes[0].set_ylabel("ms per update")
    axes[-1].legend(["measured", "linear"], frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
