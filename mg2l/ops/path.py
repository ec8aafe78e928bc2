"""Compiled operators, or their definitions: one choice for a whole run."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from mg2l.ops import reference
from mg2l.ops.encode_context import encode_context
from mg2l.ops.gae import GAE, gae
from mg2l.ops.pia_pool import pia_pool
from mg2l.ops.results import EncodedContext, Pooled


class Path(NamedTuple):
    """Every operator, by its name."""

    gae: Callable[..., GAE]
    encode_context: Callable[..., EncodedContext]
    pia_pool: Callable[..., Pooled]


NATIVE = Path(gae, encode_context, pia_pool)
"""Compiled operators."""

TORCH = Path(reference.gae, reference.encode_context, reference.pia_pool)
"""Their definitions in plain torch."""


def choose(kernels: str, device: torch.device) -> Path:
    """The path named ``native`` or ``torch`` for a device.

    Raises:
        RuntimeError: ``native``, but an operator has not been compiled for the device.
    """
    if kernels == "torch":
        return TORCH
    key = device.type.upper()
    for name in Path._fields:
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"mg2l::{name}", key):
            raise RuntimeError(
                f"kernels=native, but the operator {name} is not compiled for {device.type}; "
                "see python -m mg2l.info, or use kernels=torch"
            )
    return NATIVE
