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
    pairwise_cases,
    pia_pool_cases,
    replace,
)
from cuda_host.build import HERE
from cuda_host.cases import Case
from cuda_host.faults import WRONG, Fault, Outcome, check_is_found, names, run_cases
from cuda_host.gae_cases import backward_case, forward_case

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
        ("row_sum", {**rows, "sums": sums}),
        ("row_scan", {**rows, "scan": scan}),
        ("histogram", {"count": 4000, "x": uniform, "counts": counts}),
        ("warp_transpose", {"tiles": 2, "x": tiles, "transposed": transposed}),
        ("warp_vote", {"count": 101, "x": voters, "positive": positive, "largest": largest}),
        ("reverse", {**rows, "reversed": reversed_x}),
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


# --- gae ---


def gae_cases() -> list[Case]:
    """Both kernels of both directions, with everything that is optional and without."""
    everything = frozenset({"final", "norm"})
    return [
        *(
            forward_case(steps, 33, np.float64, extras=extras)
            for steps in (7, 67)
            for extras in (everything, frozenset[str]())
        ),
        *(
            backward_case(steps, 33, np.float64, final=final)
            for steps in (7, 67)
            for final in (True, False)
        ),
    ]


def run_gae(library: Library) -> Outcome:
    return run_cases(library, gae_cases())


def gae_fault(
    name: str, old: str, new: str, kind: str, *, occurrence: int = 0, at_line: bool = False
) -> Fault:
    return Fault(replace(GAE, old, new, name=name, occurrence=occurrence), kind, at_line)


BOUND = "if (column >= args.columns) return;"
WORKS = "column < args.columns && begin < end"
LENGTH = "(args.steps + kChunks - 1) / kChunks"
GAE_FAULTS = [
    *(Fault(mutation, "race", False) for mutation in delete_each(GAE, "__syncthreads();")),
    gae_fault("columns: no bound", BOUND, "", "out of bounds"),
    gae_fault("backward columns: no bound", BOUND, "", "out of bounds", occurrence=1),
    gae_fault("chunked: no bound", WORKS, "begin < end", "out of bounds"),
    gae_fault("backward chunked: no bound", WORKS, "begin < end", "out of bounds", occurrence=1),
    gae_fault("moments: no bound", "y == 0 && column < args.columns", "y == 0", "out of bounds"),
    gae_fault("a step too many", "walk(0, args.steps,", "walk(0, args.steps + 1,", "out of bounds"),
    gae_fault(
        "backward: a step too many",
        "walk(0, args.steps,",
        "walk(0, args.steps + 1,",
        "out of bounds",
        occurrence=1,
    ),
    gae_fault(
        "value two steps later",
        "next_value = value(end);",
        "next_value = value(end + 1);",
        "out of bounds",
    ),
    gae_fault("a step too few", "walk(0, args.steps,", "walk(1, args.steps,", WRONG),
    gae_fault("last chunk too long", "to < args.steps ? to : args.steps", "to", "out of bounds"),
    gae_fault("chunks too short", LENGTH, "args.steps / kChunks", WRONG),
    gae_fault("backward: chunks too short", LENGTH, "args.steps / kChunks", WRONG, occurrence=1),
    gae_fault("own chunk entered", "later > y", "later >= y", WRONG),
    gae_fault("backward: own chunk entered", "earlier < y", "earlier <= y", WRONG),
    gae_fault("factors not written", "factors[y][x] = factor;", "", "uninitialised"),
    gae_fault(
        "backward: offsets not written",
        "offsets[y][x] = offset;",
        "",
        "uninitialised",
        occurrence=1,
    ),
    gae_fault("moments of the first chunk only", "sum += sums[chunk][x];", "", WRONG),
    gae_fault(
        "writes to its input",
        "args.advantages[at] = carry;",
        "const_cast<scalar_t*>(args.rewards)[at] = carry;",
        "read-only",
        at_line=True,
    ),
    gae_fault(
        "terminated and truncated swapped",
        "const bool terminated = args.terminated[at] != 0;\n"
        "    const bool truncated = args.truncated[at] != 0;",
        "const bool terminated = args.truncated[at] != 0;\n"
        "    const bool truncated = args.terminated[at] != 0;",
        WRONG,
    ),
    gae_fault(
        "backward: terminated and truncated swapped",
        "const bool used = args.truncated[at] != 0 && args.terminated[at] == 0;",
        "const bool used = args.terminated[at] != 0 && args.truncated[at] == 0;",
        WRONG,
    ),
    gae_fault("carry through truncation", "!(terminated || truncated)", "!terminated", WRONG),
    gae_fault(
        "backward: carry through truncation",
        "args.terminated[at] != 0 || args.truncated[at] != 0 ?",
        "args.terminated[at] != 0 ?",
        WRONG,
    ),
    gae_fault(
        "truncation ends the value", "if (terminated) {", "if (terminated || truncated) {", WRONG
    ),
    gae_fault(
        "final values stay normalised",
        "args.final_values[at] * std + mean",
        "args.final_values[at]",
        WRONG,
    ),
    gae_fault("backward: boots twice", "|| elsewhere ?", "?", WRONG),
]


