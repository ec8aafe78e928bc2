"""Networks of checkpoints that earlier versions wrote, converted to those of this one."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mg2l.config.algorithms import algorithms

FORMATS = (1, 2)
"""Formats of checkpoints that can be read."""

_MISFITS = (AttributeError, LookupError, RuntimeError, TypeError)
"""What converting something else than networks raises."""


def convert(state: dict[str, Any], written: int, algorithm: Any) -> dict[str, Any]:
    """A state with its networks as they are named and saved now; they compute what they did.

    - The ``gru`` of a recurrent body is its ``memory``.
    - Format 1 kept means of numbers and of their squares, not variances and sums of squared
      deviations. Variances have the lower bounds that they were read with.
    - Algorithms convert their own (`mg2l.algorithms.base.TaskInference.upgrade`).

    Args:
        state: content of a checkpoint; its networks are tensors by name, by module.
        written: format of the checkpoint.
        algorithm: ``algo_name`` of its run.

    Raises:
        ValueError: its networks are not those of such a checkpoint.
    """
    networks = state.get("networks")
    if not isinstance(networks, dict):
        return state
    try:
        networks = {module: _renamed(tensors) for module, tensors in networks.items()}
        if written == 1:
            networks = {module: _moments(tensors) for module, tensors in networks.items()}
        if "inference" in networks and algorithms.knows(str(algorithm)):
            own = algorithms.get(str(algorithm)).inference.upgrade(networks["inference"], written)
            networks = {**networks, "inference": own}
    except _MISFITS as error:
        raise ValueError(f"networks of format {written} are damaged: {error}") from error
    return {**state, "networks": networks}


def _renamed(tensors: Any) -> Any:
    if not isinstance(tensors, dict):
        return tensors
    return {str(name).replace("body.gru.", "body.memory."): x for name, x in tensors.items()}


def _moments(old: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a module of format 1."""
    new = dict(old)
    for name in old:
        group, _, leaf = name.rpartition(".")
        if leaf == "second":  # exponential moments of value targets, times their weight
            weight = old[f"{group}.weight"].double()
            mean = new.pop(f"{group}.first").double() / weight.clamp(min=1e-8)
            variance = new.pop(name).double() / weight.clamp(min=1e-8) - mean.square()
            moments = {"weight": weight, "mean": mean, "variance": variance.clamp(min=1e-2)}
        elif leaf == "square":  # moments of all rows
            count, mean = old[f"{group}.count"].view(1), old[f"{group}.mean"]
            variance = (new.pop(name) - mean.square()).clamp(min=1e-6)
            moments = {"count": count, "mean": mean, "deviation": count * variance}
        else:
            continue
        new |= {f"{group}.{leaf}": moment for leaf, moment in moments.items()}
    return new
