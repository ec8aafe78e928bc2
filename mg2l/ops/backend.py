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
    """Every operator, by its name, and how training multiplies.

    Where ``bfloat16`` is true, `stacked_mlp` and `encode_context` are called with it wherever
    gradients are wanted.
    """

    gae: Callable[..., GAE]
    encode_context: Callable[..., EncodedContext]
    pia_pool: Callable[..., Pooled]
    pairwise_lse: Callable[..., PairwiseScores]
    stacked_mlp: Callable[..., Tensor]
    film: Callable[..., Tensor]
    surrogate: Callable[..., Surrogate]
    gaussian_surrogate: Callable[..., GaussianSurrogate]
    value_loss: Callable[..., ValueLoss]
    contrast: Callable[..., Contrast]
    clip_norms: Callable[..., Tensor]
    gelu_mlp: Callable[..., Tensor]
    innovation_moments: Callable[..., Tensor]
    bfloat16: bool = False


OPERATORS = tuple(name for name in Backend._fields if name != "bfloat16")


def _all(module: ModuleType) -> Backend:
    return Backend(**{name: getattr(module, name) for name in OPERATORS})


NATIVE = _all(ops)
"""Compiled operators; their definitions where nothing is compiled."""

TORCH = _all(reference)
"""Their definitions in plain torch."""


def choose(kernels: str, device: torch.device, precision: str = "float32") -> Backend:
    """The backend named ``auto``, ``native`` or ``torch`` for a device.

    Args:
        kernels: its name.
        device: where it computes.
        precision: what it multiplies in training: ``float32``, or ``bfloat16``, which definitions
            in torch do anywhere, and compiled operators on CPUs with ``avx512_bf16``.

    With ``auto`` an operator that has not been compiled for the device is computed by its
    definition, and a line says so (``import mg2l`` prints one if nothing is compiled).

    Raises:
        ValueError: ``native`` is asked for and an operator is not compiled for the device, or
            ``bfloat16``, and it cannot be had.
    """
    bfloat16 = precision == "bfloat16"
    if kernels == "torch":
        return TORCH._replace(bfloat16=bfloat16)
    if bfloat16 and not (device.type == "cpu" and native.has_bfloat16()):
        raise ValueError(
            "precision=bfloat16 needs operators compiled by GCC, on a CPU with avx512_bf16; "
            "use precision=float32, or kernels=torch"
        )
    missing = [name for name in OPERATORS if device.type not in native.devices(name)]
    names = ", ".join(sorted(missing))
    if missing and kernels == "native":
        raise ValueError(
            f"kernels=native, but not compiled for {device.type}: {names}; install mg2l with "
            f"{'nvcc' if device.type == 'cuda' else 'a C++ compiler'}, or use kernels=auto"
        )
    if missing and native.is_built():
        print(f"not compiled for {device.type}, computed in plain torch: {names}", flush=True)
    chosen = NATIVE._replace(**{name: getattr(TORCH, name) for name in missing})
    return chosen._replace(bfloat16=bfloat16)
