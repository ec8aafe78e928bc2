"""Inputs for the launchers of ``innovation_moments``, and what must come out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cuda_host.cases import Array, Case
from mg2l.ops import reference


def case(
    shape: tuple[int, int, int, int],
    dtype: type[np.floating],
    *,
    backward: bool = False,
    repeats: bool = False,
) -> Case:
    """A call of either pass; ``shape`` is contexts, transitions, agents and width."""
    contexts, steps, agents, width = shape
    rng = np.random.default_rng(sum(shape))
    features, observation = 5, 2
    kept = max(1, steps // 3) if repeats else steps  # rows of each context
    rows = contexts * kept
    series = rng.normal(size=(contexts, kept, agents, width)).astype(dtype)
    transitions = rng.normal(size=(contexts, kept, agents, features)).astype(dtype)
    # Also the first of a context begins where the last one of another ended.
    behind = transitions.reshape(rows, agents, features)
    behind[1:, :, :observation] = behind[:-1, :, -observation:]
    behind[2::3, agents - 1 :, observation - 1] += 1
    places = np.arange(contexts)[:, None] * kept + np.sort(
        rng.integers(max(kept, 1), size=(contexts, steps)), 1
    )
    grad = rng.normal(size=(contexts, 3, agents, width, width))
    coefficients = np.array([0.6, 1.1, -0.3], dtype)
    flat = [series, behind.reshape(transitions.shape)]
    if repeats:
        flat = [series.reshape(rows, agents, width), behind]

    def define() -> dict[str, Array]:
        x, given = (torch.from_numpy(part) for part in flat)
        leaves = [y.double().requires_grad_() for y in (x, torch.from_numpy(coefficients))]
        moments = reference.innovation_moments(
            leaves[0],
            given.double(),
            leaves[1],
            observation,
            places=torch.from_numpy(places) if repeats else None,
        )
        if not backward:
            return {"moments": moments.detach().numpy()}
        to = torch.from_numpy(grad)
        (to_series,) = torch.autograd.grad((moments * to).sum(), leaves[:1], retain_graph=True)
        # Of each context and agent alone.
        parts = (moments * to).sum((1, 3, 4)).flatten()
        each = [torch.autograd.grad(part, leaves[1], retain_graph=True)[0] for part in parts]
        to_coefficients = torch.stack(each) if each else parts.new_zeros(0, 3)
        return {
            "grad_series": to_series.numpy(),
            "grad_coefficients": to_coefficients.view(contexts, agents, 3).numpy(),
        }

    exact = define()
    inputs: dict[str, Any] = {"contexts": contexts, "steps": steps, "agents": agents}
    inputs |= {"width": width, "features": features, "observation": observation, "rows": rows}
    inputs |= {"series": flat[0], "transitions": flat[1], "coefficients": coefficients}
    if repeats:
        inputs["places"] = places
    if backward:
        inputs["grad"] = grad
    name = "innovation_moments_backward" if backward else "innovation_moments"
    return Case(
        function=f"mg2l_{name}_{'double' if dtype is np.float64 else 'float'}",
        inputs=inputs,
        outputs={key: np.empty(x.shape, np.float64) for key, x in exact.items()},
        exact=exact,
        plain=exact,
        dtype=np.float64,  # of the sums
    )
