"""Inputs for the launchers of ``pia_pool`` and what must come out, from its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cuda_host.cases import Array, Case
from cuda_host.layout import ask
from mg2l.ops import reference


def case(
    shape: tuple[int, int, int, int],
    heads: int,
    dtype: type[np.floating],
    *,
    masked: bool = False,
    backward: bool = False,
) -> Case:
    """A call of ``pia_pool`` or ``pia_pool_backward``.

    Args:
        shape: of x, ``[outer, T, inner, D]``.
        heads: rows of the query.
        dtype: float32 or float64.
        masked: with a mask, under which the first set is empty.
        backward: the gradients.
    """
    outer, length, inner, width = shape
    rng = np.random.default_rng(sum(shape) + heads)
    x = rng.normal(size=shape).astype(dtype)
    # Logits of order 1, or rounding of the logits would show in the weights.
    query = (rng.normal(size=(heads, width)) / width**0.5).astype(dtype)
    grad = rng.normal(size=(outer, inner, heads, width)).astype(dtype)
    mask = rng.random((outer, length, inner)) < 0.7
    if mask.size:
        mask[0, :, 0] = False

    def define(precision: torch.dtype) -> dict[str, Array]:
        leaves = [torch.from_numpy(v).to(precision).requires_grad_() for v in (x, query)]
        given = torch.from_numpy(mask) if masked else None
        result = reference.pia_pool(*leaves, dim=1, mask=given, return_weights=True)
        assert result.weights is not None
        logits = torch.einsum("otid,hd->oiht", *leaves)
        if given is not None:
            logits = logits.masked_fill(~given.movedim(1, -1).unsqueeze(2), -torch.inf)
        found = {"pooled": result.pooled, "lse": logits.logsumexp(-1), "weights": result.weights}
        if backward:
            total = (result.pooled * torch.from_numpy(grad).to(precision)).sum()
            gradients = torch.autograd.grad(total, leaves)
            found |= dict(zip(("grad_x", "grad_query"), gradients, strict=True))
        return {name: tensor.detach().numpy() for name, tensor in found.items()}

    wide = dtype is np.float64
    exact = define(torch.float64)
    plain = exact if wide else define(torch.float32)
    sizes = dict(zip(("outer", "length", "inner", "width"), shape, strict=True))
    inputs: dict[str, Any] = {**sizes, "heads": heads, "x": x, "query": query}
    if masked:
        inputs["mask"] = mask
    rows = (outer, inner, heads)
    names = ["pooled", "lse", "weights"]
    outputs: dict[str, Array] = {
        "pooled": np.empty((*rows, width), dtype),
        "lse": np.empty(rows, dtype),
        "weights": np.empty((*rows, length), dtype),
    }
    count = outer * inner * heads
    splits = ask("pool_splits", count, length)
    if splits > 1:
        outputs["partial"] = np.empty((count * splits, ask("pool_partial_width", width)), dtype)
    if backward:
        inputs |= {"grad": grad, **{k: exact[k].astype(dtype) for k in ("pooled", "lse")}}
        names = ["grad_x", "grad_query"]
        outputs = {
            "weights": np.empty((*rows, length), dtype),
            "grad_logits": np.empty((*rows, length), dtype),
            "partial": np.empty((ask("query_parts"), heads, width), dtype),
            "grad_x": np.empty(shape, dtype),
            "grad_query": np.empty((heads, width), dtype),
        }
    return Case(
        function=f"mg2l_pia_pool{'_backward' if backward else ''}_{'double' if wide else 'float'}",
        inputs=inputs,
        outputs=outputs,
        exact={name: exact[name] for name in names},
        plain={name: plain[name] for name in names},
        dtype=dtype,
    )
