"""Faults put into kernels on purpose: the runtime must find every one, and nothing without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_host import (
    IN_ORDER,
    KERNELS,
    Library,
    Report,
    Schedule,
    build,
    delete_each,
    replace,
)
from cuda_host.build import HERE
from cuda_host.faults import Fault, Outcome, check_is_found, names

pytestmark = pytest.mark.ci

SELF_TEST = HERE / "kernels" / "reduce.cu"
REDUCE = SELF_TEST.with_suffix(".cuh").read_text()
GAE = (KERNELS / "gae.cuh").read_text()
PIA_POOL = (KERNELS / "pia_pool.cuh").read_text()
PAIRWISE = (KERNELS / "pairwise_lse.cuh").read_text()


# --- Kernels of the runtime's own test ---


def run_self_test(library: Library, schedule: Schedule = IN_ORDER) -> Outcome:
    """Every kernel of the self-test, on ragged sizes."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(9, 1000)).astype(np.float32)
    sums, scan, reversed_x = np.empty(9, np.float32), np.empty_like(x), np.empty_like(x)
    uniform, counts = rng.random(4000, np.float32), np.zeros(64, np.int32)
    tiles, transposed = x.ravel()[:2048].reshape(2, 32, 32).copy(), np.empty((2, 32, 32), "f4")
    voters, positive, largest = x[0, :101].copy(), np.empty(101, np.int32), np.empty(101, "f4")
    rows: dict[str, Any] = {"rows": 9, "columns": 1000, "x": x}
    calls: list[tuple[str, dict[str, Any]]] = [
        ("row_sum", {**rows, "y": sums}),
        ("row_scan", {**rows, "y": scan}),
        ("histogram", {"count": 4000, "x": uniform, "counts": counts}),
        ("warp_transpose", {"tiles": 2, "x": tiles, "transposed": transposed}),
        ("warp_vote", {"count": 101, "x": voters, "positive": positive, "largest": largest}),
        ("reverse", {**rows, "y": reversed_x}),
    ]
    findings = [
        finding
        for function, arguments in calls
        for finding in library.call(function, arguments, schedule=schedule, in_out=["counts"])
    ]
    right = (
        np.allclose(sums, x.sum(1, dtype=np.float64), atol=1e-4)
        and np.allclose(scan, x.cumsum(1, dtype=np.float64), atol=1e-4)
        and np.array_equal(counts, np.bincount((uniform * 64).astype(int), minlength=64))
        and np.array_equal(transposed, tiles.swapaxes(1, 2))
        and np.array_equal(largest[:32], np.full(32, voters[:32].max()))
        and np.array_equal(reversed_x, x[:, ::-1])
    )
    return Outcome(Report(findings), bool(right))


def reduce_fault(name: str, old: str, new: str, kind: str, *, at_line: bool = True) -> Fault:
    return Fault(replace(REDUCE, old, new, name=name), kind, at_line)