def test_gae_has_no_fault() -> None:
    assert run_gae(build(KERNELS / "gae.cu")) == (Report(), True)


@pytest.mark.parametrize("fault", GAE_FAULTS, ids=names(GAE_FAULTS))
def test_gae_fault_is_found(fault: Fault, tmp_path: Path) -> None:
    library = build(KERNELS / "gae.cu", edits={"gae.cuh": fault.mutation.text}, folder=tmp_path)
    check_is_found(fault, run_gae(library), "gae.cuh")


# --- pia_pool ---


def run_pia_pool(library: Library) -> Outcome:
    return run_cases(
        library,
        (
            pia_pool_cases.case((2, 131, 2, 35), 2, np.float64, masked=masked, backward=backward)
            for backward in (False, True)
            for masked in (False, True)
        ),
    )


def pool_fault(name: str, old: str, new: str, kind: str, *, occurrence: int = 0) -> Fault:
    return Fault(replace(PIA_POOL, old, new, name=name, occurrence=occurrence), kind, False)


PIA_POOL_FAULTS = [
    *(Fault(mutation, "race", False) for mutation in delete_each(PIA_POOL, "__syncthreads();")),
    pool_fault("half of a warp's sum", "kWarp / 2; lanes", "kWarp / 4; lanes", WRONG),
    pool_fault(
        "a product past D",
        "d < width; d += kWarp",
        "d < width + kWarp; d += kWarp",
        "out of bounds",
    ),
    pool_fault("totals not rescaled", "total * exp(before - top)", "total", WRONG),
    pool_fault(
        "warps not rescaled", "totals[other] * exp(tops[other] - top)", "totals[other]", WRONG
    ),
    pool_fault(
        "a warp left out",
        "int other = 0; other < kPoolWarps",
        "int other = 1; other < kPoolWarps",
        WRONG,
    ),
    pool_fault(
        "pooled: no bound", "if (warp == 0 && d < args.width)", "if (warp == 0)", "out of bounds"
    ),
    pool_fault(
        "masked inputs count",
        "logit == scalar_t(-INFINITY) ? scalar_t(0) : exp",
        "logit == scalar_t(-INFINITY) ? scalar_t(1) : exp",
        WRONG,
    ),
    pool_fault(
        "the mask of another set", "set / inner * length + t", "set * length + t", "out of bounds"
    ),
    pool_fault("a head's query for all", "row % args.heads * args.width", "0", WRONG),
    pool_fault(
        "weights not written", "a.weights[row * a.length + t] = weight;", "", "uninitialised"
    ),
    pool_fault("not along the mean", "- along)", ")", WRONG),
    pool_fault(
        "inputs: no bound",
        "if (element >= a.sets() * a.length * a.width) return;",
        "",
        "out of bounds",
    ),
    pool_fault(
        "sets confused",
        "at / a.inner / a.length * a.inner + at % a.inner",
        "at % a.inner * a.outer + at / a.inner / a.length",
        WRONG,
    ),
    pool_fault(
        "query: sets lost",
        "(part + 1) * a.sets() / kQueryParts",
        "part * a.sets() / kQueryParts",
        WRONG,
    ),
    pool_fault("query: no bound", "if (d < a.width) {", "{", "out of bounds"),
    pool_fault("combine: no bound", "if (element >= size) return;", "", "out of bounds"),
    pool_fault(
        "combine: a part left out",
        "int part = 0; part < kQueryParts",
        "int part = 63; part < kQueryParts",
        WRONG,
    ),
    pool_fault(
        "combine: uninitialised parts",
        "part < kQueryParts; ++part) sum",
        "part <= kQueryParts; ++part) sum",
        "out of bounds",
    ),
]


