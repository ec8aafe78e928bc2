"""Operators on tensors, compiled for CPU and CUDA.

Each is one public function here, one name in ``torch.ops.mg2l`` and one definition in plain torch
in :mod:`mg2l.ops.reference`. If nothing has been compiled, the definitions take their place: same
values and gradients, without argument checks.
"""

from mg2l.ops import native
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

native.load()

if native.is_built():
    from mg2l.ops.clip_norms import clip_norms
    from mg2l.ops.clipped import surrogate, value_loss
    from mg2l.ops.contrast import contrast
    from mg2l.ops.encode_context import encode_context
    from mg2l.ops.film import film
    from mg2l.ops.gae import gae
    from mg2l.ops.gaussian_surrogate import gaussian_surrogate
    from mg2l.ops.gelu_mlp import gelu_mlp
    from mg2l.ops.innovation_moments import innovation_moments
    from mg2l.ops.pairwise_lse import pairwise_lse
    from mg2l.ops.pia_pool import pia_pool
    from mg2l.ops.stacked_mlp import stacked_mlp
else:
    from mg2l.ops.reference import (
        clip_norms,
        contrast,
        encode_context,
        film,
        gae,
        gaussian_surrogate,
        gelu_mlp,
        innovation_moments,
        pairwise_lse,
        pia_pool,
        stacked_mlp,
        surrogate,
        value_loss,
    )

NAMES = (
    "gae",
    "encode_context",
    "pia_pool",
    "pairwise_lse",
    "stacked_mlp",
    "film",
    "surrogate",
    "gaussian_surrogate",
    "value_loss",
    "contrast",
    "clip_norms",
    "gelu_mlp",
    "innovation_moments",
)
"""Every operator, as it is called here and in the dispatcher."""

__all__ = [
    "GAE",
    "NAMES",
    "Contrast",
    "EncodedContext",
    "GaussianSurrogate",
    "PairwiseScores",
    "Pooled",
    "Surrogate",
    "ValueLoss",
    "clip_norms",
    "contrast",
    "encode_context",
    "film",
    "gae",
    "gaussian_surrogate",
    "gelu_mlp",
    "innovation_moments",
    "pairwise_lse",
    "pia_pool",
    "stacked_mlp",
    "surrogate",
    "value_loss",
]