SELF_TEST_FAULTS = [
    # Without a barrier it is the accesses on its two sides that race.
    *(Fault(mutation, "race", False) for mutation in delete_each(REDUCE, "__syncthreads();")),
    *(Fault(mutation, "race", False) for mutation in delete_each(REDUCE, "__syncwarp();")),
    reduce_fault(
        "a shuffle orders no memory",
        "__syncwarp();",
        "__shfl_sync(kAllLanes, 0, 0);",
        "race",
        at_line=False,
    ),
    reduce_fault(
        "shared counter without atomic",
        "atomicAdd(&block_counts[bin], 1);",
        "block_counts[bin] += 1;",
        "race",
    ),
    reduce_fault(
        "global counter without atomic",
        "atomicAdd(&counts[bin], block_counts[bin]);",
        "counts[bin] += block_counts[bin];",
        "race",
    ),
    reduce_fault(
        "bound check of a read dropped",
        "column < columns ? x[blockIdx.x * columns + column] : 0.0F",
        "x[blockIdx.x * columns + column]",
        "out of bounds",
    ),
    reduce_fault(
        "bound check of a write dropped",
        "if (column < columns) scan[",
        "scan[",
        "out of bounds",
    ),
    reduce_fault(
        "one column too many",
        "column < columns; column +=",
        "column <= columns; column +=",
        "out of bounds",
        at_line=False,
    ),
    reduce_fault(
        "one before the first",
        "row[blockDim.x - 1 - threadIdx.x]",
        "row[-1 - threadIdx.x]",
        "out of bounds",
    ),
    reduce_fault(
        "one past dynamic shared memory",
        "row[blockDim.x - 1 - threadIdx.x]",
        "row[blockDim.x - threadIdx.x]",
        "out of bounds",
    ),
    reduce_fault(
        "shared counters not zeroed",
        "block_counts[bin] = 0;",
        ";",
        "uninitialised",
        at_line=False,
    ),
    reduce_fault(
        "half of shared memory written",
        "partial[threadIdx.x] = sum;",
        "if (threadIdx.x < 128) partial[threadIdx.x] = sum;",
        "uninitialised",
        at_line=False,
    ),
    reduce_fault(
        "adds to an undefined output",
        "sums[blockIdx.x] = partial[0];",
        "sums[blockIdx.x] += partial[0];",
        "uninitialised",
    ),
    reduce_fault(
        "writes to its input",
        "sums[blockIdx.x] = partial[0];",
        "const_cast<float*>(x)[blockIdx.x] = partial[0];",
        "read-only",
    ),
    reduce_fault(
        "barrier in a divergent branch",
        "if (column < columns) scan[blockIdx.x * columns + column] = sum;\n    __syncthreads();",
        "if (column < columns) { scan[blockIdx.x * columns + column] = sum; __syncthreads(); }",
        "barrier not reached",
    ),
    reduce_fault(
        "early exit before a barrier",
        "partial[threadIdx.x] = sum;",
        "partial[threadIdx.x] = sum; if (threadIdx.x >= 128) return;",
        "barrier not reached",
        at_line=False,
    ),
    reduce_fault(
        "a barrier in each branch",
        "partial[threadIdx.x] = sum;\n  __syncthreads();",
        "partial[threadIdx.x] = sum;\n  if (threadIdx.x < 32) { __syncthreads();\n  } else {\n"
        "    __syncthreads(); }",
        "divergent barrier",
        at_line=False,
    ),
    reduce_fault(
        "shuffle after an early exit",
        "for (unsigned left = lanes;",
        "for (unsigned left = kAllLanes;",
        "shuffle",
        at_line=False,
    ),
    reduce_fault(
        "shuffle that some lanes do not reach",
        "const float before = __shfl_up_sync(kAllLanes, sum, distance);",
        "float before = 0; if (lane != 7) before = __shfl_up_sync(kAllLanes, sum, distance);",
        "deadlock",
    ),
    reduce_fault(
        "a shuffle in each branch",
        "const float before = __shfl_up_sync(kAllLanes, sum, distance);",
        "float before;\n    if (lane < 16) before = __shfl_up_sync(kAllLanes, sum, distance);\n"
        "    else before = __shfl_up_sync(kAllLanes, sum, distance);",
        "divergent warp operation",
        at_line=False,
    ),
    reduce_fault(
        "mask without the own lane",
        "__ballot_sync(lanes, value > 0)",
        "__ballot_sync(lanes & 1, value > 0)",
        "warp mask",
    ),
    reduce_fault(
        "misaligned vector",
        "const float4 quad = x[at];",
        "const double quad_x = *reinterpret_cast<const double*>(\n"
        "        reinterpret_cast<const float*>(x + at) + 1);\n"
        "    float4 quad = x[at]; quad.x += 0 * static_cast<float>(quad_x);",
        "misaligned",
        at_line=False,
    ),
]


def test_self_test_kernels_have_no_fault() -> None:
    assert run_self_test(build(SELF_TEST)) == (Report(), True)


@pytest.mark.parametrize("fault", SELF_TEST_FAULTS, ids=names(SELF_TEST_FAULTS))
def test_fault_is_found(fault: Fault, tmp_path: Path) -> None:
    library = build(SELF_TEST, edits={"reduce.cuh": fault.mutation.text}, folder=tmp_path)
    check_is_found(fault, run_self_test(library), "reduce.cuh")


def test_schedules_alone_show_a_missing_barrier(tmp_path: Path) -> None:
    """Seeds and preemption really lead threads through other orders: values go wrong unchecked."""
    mutation = next(delete_each(REDUCE, "__syncthreads();"))
    library = build(SELF_TEST, edits={"reduce.cuh": mutation.text}, folder=tmp_path)
    for preempt in (0, 5):
        outcomes = [
            run_self_test(library, Schedule(seed=seed, preempt=preempt, check=False))
            for seed in range(1, 5)
        ]
        assert not all(outcome.values_are_right for outcome in outcomes)


def test_a_mutation_must_change_the_source() -> None:
    with pytest.raises(ValueError, match="the mutated source equals the original"):
        replace("a b a", "a", "a", name="same")
    with pytest.raises(ValueError, match="'c' occurs 0 times"):
        replace("a b a", "c", "d", name="absent")
    with pytest.raises(ValueError, match="'a' occurs 2 times"):
        replace("a b a", "a", "c", name="third", occurrence=2)
    assert replace("a\nb\na", "a", "c", name="last", occurrence=1) == ("last", "a\nb\nc", 3)
    assert [mutation.text for mutation in delete_each("a;b;a;", "a;")] == ["b;a;", "a;b;"]
