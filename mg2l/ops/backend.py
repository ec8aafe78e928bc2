"""Compiled operators, or their definitions: one choice for a whole run."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from mg2l import ops
from mg2l.ops import native, reference
from mg2l.ops.results import (
    GAE,
    Contrast,
    EncodedContext,
    GaussianSurrogate,
    PairwiseScores,
    Pooled,
    Surrogate,
    ValueLoss,
)


class Backend(NamedTuple):
    """Every operator, by its name."""

    gae: Callable[..., GAE]
    encode_context: Callable[..., EncodedContext]
    pia_pool: Callable[..., Pooled]
    pairwise_lse: Callable[..., PairwiseScores]
    stacked_mlp: Callable[..., Tensor]
    surrogate: Callable[..., Surrogate]
    gaussian_surrogate: Callable[..., GaussianSurrogate]
    value_loss: Callable[..., ValueLoss]
    contrast: Callable[..., Contrast]
    clip_norms: Callable[..., Tensor]


def _all(module: ModuleType) -> Backend:
    return Backend(**{name: getattr(module, name) for name in Backend._fields})


NATIVE = _all(ops)
"""Compiled operators; their definitions where nothing is compiled."""

TORCH = _all(reference)
"""Their definitions in plain torch."""


def choose(kernels: str, device: torch.device) -> Backend:
    """The backend named ``auto``, ``native`` or ``torch`` for a device.

    With ``auto`` an operator that has not been compiled for the device is computed by its
    definition, and a line says so (``import mg2l`` prints one if nothing is compiled).

    Raises:
        ValueError: ``native`` is asked for and an operator is not compiled for the device.
    """
    if kernels == "torch":
        return TORCH
    missing = [name for name in Backend._fields if device.type not in native.devices(name)]
    names = ", ".join(sorted(missing))
    if missing and kernels == "native":
        raise ValueError(
            f"kernels=native, but not compiled for {device.type}: {names}; install mg2l with "
            f"{'nvcc' if device.type == 'cuda' else 'a C++ compiler'}, or use kernels=auto"
        )
    if missing and native.is_built():
        print(f"not compiled for {device.type}, computed in plain torch: {names}", flush=True)
    return NATIVE._replace(**{name: getattr(TORCH, name) for name in missing})