def test_pia_pool_has_no_fault() -> None:
    assert run_pia_pool(build(KERNELS / "pia_pool.cu")) == (Report(), True)


@pytest.mark.parametrize("fault", PIA_POOL_FAULTS, ids=names(PIA_POOL_FAULTS))
def test_pia_pool_fault_is_found(fault: Fault, tmp_path: Path) -> None:
    edits = {"pia_pool.cuh": fault.mutation.text}
    library = build(KERNELS / "pia_pool.cu", edits=edits, folder=tmp_path)
    check_is_found(fault, run_pia_pool(library), "pia_pool.cuh")


# --- pairwise_lse ---


def run_pairwise(library: Library) -> Outcome:
    kinds = ((False, False), (True, True), (False, True))
    return run_cases(
        library,
        (
            pairwise_cases.case(
                (1, 35, 34, 33), np.float64, gaussian=gaussian, filters=filters, backward=backward
            )
            for backward in (False, True)
            for gaussian, filters in kinds
        ),
    )


def pair_fault(name: str, old: str, new: str, kind: str, *, occurrence: int = 0) -> Fault:
    return Fault(replace(PAIRWISE, old, new, name=name, occurrence=occurrence), kind, False)


PAIRWISE_FAULTS = [
    *(Fault(mutation, "race", False) for mutation in delete_each(PAIRWISE, "__syncthreads();")),
    *(Fault(mutation, "race", False) for mutation in delete_each(PAIRWISE, "__syncwarp();")),
    pair_fault(
        "offsets: no bound", "if (at >= args.groups * args.keys) return;", "", "out of bounds"
    ),
    pair_fault(
        "sides: no bound of rows",
        "at < count && coordinate < width",
        "coordinate < width",
        "out of bounds",
    ),
    pair_fault(
        "sides: no bound of coordinates", "at < count && coordinate < width", "at < count", WRONG
    ),
    pair_fault(
        "a step of D too long",
        "args.width - d < kSide ? static_cast<int>(args.width - d) : kSide",
        "kSide + 1",
        WRONG,
    ),
    pair_fault(
        "rows of another warp",
        "const int row = threadIdx.y * kRowsPerWarp + r;",
        "const int row = threadIdx.y + r;",
        WRONG,
    ),
    pair_fault("not scaled", "kGaussian ? scalar_t(1) : args.scale", "scalar_t(1)", WRONG),
    pair_fault(
        "the positive among the negatives", "if (positive[row] == key_at) return false;", "", WRONG
    ),
    pair_fault(
        "labels ignored", "query_labels[row] == key_labels[group * keys + key_at]", "false", WRONG
    ),
    pair_fault("mask ignored", "mask == nullptr || mask[row * keys + key_at] != 0", "true", WRONG),
    pair_fault("not clipped", "if (clip <= 0) return score;", "return score;", WRONG),
    pair_fault("totals not rescaled", "total[r] * exp(before - top[r])", "total[r]", WRONG),
    pair_fault("lanes not rescaled", "total[r] * exp(top[r] - most)", "total[r]", WRONG),
    pair_fault("ties count as above", "score[r] > own[r] ? 1", "score[r] >= own[r] - 1 ? 1", WRONG),
    pair_fault(
        "keys past the last",
        "query < args.queries && key < args.keys &&",
        "query < args.queries &&",
        "out of bounds",
    ),
    pair_fault(
        "results: no bound",
        "if (threadIdx.x == 0 && query < args.queries)",
        "if (threadIdx.x == 0)",
        "out of bounds",
    ),
    pair_fault("gradient through a clipped score", "if (!within) return mean;", "", WRONG),
    pair_fault(
        "no gradient of the positive's share",
        "(within ? g.to_lse[at]",
        "(false ? g.to_lse[at]",
        WRONG,
    ),
    pair_fault(
        "queries: keys past the last",
        "left < kSide ? static_cast<int>(left) : kSide",
        "kSide",
        "out of bounds",
    ),
    pair_fault(
        "keys: queries past the last",
        "left < kSide ? static_cast<int>(left) : kSide",
        "kSide",
        "out of bounds",
        occurrence=1,
    ),
    pair_fault("queries: no bound", "if (first + row >= args.queries) break;", "", "out of bounds"),
    pair_fault("keys: no bound", "if (first + row >= args.keys) break;", "", "out of bounds"),
    pair_fault(
        "queries: sums begin anywhere",
        "column == 0 ? scalar_t(0) : g.grad_query[to]",
        "g.grad_query[to]",
        "uninitialised",
    ),
    pair_fault(
        "std: sums begin anywhere",
        "column == 0 ? scalar_t(0) : g.grad_std[to]",
        "g.grad_std[to]",
        "uninitialised",
    ),
    pair_fault(
        "std: no derivative of the constant", "error * error - scalar_t(1)", "error * error", WRONG
    ),
]


