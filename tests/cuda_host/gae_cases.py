"""Inputs for the launchers of ``gae`` and what must come out, from its definition in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cuda_host.cases import Array, Case
from mg2l.ops import reference

GAMMA, GAE_LAMBDA = 0.97, 0.9


def forward_case(
    steps: int,
    columns: int,
    dtype: type[np.floating],
    *,
    extras: frozenset[str] = frozenset(),
    flags: str = "random",
) -> Case:
    """A call of ``gae``.

    Args:
        steps: T.
        columns: N.
        dtype: float32 or float64.
        extras: ``final`` to give ``final_values``, ``norm`` to give ``value_mean`` and
            ``value_std``.
        flags: Which steps end an episode: ``none``, ``random`` or ``all``.
    """
    rng = np.random.default_rng(1000 * steps + columns)
    floats = {
        "rewards": rng.normal(size=(steps, columns)).astype(dtype),
        "values": rng.normal(size=(steps + 1, columns)).astype(dtype),
    }
    if "final" in extras:
        floats["final_values"] = rng.normal(size=(steps, columns)).astype(dtype)
    if "norm" in extras:
        floats["value_mean"] = rng.normal(size=columns).astype(dtype)
        floats["value_std"] = rng.uniform(0.5, 2, size=columns).astype(dtype)
    ends = _flags(rng, (steps, columns), flags)

    def define(precision: torch.dtype) -> dict[str, Array]:
        tensors = {name: torch.from_numpy(array).to(precision) for name, array in floats.items()}
        result = reference.gae(
            tensors.pop("rewards"),
            tensors.pop("values"),
            torch.from_numpy(ends["terminated"]),
            torch.from_numpy(ends["truncated"]),
            GAMMA,
            GAE_LAMBDA,
            **tensors,
        )
        return {name: tensor.numpy() for name, tensor in result._asdict().items()}

    outputs: dict[str, Array] = {
        "advantages": np.empty((steps, columns), dtype),
        "returns": np.empty((steps, columns), dtype),
        "moments": np.empty((2, columns)),
    }
    case = _case("mg2l_gae", dtype, {**floats, **ends}, outputs, define)
    # Squares are summed about one of the advantages: they may be T + 1 times those about the mean.
    case.units["moments"] = 16 + steps
    return case


def backward_case(
    steps: int, columns: int, dtype: type[np.floating], *, final: bool, flags: str = "random"
) -> Case:
    """A call of ``gae_backward``; see :func:`forward_case`. ``final``: with ``final_values``.

    The gradients do not depend on rewards and values, so these are zeros, and autograd through the
    definition says what the gradients must be.
    """
    rng = np.random.default_rng(1000 * steps + columns)
    grads = {
        "grad_advantages": rng.normal(size=(steps, columns)).astype(dtype),
        "grad_returns": rng.normal(size=(steps, columns)).astype(dtype),
    }
    ends = _flags(rng, (steps, columns), flags)
    shapes = {"grad_rewards": (steps, columns), "grad_values": (steps + 1, columns)}
    if final:
        shapes["grad_final_values"] = (steps, columns)

    def define(precision: torch.dtype) -> dict[str, Array]:
        leaves: dict[str, Tensor] = {
            name: torch.zeros(shape, dtype=precision, requires_grad=True)
            for name, shape in shapes.items()
        }
        result = reference.gae(
            leaves["grad_rewards"],
            leaves["grad_values"],
            torch.from_numpy(ends["terminated"]),
            torch.from_numpy(ends["truncated"]),
            GAMMA,
            GAE_LAMBDA,
            final_values=leaves.get("grad_final_values"),
        )
        seeds = [torch.from_numpy(array).to(precision) for array in grads.values()]
        torch.autograd.backward(result[:2], seeds)
        return {name: leaf.grad.numpy() for name, leaf in leaves.items() if leaf.grad is not None}

    outputs: dict[str, Array] = {name: np.empty(shape, dtype) for name, shape in shapes.items()}
    return _case("mg2l_gae_backward", dtype, {**grads, **ends}, outputs, define)


def _flags(rng: np.random.Generator, shape: tuple[int, int], kind: str) -> dict[str, Array]:
    rate = {"none": 0.0, "random": 0.15, "all": 1.0}[kind]
    # With `all`, every step is over: some terminated, some truncated, some both.
    terminated = rng.random(shape) < (0.5 if kind == "all" else rate)
    truncated = rng.random(shape) < (0.5 if kind == "all" else rate)
    if kind == "all":
        truncated |= ~terminated
    return {"terminated": terminated, "truncated": truncated}


def _case(
    function: str,
    dtype: type[np.floating],
    arrays: dict[str, Array],
    outputs: dict[str, Array],
    define: Any,
) -> Case:
    steps, columns = arrays["terminated"].shape
    wide = dtype is np.float64
    sizes = {"steps": steps, "columns": columns, "gamma": GAMMA, "decay": GAMMA * GAE_LAMBDA}
    return Case(
        function=f"{function}_{'double' if wide else 'float'}",
        inputs={**sizes, **arrays},
        outputs=outputs,
        exact=define(torch.float64),
        plain=define(torch.float64 if wide else torch.float32),
        dtype=dtype,
    )
