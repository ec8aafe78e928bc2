"""Inputs for the launchers of ``gelu_mlp``, what lies between products, and what must come out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from cuda_host.cases import Array, Case


def forward_case(
    rows: int, units: int, dtype: type[np.floating], *, activate: bool = True, keep: bool = True
) -> Case:
    """Bias and activation of a layer."""
    rng = np.random.default_rng(rows + units)
    product, bias = (rng.normal(size=shape).astype(dtype) for shape in ((rows, units), units))

    def define(precision: torch.dtype) -> dict[str, Array]:
        h = torch.from_numpy(product).to(precision) + torch.from_numpy(bias).to(precision)
        found = {"features": F.gelu(h) if activate else h}
        if keep:
            found["kept"] = h
        return {name: x.numpy() for name, x in found.items()}

    inputs = {"product": product, "bias": bias, "activate": activate}
    return _case("gelu_mlp", rows, units, dtype, inputs, define)


def backward_case(rows: int, units: int, dtype: type[np.floating]) -> Case:
    """Features, and gradients of what was activated."""
    rng = np.random.default_rng(rows + units)
    grad, kept = (rng.normal(size=(rows, units)).astype(dtype) for _ in range(2))

    def define(precision: torch.dtype) -> dict[str, Array]:
        h = torch.from_numpy(kept).to(precision).requires_grad_()
        features = F.gelu(h)
        (to,) = torch.autograd.grad(features, h, torch.from_numpy(grad).to(precision))
        return {"features": features.detach().numpy(), "grad_product": to.numpy()}

    return _case("gelu_mlp_backward", rows, units, dtype, {"grad": grad, "kept": kept}, define)


def _case(
    name: str,
    rows: int,
    units: int,
    dtype: type[np.floating],
    inputs: dict[str, Any],
    define: Any,
) -> Case:
    wide = dtype is np.float64
    exact = define(torch.float64)
    return Case(
        function=f"mg2l_{name}_{'double' if wide else 'float'}",
        inputs={"rows": rows, "units": units, **inputs},
        outputs={key: np.empty(x.shape, dtype) for key, x in exact.items()},
        exact=exact,
        plain=exact if wide else define(torch.float32),
        dtype=dtype,
    )
