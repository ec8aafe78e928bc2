"""Compiled operators, or their definitions: one choice for a whole run."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from mg2l.ops import reference
from mg2l.ops.encode_context import encode_context
from mg2l.ops.gae import GAE, gae
from mg2l.ops.pairwise_lse import pairwise_lse
from mg2l.ops.pia_pool import pia_pool
from mg2l.ops.results import EncodedContext, PairwiseScores, Pooled


class Path(NamedTuple):
    """Every operator, by its name."""

    gae: Callable[..., GAE]
    encode_context: Callable[..., EncodedContext]
    pia_pool: Callable[..., Pooled]
    pairwise_lse: Callable[..., PairwiseScores]


NATIVE = Path(gae, encode_context, pia_pool, pairwise_lse)
"""Compiled operators."""

TORCH = Path(reference.gae, reference.encode_context, reference.pia_pool, reference.pairwise_lse)
"""Their definitions in plain torch."""


def choose(kernels: str, device: torch.device) -> Path:
    """The path named ``native`` or ``torch`` for a device.

    An operator that has not been compiled for the device is computed by its definition, and a line
    says so.
    """
    if kernels == "torch":
        return TORCH
    key = device.type.upper()
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    missing = {name for name in Path._fields if not has(f"mg2l::{name}", key)}
    if missing:
        names = ", ".join(sorted(missing))
        print(f"not compiled for {device.type}, computed in plain torch: {names}", flush=True)
    return NATIVE._replace(**{name: getattr(TORCH, name) for name in missing})
