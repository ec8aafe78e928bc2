"""Inputs for the launchers of ``film``, and what must come out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cuda_host.cases import Array, Case
from mg2l.ops import reference


def case(
    shape: tuple[int, int, int, int], dtype: type[np.floating], *, backward: bool = False
) -> Case:
    """A call; ``shape`` is groups, rows, latents (0: one for each row) and width."""
    groups, rows, latents, width = shape
    rng = np.random.default_rng(sum(shape))
    count = latents or rows
    arrays: dict[str, Array] = {
        "features": rng.normal(size=(groups, rows, width)).astype(dtype),
        "generated": rng.normal(size=(groups, count, 2 * width)).astype(dtype),
        "grad": rng.normal(size=(groups, rows, width)).astype(dtype),
    }
    index = rng.integers(latents, size=rows) if latents else None

    def define(precision: torch.dtype) -> dict[str, Array]:
        given = {name: torch.from_numpy(x).to(precision) for name, x in arrays.items()}
        leaves = given["features"].requires_grad_(), given["generated"].requires_grad_()
        y = reference.film(*leaves, None if index is None else torch.from_numpy(index))
        if not backward:
            return {"y": y.detach().numpy()}
        found = torch.autograd.grad(y, leaves, given["grad"])
        names = ("grad_features", "grad_generated")
        return {name: x.numpy() for name, x in zip(names, found, strict=True)}

    wide = dtype is np.float64
    exact = define(torch.float64)
    inputs: dict[str, Any] = {**arrays, "groups": groups, "rows": rows, "width": width}
    inputs |= {"latents": count, "shared": latents > 0}
    if not backward:
        del inputs["grad"]
    if index is not None:
        inputs["index"] = index
    return Case(
        function=f"mg2l_film{'_backward' if backward else ''}_{'double' if wide else 'float'}",
        inputs=inputs,
        outputs={name: np.empty(x.shape, dtype) for name, x in exact.items()},
        exact=exact,
        plain=exact if wide else define(torch.float32),
        dtype=dtype,
    )
