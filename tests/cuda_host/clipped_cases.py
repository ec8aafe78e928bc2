"""Inputs for the launchers of ``surrogate`` and ``value_loss``, and what must come out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from cuda_host.cases import Array, Case
from mg2l.ops import reference


def case(
    operator: str,
    shape: tuple[int, int],
    dtype: type[np.floating],
    *,
    weighted: bool = False,
    clip: float | None = 0.2,
    delta: float | None = 0.5,
) -> Case:
    """A call of ``surrogate`` or ``value_loss``; the arguments are theirs, ``shape`` [A, rows]."""
    rng = np.random.default_rng(sum(shape))
    arrays = [(rng.normal(size=shape) * scale).astype(dtype) for scale in (0.4, 0.4, 1.0)]
    weights = rng.uniform(size=shape).astype(dtype)
    surrogate = operator == "surrogate"

    def define(precision: torch.dtype) -> dict[str, Array]:
        first, second, third = (torch.from_numpy(x).to(precision) for x in arrays)
        first.requires_grad_()
        w: Any = torch.from_numpy(weights).to(precision) if weighted else 1 / max(shape[1], 1)
        if surrogate:
            assert clip is not None
            found = reference.surrogate(first, second, third, w, clip)._asdict()
        else:
            options = {"clip": clip, "delta": delta}
            found = reference.value_loss(first, second, third, w, **options)._asdict()
        found["slope"] = torch.autograd.grad(found["loss"].sum(), first)[0]
        return {name: x.detach().numpy() for name, x in found.items()}

    wide = dtype is np.float64
    exact = define(torch.float64)
    inputs: dict[str, Any] = dict(zip(("first", "second", "third"), arrays, strict=True))
    inputs |= {"agents": shape[0], "rows": shape[1], "weight": 1 / max(shape[1], 1)}
    inputs |= {
        "clip": math.inf if clip is None else clip,
        "delta": math.inf if delta is None or surrogate else delta,
    }
    if weighted:
        inputs["weights"] = weights
    return Case(
        function=f"mg2l_{operator}_{'double' if wide else 'float'}",
        inputs=inputs,
        outputs={name: np.empty(x.shape, dtype) for name, x in exact.items()},
        exact=exact,
        plain=exact if wide else define(torch.float32),
        dtype=dtype,
    )