TIE_FAULTS = [
    pair_fault("tile: product rounded", "fma(tile.rows[row][i], column, score[r])",
               "score[r] + tile.rows[row][i] * column", WRONG),
    pair_fault("one: product rounded", "fma(args.scale * query[d], key[d], sum)",
               "sum + args.scale * query[d] * key[d]", WRONG),
    pair_fault("tile: square rounded", "fma(error, error, score[r])", "score[r] + error * error",
               WRONG),
    pair_fault("one: square rounded", "fma(error, error, sum)", "sum + error * error", WRONG),
    pair_fault("tile: offset added apart", "fma(score[r], scalar_t(-0.5) * args.scale, offset)",
               "score[r] * (scalar_t(-0.5) * args.scale) + offset", WRONG),
]  # fmt: skip


@pytest.mark.parametrize("fault", TIE_FAULTS, ids=names(TIE_FAULTS))
def test_a_score_rounded_in_two_ways_is_found(fault: Fault, tmp_path: Path) -> None:
    edits = {"pairwise_lse.cuh": fault.mutation.text}
    library = build(KERNELS / "pairwise_lse.cu", edits=edits, folder=tmp_path, contract=False)
    cases = [pairwise_cases.tied_case(np.float32, gaussian=gaussian) for gaussian in (False, True)]
    check_is_found(fault, run_cases(library, cases), "pairwise_lse.cuh")


def test_pairwise_has_no_fault() -> None:
    assert run_pairwise(build(KERNELS / "pairwise_lse.cu")) == (Report(), True)


@pytest.mark.parametrize("fault", PAIRWISE_FAULTS, ids=names(PAIRWISE_FAULTS))
def test_pairwise_fault_is_found(fault: Fault, tmp_path: Path) -> None:
    edits = {"pairwise_lse.cuh": fault.mutation.text}
    library = build(KERNELS / "pairwise_lse.cu", edits=edits, folder=tmp_path)
    check_is_found(fault, run_pairwise(library), "pairwise_lse.cuh")
