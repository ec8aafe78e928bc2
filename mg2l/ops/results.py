"""Results of operators with several outputs."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class GAE(NamedTuple):
    """Result of :func:`mg2l.ops.gae`."""

    advantages: Tensor
    """``[T, *B]``: advantage of each step, unit of the reward."""

    returns: Tensor
    """``[T, *B]``: ``advantages`` plus the de-normalised value, the target of the critic."""

    moments: Tensor
    """``[2, *B]`` float64: mean of the advantages over T, and the sum of squared deviations.

    They do not cancel however large the mean is against the spread. A group of columns has the mean
    ``m = moments[0].mean()`` and the sum of squared deviations ``moments[1].sum() + T *
    (moments[0] - m).square().sum()``, so that advantages can be normalised without reading them
    again. Both are NaN where an advantage is not finite or the square of a deviation overflows.
    """


class EncodedContext(NamedTuple):
    """Result of :func:`mg2l.ops.encode_context`."""

    pooled: Tensor
    """``[B, A, H]``: hidden features of each context, pooled by attention."""

    weights: Tensor | None
    """``[B, A, T]`` when asked for: the transitions' priorities; sum to 1, no gradient."""


class Pooled(NamedTuple):
    """Result of :func:`mg2l.ops.pia_pool`."""

    pooled: Tensor
    """``[*, heads, D]``: the inputs' weighted mean under each head; 0 for an empty set."""

    weights: Tensor | None
    """``[*, heads, T]`` when asked for: the inputs' priorities; sum to 1, no gradient."""


class PairwiseScores(NamedTuple):
    """Result of :func:`mg2l.ops.pairwise_lse`: one number per query, ``[*G, B]`` each."""

    lse: Tensor
    """``log sum exp`` of the scores of the positive and all negatives."""

    lse_negatives: Tensor
    """``log sum exp`` of the scores of the negatives; ``-inf`` where there is none."""

    mean: Tensor
    """Mean score of the negatives; 0 where there is none. Never clipped."""

    positive: Tensor
    """Score of the positive. Never clipped."""

    negatives: Tensor
    """int64: number of negatives."""

    rank: Tensor
    """int64: number of negatives that score higher than the positive; 0 is a hit."""


class Surrogate(NamedTuple):
    """Result of :func:`mg2l.ops.surrogate`: weighted sums over an agent's rows, ``[A]`` each.

    Also the slope of each row.
    """

    loss: Tensor
    """The clipped surrogate, negative."""

    kl: Tensor
    """``r - 1 - log r``, an estimate of the divergence from the policy before; no gradient."""

    clip_fraction: Tensor
    """Whether r is farther than c from 1; no gradient."""

    slope: Tensor
    """``[A, rows]``: derivative of the agent's loss with respect to ``log_probs``; no gradient."""


class GaussianSurrogate(NamedTuple):
    """Result of :func:`mg2l.ops.gaussian_surrogate`: sums over an agent's rows, ``[A]`` each.

    Also the slopes of each agent's loss.
    """

    loss: Tensor
    """``surrogate - entropy_coef * entropy``."""

    surrogate: Tensor
    """The clipped surrogate, negative; no gradient."""

    entropy: Tensor
    """Entropy of the policy [nats], times the sum of the weights; no gradient."""

    kl: Tensor
    """``r - 1 - log r``, an estimate of the divergence from the policy before; no gradient."""

    clip_fraction: Tensor
    """Whether r is farther than c from 1; no gradient."""

    mean_slope: Tensor
    """``[A, rows, W]``: derivative of the agent's loss with respect to ``mean``; no gradient."""

    log_std_slope: Tensor
    """``[A, 1, W]``: derivative of the agent's loss with respect to ``log_std``; no gradient."""


class ValueLoss(NamedTuple):
    """Result of :func:`mg2l.ops.value_loss`."""

    loss: Tensor
    """``[A]``: weighted sum over an agent's rows."""

    slope: Tensor
    """``[A, rows]``: derivative of the agent's loss with respect to ``prediction``; no gradient."""


class Contrast(NamedTuple):
    """Result of :func:`mg2l.ops.contrast`: means over the rows of a group, ``[G]`` each."""

    loss: Tensor
    """``kl_weight * kl - bound`` [nats]."""

    bound: Tensor
    """Lower bound on the information about the key [nats], at most ``log K``; no gradient."""

    accuracy: Tensor
    """Fraction of the rows whose own key scores highest; no gradient."""

    kl: Tensor
    """Divergence from ``N(0, I)`` [nats]; no gradient."""
