"""Inputs for the launcher of ``gaussian_surrogate``, and what must come out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cuda_host.cases import Array, Case
from mg2l.ops import reference

SUMS = ("loss", "surrogate", "entropy", "kl", "clip_fraction")


def case(
    shape: tuple[int, int, int],
    dtype: type[np.floating],
    *,
    shared: bool = False,
    weighted: bool = False,
    padded: bool = False,
) -> Case:
    """A call; ``shape`` is agents, rows and numbers of an action."""
    agents, rows, width = shape
    rng = np.random.default_rng(sum(shape))
    action, moved = rng.normal(size=(2, *shape))
    arrays: dict[str, Array] = {
        "mean": action + 0.3 * moved,
        "log_std": 0.3 * rng.normal(size=(width,) if shared else (agents, width)),
        "action": action,
        "before": 0.3 * rng.normal(size=(agents, rows)) - 0.9 * width,
        "advantages": rng.normal(size=(agents, rows)),
    }
    arrays = {name: x.astype(dtype) for name, x in arrays.items()}
    weights = rng.uniform(size=(agents, rows)).astype(dtype)
    own = np.arange(width) < np.arange(1, agents + 1)[:, None]
    options: dict[str, Any] = {"clip": 0.2, "entropy_coef": 0.03}

    def define(precision: torch.dtype) -> dict[str, Array]:
        given: dict[str, Any] = {n: torch.from_numpy(x).to(precision) for n, x in arrays.items()}
        # A deviation of each agent's own, whose gradients stay apart.
        given["log_std"] = given["log_std"].expand(agents, width).unsqueeze(1).clone()
        leaves = [given[name].requires_grad_() for name in ("mean", "log_std")]
        given["weights"] = 1 / max(rows, 1)
        if weighted:
            given["weights"] = torch.from_numpy(weights).to(precision)
        if padded:
            given["own"] = torch.from_numpy(own).unsqueeze(1)
        found = reference.gaussian_surrogate(**given, **options)._asdict()
        slopes = torch.autograd.grad(found["loss"].sum(), leaves)
        found |= {"mean_slope": slopes[0], "log_std_slope": slopes[1].squeeze(1)}
        return {name: x.detach().numpy() for name, x in found.items()}

    wide = dtype is np.float64
    exact = define(torch.float64)
    inputs: dict[str, Any] = {**arrays, **options, "shared": shared, "weight": 1 / max(rows, 1)}
    inputs |= {"agents": agents, "rows": rows, "width": width}
    if weighted:
        inputs["weights"] = weights
    if padded:
        inputs["own"] = own.astype(np.uint8)
    outputs = {name: np.empty(x.shape, dtype) for name, x in exact.items()}
    outputs["slope"] = np.empty((agents, rows), dtype)
    return Case(
        function=f"mg2l_gaussian_surrogate_{'double' if wide else 'float'}",
        inputs=inputs,
        outputs=outputs,
        exact=exact,
        plain=exact if wide else define(torch.float32),
        dtype=dtype,
    )
