"""Inputs for the launchers of ``stacked_mlp`` and what must come out, from its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cuda_host.cases import Array, Case

EPSILON = 1e-5


def case(
    shape: tuple[int, int, int],
    dtype: type[np.floating],
    *,
    relu: bool = True,
    normalise: bool = True,
    moments: bool = True,
    backward: bool = False,
) -> Case:
    """A layer after its product, or its backward pass.

    Args:
        shape: ``[G, rows, units]``.
        dtype: float32 or float64.
        relu: the activation, else tanh.
        normalise: else the layer is linear alone; forward only.
        moments: whether they are wanted.
        backward: the gradients.
    """
    rng = np.random.default_rng(sum(shape))
    product = rng.normal(size=shape).astype(dtype)
    bias = rng.normal(size=(shape[0], shape[2])).astype(dtype)
    grad = rng.normal(size=shape).astype(dtype)

    def define(precision: torch.dtype) -> dict[str, Array]:
        z = torch.from_numpy(product).to(precision).requires_grad_()
        raw = z + torch.from_numpy(bias).to(precision).unsqueeze(1)
        if not normalise:
            return {"features": raw.detach().numpy()}
        h = F.relu(raw) if relu else torch.tanh(raw)
        features = F.layer_norm(h, h.shape[-1:], eps=EPSILON)
        (to,) = torch.autograd.grad(features, z, torch.from_numpy(grad).to(precision))
        inverse = torch.rsqrt(h.var(-1, correction=0) + EPSILON)
        found: dict[str, Tensor] = {
            "features": features,
            "activations": h,
            "moments": torch.stack([h.mean(-1), inverse], -1),
            "grad_product": to,
        }
        return {name: tensor.detach().numpy() for name, tensor in found.items()}

    wide = dtype is np.float64
    exact = define(torch.float64)
    plain = exact if wide else define(torch.float32)
    inputs: dict[str, Any] = dict(zip(("groups", "rows", "units"), shape, strict=True))
    inputs["relu"] = relu
    if backward:
        # As the forward kernel makes them: which activations were 0 is read off the features.
        known = exact["moments"].astype(dtype)
        features = (exact["activations"].astype(dtype) - known[..., :1]) * known[..., 1:]
        inputs |= {"grad": grad, "features": features, "moments": known}
        outputs = {"grad_product": np.empty(shape, dtype)}
    else:
        inputs |= {"normalise": normalise, "epsilon": EPSILON, "product": product, "bias": bias}
        outputs = {"features": np.empty(shape, dtype)}
        if moments and normalise:
            outputs["moments"] = np.empty((*shape[:2], 2), dtype)
    kind = "double" if wide else "float"
    return Case(
        function=f"mg2l_stacked_mlp{'_backward' if backward else ''}_{kind}",
        inputs=inputs,
        outputs=outputs,
        exact={name: exact[name] for name in outputs},
        plain={name: plain[name] for name in outputs},
        dtype=dtype,
    )
