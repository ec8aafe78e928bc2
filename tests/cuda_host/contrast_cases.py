"""Inputs for the launcher of ``contrast``, and what must come out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cuda_host.cases import Array, Case
from mg2l.ops import reference


def case(shape: tuple[int, int, int, int], dtype: type[np.floating]) -> Case:
    """A call; ``shape`` is groups, rows, keys and width."""
    groups, rows, keys, width = shape
    rng = np.random.default_rng(sum(shape))
    raw = rng.normal(size=(groups, rows, 2 * width)).astype(dtype)
    some = (3 * rng.normal(size=(keys, width))).astype(dtype)
    positive = rng.integers(keys, size=rows)
    options = {"temperature": 0.5, "kl_weight": 0.25, "std_floor": 1e-3}

    def define(precision: torch.dtype) -> dict[str, Array]:
        x = torch.from_numpy(raw).to(precision).requires_grad_()
        # For each group keys of its own, whose gradients stay apart.
        own = [torch.from_numpy(some).to(precision).requires_grad_() for _ in range(groups)]
        own_positive = torch.from_numpy(positive)
        parts = [
            reference.contrast(x[g : g + 1], own[g], own_positive, **options) for g in range(groups)
        ]
        found = {
            name: torch.cat([getattr(part, name) for part in parts]) if parts else x.new_empty(0)
            for name in ("loss", "bound", "accuracy", "kl")
        }
        if groups:
            slopes = torch.autograd.grad(found["loss"].sum(), [x, *own])
            found |= {"raw_slope": slopes[0], "key_slope": torch.stack(slopes[1:])}
        else:
            found |= {"raw_slope": x, "key_slope": x.new_empty(0, keys, width)}
        return {name: value.detach().numpy() for name, value in found.items()}

    wide = dtype is np.float64
    exact = define(torch.float64)
    inputs: dict[str, Any] = {"raw": raw, "keys": some, "positive": positive, **options}
    inputs |= {"groups": groups, "rows": rows, "keys_count": keys, "width": width}
    outputs = {name: np.empty(x.shape, dtype) for name, x in exact.items()}
    outputs["factors"] = np.empty((groups, rows, keys), dtype)
    outputs["measured"] = np.empty((groups, 3, rows), dtype)
    return Case(
        function=f"mg2l_contrast_{'double' if wide else 'float'}",
        inputs=inputs,
        outputs=outputs,
        exact=exact,
        plain=exact if wide else define(torch.float32),
        dtype=dtype,
    )
