"""Calls of the launchers of ``clip_norms``, and what must come out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cuda_host.cases import Array
from cuda_host.faults import Outcome
from cuda_host.layout import ask
from cuda_host.library import Finding, Library, Report, Schedule
from mg2l.ops import reference

LAUNCH = 64
"""Tensors of a launch."""


def drawn(groups: int, sizes: list[int], dtype: type[np.floating]) -> list[Array]:
    """Gradients ``[G, size]``, the norm of each group a third of that of the one before."""
    rng = np.random.default_rng(groups + sum(sizes))
    gradients = [rng.normal(size=(groups, size)) for size in sizes]
    scale = 3.0 ** -np.arange(groups)[:, None]
    return [(gradient * scale).astype(dtype) for gradient in gradients]


def run(
    library: Library, gradients: list[Array], limit: float, schedule: Schedule | None = None
) -> Outcome:
    """Clip gradients in place as the binding does: all launches sum before the first one scales."""
    groups, dtype = len(gradients[0]), gradients[0].dtype
    kind = "double" if dtype == np.float64 else "float"
    wide = [torch.tensor(x.astype(np.float64)) for x in gradients]
    wanted = reference.clip_norms(wide, limit, per_group=True)
    chunks = [gradients[i : i + LAUNCH] for i in range(0, len(gradients), LAUNCH)]
    blocks = [ask("clip_blocks", sum(x.shape[1] for x in chunk)) for chunk in chunks]
    partial, norms = np.empty((groups, sum(blocks))), np.empty(groups, dtype)
    findings: list[Finding] = []
    for launch in ("sum", "scale"):
        for index, chunk in enumerate(chunks):
            missing = LAUNCH - len(chunk)
            arguments: dict[str, Any] = {
                "groups": groups,
                "count": len(chunk),
                "blocks": blocks[index],
                "first": sum(blocks[:index]),
                "parts": sum(blocks),
                "limit": limit,
                "size": [*(x.shape[1] for x in chunk), *[0] * missing],
                "gradient": [*chunk, *[None] * missing],
                "partial": partial,
                "norms": norms,
            }
            # What launches before have written, too.
            held = ["gradient"]
            held += ["partial"] if launch == "scale" or index else []
            held += ["norms"] if launch == "scale" and index else []
            findings += library.call(
                f"mg2l_clip_norms_{launch}_{kind}",
                arguments,
                in_out=held,
                schedule=schedule or Schedule(),
            )
    tolerance = 1e-12 if dtype == np.float64 else 1e-6
    pairs = [(norms, wanted.numpy()), *zip(gradients, (x.numpy() for x in wide), strict=True)]
    right = all(np.allclose(a, b, rtol=tolerance, atol=0, equal_nan=True) for a, b in pairs)
    return Outcome(Report(findings), right)
