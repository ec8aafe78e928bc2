"""Clipping of gradients by their norm, in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mg2l.ops.once import below_autograd


def clip_norms(gradients: Sequence[Tensor], limit: float, *, per_group: bool = False) -> Tensor:
    """Scale gradients, in place, to a norm of at most ``limit``.

    All together by ``min(1, limit / (norm + 1e-6))``, as ``torch.nn.utils.clip_grad_norm_`` does,
    or those of each group on their own.

    Args:
        gradients: at least one, float32 or float64, contiguous, of one dtype and device; with
            ``per_group`` each ``[G, *]``. They need no gradients themselves.
        limit: positive; infinity leaves all gradients as they are, unless they are not finite.
        per_group: clip those of each of G groups by their own norm.

    Returns:
        ``[1]``, or ``[G]`` with ``per_group``: the norms before. Where one is NaN, so are the
        gradients that it scales.

    Raises:
        RuntimeError: There are no gradients, or their shapes, dtypes or devices do not fit, or one
            is not contiguous, or ``limit`` is not positive.

    Example:
        >>> gradient = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
        >>> clip_norms([gradient], 1.0, per_group=True)
        tensor([5.0000, 0.5000])
        >>> gradient
        tensor([[0.6000, 0.8000],
                [0.3000, 0.4000]])
    """
    if not gradients:  # by which the dispatcher would find the kernel
        raise RuntimeError("clip_norms: gradients must not be empty")
    op = torch.ops.mg2l.clip_norms.default
    norms: Tensor = below_autograd(op, [*gradients], limit, per_group)
    return norms


@torch.library.register_fake("mg2l::clip_norms")
def _fake(gradients: Sequence[Tensor], limit: float, per_group: bool) -> Tensor:
    return gradients[0].new_empty(len(gradients[0]) if per_group else 1)
