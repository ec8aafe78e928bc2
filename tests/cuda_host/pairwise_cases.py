"""Inputs for the launchers of ``pairwise_lse`` and what must come out, from its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cuda_host.cases import Array, Case
from cuda_host.layout import ask
from mg2l.ops import reference

RESULTS = ("lse", "lse_negatives", "mean", "positive_score", "negatives", "rank")


def case(
    size: tuple[int, int, int, int],
    dtype: type[np.floating],
    *,
    gaussian: bool = False,
    filters: bool = False,
    backward: bool = False,
    products: bool = False,
    kept: int | None = None,
) -> Case:
    """A call of ``pairwise_lse`` or ``pairwise_lse_backward``.

    Args:
        size: groups, queries, keys, width.
        dtype: float32 or float64.
        gaussian: densities instead of products.
        filters: with labels, a mask under which the first query has no negatives, and clipping.
        backward: the gradients.
        products: of queries and keys are given, those of the one group; backward, it is their
            gradients that must come out.
        kept: with filters: no key from this one on is a negative.
    """
    groups, queries, keys, width = size
    scale = 0.9 / width**0.5  # scores of order 1, or their rounding would show in the weights
    rng = np.random.default_rng(sum(size))
    floats: dict[str, Array] = {
        "query": rng.normal(size=(groups, queries, width)).astype(dtype),
        "key": rng.normal(size=(groups, keys, width)).astype(dtype),
    }
    leaf_names = ["query", "key", *(["std"] if gaussian else [])]
    if products:
        leaf_names = ["products"]
        floats["products"] = (floats["query"] @ floats["key"].transpose(0, 2, 1))[0]
    if gaussian:
        floats["std"] = rng.uniform(0.7, 2, size=(groups, keys, width)).astype(dtype)
    integers: dict[str, Array] = {"positive": rng.integers(keys, size=(groups, queries))}
    if filters:
        integers["query_labels"] = rng.integers(3, size=(groups, queries))
        integers["key_labels"] = rng.integers(3, size=(groups, keys))
        integers["mask"] = rng.random((groups, queries, keys)) < 0.6
        integers["mask"][:, 0] = False
        integers["mask"][:, :, kept:] &= kept is None
    cotangents = {
        name: rng.normal(size=(groups, queries)).astype(dtype)
        for name in ("grad_lse", "grad_lse_negatives", "grad_mean", "grad_positive")
    }
    if filters:
        cotangents["grad_lse_negatives"][:, 0] = 0  # of minus infinity

    def define(precision: torch.dtype) -> dict[str, Array]:
        leaves = {k: torch.from_numpy(floats[k]).to(precision).requires_grad_() for k in leaf_names}
        given = {name: torch.from_numpy(array) for name, array in integers.items()}
        result = reference.pairwise_lse(
            leaves["products"].unsqueeze(0) if products else leaves["query"],
            torch.eye(keys, dtype=precision).unsqueeze(0) if products else leaves["key"],
            given.pop("positive"),
            scale=scale,
            std=leaves.get("std"),
            clip=1.0 if filters else None,
            **given,
        )
        found = dict(zip(RESULTS, result, strict=True))
        if backward:
            total = sum(
                (
                    torch.where(value.isfinite(), value, 0) * torch.from_numpy(seed).to(precision)
                ).sum()
                for value, seed in zip(result[:4], cotangents.values(), strict=True)
            )
            assert isinstance(total, torch.Tensor)
            gradients = torch.autograd.grad(total, list(leaves.values()))
            found |= {f"grad_{k}": v for k, v in zip(leaves, gradients, strict=True)}
        return {name: tensor.detach().numpy() for name, tensor in found.items()}

    wide = dtype is np.float64
    exact = define(torch.float64)
    plain = exact if wide else define(torch.float32)
    sizes = dict(zip(("groups", "queries", "keys", "width"), size, strict=True))
    inputs: dict[str, Any] = {**sizes, "scale": scale, "clip": 1.0 if filters else 0.0}
    inputs |= floats | integers
    outputs: dict[str, Array] = {}
    if gaussian:
        outputs["offsets"] = np.empty((groups, keys), dtype)
    if backward:
        inputs |= {k: exact[k].astype(dtype) for k in ("lse", "lse_negatives")}
        inputs |= {"negatives": exact["negatives"], **cotangents}
        names = [f"grad_{name}" for name in leaf_names]
        outputs |= {f"grad_{name}": np.empty_like(floats[name]) for name in leaf_names}
        if not products:
            query_splits = ask("pair_splits", groups, queries, keys)
            key_splits = ask("pair_splits", groups, keys, queries)
            inputs |= {"query_splits": query_splits, "key_splits": key_splits}
            for name in leaf_names:
                splits = query_splits if name == "query" else key_splits
                if splits > 1:
                    outputs[f"partial_{name}"] = np.empty((splits, *floats[name].shape), dtype)
    else:
        names = list(RESULTS)
        splits = inputs["splits"] = ask("pair_splits", groups, queries, keys)
        if splits > 1:
            outputs["partial"] = np.empty((groups * queries, splits, 3), dtype)
            outputs["partial_counts"] = np.empty((groups * queries, splits, 2), np.int64)
        kinds = dict.fromkeys(("negatives", "rank"), np.int64)
        outputs |= {k: np.empty((groups, queries), kinds.get(k, dtype)) for k in RESULTS}
    kind = "" if not backward else "_products" if products else "_backward"
    suffix = f"{kind}_{'double' if wide else 'float'}"
    return Case(
        function=f"mg2l_pairwise_lse{suffix}",
        inputs=inputs,
        outputs=outputs,
        exact={name: exact[name] for name in names},
        plain={name: plain[name] for name in names},
        dtype=dtype,
    )


def tied_case(dtype: type[np.floating], *, gaussian: bool = False) -> Case:
    """A forward call in which every key is a copy of the positive: nothing ranks above it."""
    result = case((1, 40, 33, 33), dtype, gaussian=gaussian)
    for name in {"key", "std"} & result.inputs.keys():
        result.inputs[name][:] = result.inputs[name][:, :1]
    if gaussian:  # narrow ones: the constant is small, and does not hide how the sum was rounded
        result.inputs["std"] *= dtype(0.3)
    result.exact = result.plain = {"rank": np.zeros((1, 40), np.int64)}
    return result
