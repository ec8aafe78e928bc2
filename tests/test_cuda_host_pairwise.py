"""The CUDA kernels of ``pairwise_lse``, executed on the CPU: values, schedules, faults."""

from __future__ import annotations

from itertools import chain, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from cuda_host import (
    KERNELS,
    Library,
    Report,
    Schedule,
    build,
    delete_each,
    pairwise_cases,
    replace,
)
from cuda_host.faults import WRONG, Fault, Outcome, check_case, check_is_found, names, run_cases
from cuda_host.layout import ask

pytestmark = pytest.mark.ci

FORWARD, BACKWARD = "pairwise_lse.cuh", "pairwise_lse_backward.cuh"
SOURCES = {name: (KERNELS / name).read_text() for name in (FORWARD, BACKWARD)}


@pytest.fixture(scope="module")
def pairwise() -> Library:
    return build(KERNELS / "pairwise_lse.cu")


# Around a tile of 32 x 32 and a step of 32 coordinates; and where blocks share queries (the most as
# well), keys, or both.
PAIR_SIZES = [
    (1, 1, 1, 1),
    (2, 5, 7, 3),
    (1, 33, 40, 35),
    (1, 32, 32, 32),
    (2, 31, 65, 2),
    (1, 3, 225, 3),
    (2, 2, 481, 2),
    (1, 1, 4097, 1),
    (1, 257, 2, 3),
    (1, 225, 256, 1),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("filters", [False, True], ids=["all", "filtered"])
@pytest.mark.parametrize("gaussian", [False, True], ids=["dot", "gaussian"])
@pytest.mark.parametrize("size", PAIR_SIZES, ids=str)
def test_pairwise_lse(
    pairwise: Library,
    size: tuple[int, int, int, int],
    gaussian: bool,
    filters: bool,
    backward: bool,
    dtype: type[np.floating],
) -> None:
    case = pairwise_cases.case(size, dtype, gaussian=gaussian, filters=filters, backward=backward)
    check_case(pairwise, case, Schedule(seed=sum(size), preempt=11))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("filters", [False, True], ids=["all", "filtered"])
@pytest.mark.parametrize("size", [size for size in PAIR_SIZES if size[0] == 1], ids=str)
def test_pairwise_lse_of_products(
    pairwise: Library,
    size: tuple[int, int, int, int],
    filters: bool,
    backward: bool,
    dtype: type[np.floating],
) -> None:
    case = pairwise_cases.case(size, dtype, filters=filters, backward=backward, products=True)
    check_case(pairwise, case, Schedule(seed=sum(size), preempt=11))


@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("size", [(1, 35, 34, 5), (1, 225, 230, 2)], ids=str)
def test_pairwise_lse_over_schedules(
    pairwise: Library, size: tuple[int, int, int, int], seed: int
) -> None:
    for backward, preempt in product([False, True], [0, 4]):
        case = pairwise_cases.case(size, np.float64, gaussian=True, filters=True, backward=backward)
        check_case(pairwise, case, Schedule(seed=seed, preempt=preempt))


@pytest.mark.parametrize(("queries", "keys"), [(64, 64), (4, 300), (300, 4)])
def test_the_order_of_blocks_changes_no_bit(pairwise: Library, queries: int, keys: int) -> None:
    for gaussian, backward in product([False, True], repeat=2):
        found = []
        for seed in range(3):
            case = pairwise_cases.case(
                (1, queries, keys, 3), np.float32, gaussian=gaussian, backward=backward
            )
            assert not pairwise.call(case.function, case.arguments, schedule=Schedule(seed=seed))
            found.append([case.outputs[name].tobytes() for name in case.exact])
        assert found[0] == found[1] == found[2]


def test_blocks_share_rows_where_these_are_few() -> None:
    """Never more than 32 to a tile of rows, and each with at least four tiles of columns."""
    for rows, columns, splits in (
        (32, 8192, 32),
        (1024, 1024, 8),
        (4096, 4096, 4),
        (8192, 8192, 2),
        (16384, 16384, 1),
        (160, 160, 1),
        (1, 256, 2),
    ):
        assert ask("pair_splits", 1, rows, columns) == splits, (rows, columns)
    assert ask("pair_splits", 0, 5, 8192) == 1
    assert ask("product_queries", 10**6, 1) == 65536
    assert ask("product_queries", 10**6, 10**9) == 1
    assert ask("product_queries", 8192, 8192) == 512


@pytest.mark.parametrize("contract", [False, True], ids=["rounded", "contracted"])
@pytest.mark.parametrize("gaussian", [False, True], ids=["dot", "gaussian"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_copy_of_the_positive_ties_with_it_on_cuda(
    contract: bool, gaussian: bool, dtype: type[np.floating]
) -> None:
    """Whether or not products are fused where the source leaves it to the compiler."""
    library = build(KERNELS / "pairwise_lse.cu", contract=contract)
    case = pairwise_cases.tied_case(dtype, gaussian=gaussian)
    assert not library.call(case.function, case.arguments)
    np.testing.assert_array_equal(case.outputs["rank"], 0)


def test_a_positive_that_is_no_key_gives_nan_and_reads_nothing(pairwise: Library) -> None:
    for key in (-1, 5, 10**9, -(10**15)):
        case = pairwise_cases.case((1, 4, 5, 3), np.float32)
        case.inputs["positive"][0, 1] = key
        assert not pairwise.call(case.function, case.arguments)
        assert np.isnan(case.outputs["lse"]).tolist() == [[False, True, False, False]]
        back = pairwise_cases.case((1, 4, 5, 3), np.float32, backward=True)
        back.inputs["positive"][0, 1] = key
        back.inputs["lse"][0, 1] = np.nan
        assert not pairwise.call(back.function, back.arguments)
        assert np.isnan(back.outputs["grad_query"][0, 1]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pairwise_lse_does_not_hide_what_is_not_finite(pairwise: Library, value: float) -> None:
    for name in ("key", "query"):
        for keys, filters in product((40, 300), (False, True)):
            case = pairwise_cases.case((2, 3, keys, 2), np.float32)
            case.inputs["clip"] = float(filters)
            case.inputs[name][0, 2] = value
            assert not pairwise.call(case.function, case.arguments)
            own = slice(None) if name == "key" else 2
            for result in ("lse", "lse_negatives"):
                assert np.isnan(case.outputs[result][0, own]).all()
                assert np.isfinite(case.outputs[result][1]).all()


def test_a_split_without_negatives_weighs_nothing(pairwise: Library) -> None:
    """The second one has none, and then neither of them."""
    for kept, backward in product((128, 0), (False, True)):
        case = pairwise_cases.case(
            (1, 3, 300, 3), np.float64, filters=True, backward=backward, kept=kept
        )
        check_case(pairwise, case, Schedule(seed=1))


# --- Faults ---


def run_pairwise(library: Library) -> Outcome:
    kinds = ((False, False), (True, True), (False, True))
    whole = (
        pairwise_cases.case(size, np.float64, gaussian=gaussian, filters=filters, backward=backward)
        for size in ((1, 35, 34, 33), (1, 2, 261, 2), (1, 261, 2, 2))
        for backward in (False, True)
        for gaussian, filters in kinds
    )
    products = (
        pairwise_cases.case(
            (1, 35, 261, 3), np.float64, filters=True, backward=backward, products=True
        )
        for backward in (False, True)
    )
    empty = pairwise_cases.case((1, 3, 261, 2), np.float64, filters=True, kept=128)
    return run_cases(library, chain(whole, products, [empty]))


class Edit(NamedTuple):
    """A fault and the file that it is in."""

    file: str
    fault: Fault


def edit(file: str, name: str, old: str, new: str, kind: str, *, occurrence: int = 0) -> Edit:
    mutation = replace(SOURCES[file], old, new, name=name, occurrence=occurrence)
    return Edit(file, Fault(mutation, kind, False))


def fault(name: str, old: str, new: str, kind: str, *, occurrence: int = 0) -> Edit:
    return edit(FORWARD, name, old, new, kind, occurrence=occurrence)


def backward_fault(name: str, old: str, new: str, kind: str, *, occurrence: int = 0) -> Edit:
    return edit(BACKWARD, name, old, new, kind, occurrence=occurrence)


FAULTS = [
    *(
        Edit(file, Fault(mutation, "race", False))
        for file, text in SOURCES.items()
        for statement in ("__syncthreads();", "__syncwarp();")
        for mutation in delete_each(text, statement)
    ),
    fault("offsets: no bound", "if (at >= in.groups * in.keys) return;", "", "out of bounds"),
    fault(
        "sides: no bound of rows",
        "at < count && coordinate < width",
        "coordinate < width",
        "out of bounds",
    ),
    fault(
        "sides: no bound of coordinates", "at < count && coordinate < width", "at < count", WRONG
    ),
    fault(
        "a step of D too long",
        "in.width - d < kSide ? static_cast<int>(in.width - d) : kSide",
        "kSide + 1",
        WRONG,
    ),
    fault(
        "rows of another warp",
        "const int row = threadIdx.y * kRowsPerWarp + r;",
        "const int row = threadIdx.y + r;",
        WRONG,
    ),
    fault("not scaled", "kGaussian ? scalar_t(1) : in.scale", "scalar_t(1)", WRONG),
    fault(
        "the positive among the negatives", "if (in.positive[row] == key) return false;", "", WRONG
    ),
    fault(
        "labels ignored",
        "in.query_labels[row] == in.key_labels[group * in.keys + key]",
        "false",
        WRONG,
    ),
    fault("mask ignored", "in.mask == nullptr || in.mask[row * in.keys + key] != 0", "true", WRONG),
    fault("not clipped", "if (in.clip <= 0) return score;", "return score;", WRONG),
    fault("sums not rescaled", "row.sum * exp(previous_max - row.max)", "row.sum", WRONG),
    fault("lanes not rescaled", "row.sum * exp(row.max - all.max)", "row.sum", WRONG),
    fault("lanes without a negative", "row.count > 0 ? row.sum *", "true ? row.sum *", WRONG),
    fault("ties count as above", "score > own ? 1", "score >= own - 1 ? 1", WRONG),
    fault("the positive of another row", "lane_own, r)", "lane_own, r ^ 1)", WRONG),
    fault(
        "a positive past the last query", "if (query >= in.queries) return 0;", "", "out of bounds"
    ),
    fault(
        "keys past the last",
        "query < in.queries && key < in.keys && is_negative",
        "query < in.queries && is_negative",
        "out of bounds",
    ),
    fault(
        "products: keys past the last",
        "const bool exists = query < in.queries && key < in.keys;",
        "const bool exists = query < in.queries;",
        "out of bounds",
    ),
    fault(
        "products: queries past the last",
        "const bool exists = query < in.queries && key < in.keys;",
        "const bool exists = key < in.keys;",
        "out of bounds",
    ),
    fault(
        "products: positive not scaled",
        "return in.scale * in.products[query * in.keys + key];",
        "return in.products[query * in.keys + key];",
        WRONG,
    ),
    fault(
        "results: no bound",
        "if (threadIdx.x == 0 && query < in.queries)",
        "if (threadIdx.x == 0)",
        "out of bounds",
    ),
    fault("every split all keys", "split * tiles / args.splits * kSide", "0", WRONG),
    fault(
        "a split writes results",
        "if (args.splits == 1) {",
        "if (args.splits != 0) {",
        "race",
    ),
    fault("a split in another's place", "at * args.splits + split;", "at * args.splits;", "race"),
    fault("each split writes the positive", "if (split == 0) args.", "args.", "race"),
    fault(
        "finish: no bound",
        "if (at >= args.in.groups * args.in.queries) return;",
        "",
        "out of bounds",
    ),
    fault("finish: splits past the last", "if (threadIdx.x < args.splits)", "", "out of bounds"),
    fault("finish: a split too few", "threadIdx.x < args.splits", "threadIdx.x + 1 < args.splits",
          WRONG),
    backward_fault("gradient through a clipped score", "if (!within) return mean;", "", WRONG),
    backward_fault(
        "no gradient through the positive",
        "(within ? of.grad_lse[at]",
        "(false ? of.grad_lse[at]",
        WRONG,
    ),
    backward_fault(
        "scores past the last",
        "if (query >= in.queries || key >= in.keys) return 0;",
        "",
        "out of bounds",
    ),
    backward_fault(
        "columns past the last",
        "left < kSide ? static_cast<int>(left) : kSide",
        "kSide",
        "out of bounds",
    ),
    backward_fault(
        "rows past the last", "const bool exists = row < rows;", "const bool exists = true;",
        "out of bounds",
    ),
    backward_fault("results: no bound", "if (row >= rows) break;", "", "out of bounds"),
    backward_fault(
        "sums begin anywhere", "exists && column > begin ? grad_row[to]", "exists ? grad_row[to]",
        "uninitialised",
    ),
    backward_fault(
        "sums of std begin anywhere",
        "exists && column > begin ? grad_std[to]",
        "exists ? grad_std[to]",
        "uninitialised",
    ),
    backward_fault(
        "std: no derivative of the constant", "error * error - scalar_t(1)", "error * error", WRONG
    ),
    backward_fault("gradients of another row", "[first_of_warp + r][j]", "[r][j]", "race"),
    backward_fault(
        "keys: the splits of queries",
        "const int64_t split = blockIdx.z - (keys_are_rows ? args.query_splits : 0);",
        "const int64_t split = blockIdx.z;",
        "out of bounds",
    ),
    backward_fault("parts in one place", "const int64_t part = split *", "const int64_t part = 0 *",
                   "race"),
    backward_fault("a part too few", "int64_t split = 0; split < splits",
                   "int64_t split = 1; split < splits", WRONG),
    backward_fault("combine: no bound", "at < 2 * keys && in.std", "in.std", "out of bounds"),
    backward_fault("products: keys past the last", "if (key >= in.keys) return;", "",
                   "out of bounds"),
    backward_fault("products: queries past the last", "if (query >= in.queries) break;", "",
                   "out of bounds"),
    backward_fault("products: not scaled", "in.scale * score_gradient(args.of, 0",
                   "score_gradient(args.of, 0", WRONG),
]  # fmt: skip


TIE_FAULTS = [
    fault("tile: product rounded", "fma(tile.rows[row][i], column, score[r])",
               "score[r] + tile.rows[row][i] * column", WRONG),
    fault("one: product rounded", "fma(in.scale * query[d], key[d], sum)",
               "sum + in.scale * query[d] * key[d]", WRONG),
    fault("tile: square rounded", "fma(error, error, score[r])", "score[r] + error * error",
               WRONG),
    fault("one: square rounded", "fma(error, error, sum)", "sum + error * error", WRONG),
    fault("tile: offset added separately", "fma(score[r], scalar_t(-0.5) * in.scale, offset)",
               "score[r] * (scalar_t(-0.5) * in.scale) + offset", WRONG),
]  # fmt: skip


def broken(edit: Edit, folder: Path, **options: bool) -> Library:
    edits = {edit.file: edit.fault.mutation.text}
    return build(KERNELS / "pairwise_lse.cu", edits=edits, folder=folder, **options)


def names_of(edits: list[Edit]) -> list[str]:
    return names([edit.fault for edit in edits])


@pytest.mark.parametrize("edit", TIE_FAULTS, ids=names_of(TIE_FAULTS))
def test_a_score_rounded_in_two_ways_is_found(edit: Edit, tmp_path: Path) -> None:
    library = broken(edit, tmp_path, contract=False)
    cases = [pairwise_cases.tied_case(np.float32, gaussian=gaussian) for gaussian in (False, True)]
    check_is_found(edit.fault, run_cases(library, cases), edit.file)


def test_pairwise_has_no_fault() -> None:
    assert run_pairwise(build(KERNELS / "pairwise_lse.cu")) == (Report(), True)


@pytest.mark.parametrize("edit", FAULTS, ids=names_of(FAULTS))
def test_pairwise_fault_is_found(edit: Edit, tmp_path: Path) -> None:
    check_is_found(edit.fault, run_pairwise(broken(edit, tmp_path)), edit.file)
