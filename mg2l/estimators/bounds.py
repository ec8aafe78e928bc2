"""Bounds on mutual information as functions of the scores of all pairs.

A critic ``f(x, y)`` scores every query against every key. A bound needs a few numbers per query,
:class:`mg2l.ops.PairwiseScores`: the score of its own key (the positive), and the log-sum-exp and
mean of the others (the negatives). Every function returns a differentiable scalar [nats].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mg2l.ops.results import PairwiseScores


def _log_mean_exp(scores: PairwiseScores) -> Tensor:
    """``log E[exp f]`` over the negatives of each query, ``[B]``."""
    return scores.lse_negatives - scores.negatives.clamp(min=1).to(scores.lse.dtype).log()


def info_nce(scores: PairwiseScores) -> Tensor:
    """``I_NCE = log K + E[f(x, y) - log sum_K exp f]``.

    Lower bound on ``I(x; y)`` for any critic. Biased low, strongly where the information comes near
    its ceiling ``log K``, K being the number of keys; low variance.

    van den Oord et al., 2018, arXiv:1807.03748, eq. 4; Poole et al., 2019, arXiv:1905.06922,
    eq. 10.
    """
    keys = (scores.negatives + 1).to(scores.lse.dtype)
    return (keys.log() + scores.positive - scores.lse).mean()


def nwj(scores: PairwiseScores) -> Tensor:
    """``I_NWJ = E_p(x,y)[f] - E_p(x)p(y)[exp(f)] / e``.

    Lower bound on ``I(x; y)`` for any critic, without bias for the critic at hand and without a
    ceiling; its variance grows exponentially with the information.

    Nguyen et al., 2010, arXiv:0809.0853; Poole et al., 2019, arXiv:1905.06922, eq. 6.
    """
    return scores.positive.mean() - (_log_mean_exp(scores) - 1).exp().mean()


def donsker_varadhan(scores: PairwiseScores) -> Tensor:
    """``I_DV = E_p(x,y)[f] - log E_p(x)p(y)[exp f]``.

    Lower bound on ``I(x; y)`` in expectation over infinitely many samples; from finitely many the
    logarithm of a mean is biased low, and so the estimate high. No ceiling; high variance.

    Donsker & Varadhan, 1983; Belghazi et al., 2018, arXiv:1801.04062, eq. 2.
    """
    rows = _log_mean_exp(scores)
    return scores.positive.mean() - (rows.logsumexp(0) - math.log(len(rows)))


def mine(scores: PairwiseScores, average: Tensor, decay: float = 0.99) -> Tensor:
    """The value of ``I_DV``, with the gradient of MINE.

    The gradient divides by a moving average of ``E[exp f]`` instead of the batch's own, which takes
    most of the bias out of it. As an estimate it is that of `donsker_varadhan`: neither bound from
    finitely many samples.

    Args:
        scores: scores of a batch.
        average: scalar, the moving average, updated in place; 0 before the first call.
        decay: decay of the average.

    Belghazi et al., 2018, arXiv:1801.04062, section 3.2.
    """
    mean = _log_mean_exp(scores).exp().mean()
    with torch.no_grad():
        average.copy_(mean if average == 0 else decay * average + (1 - decay) * mean)
    surrogate = scores.positive.mean() - mean / average
    return surrogate + (donsker_varadhan(scores) - surrogate).detach()


def smile(scores: PairwiseScores) -> Tensor:
    """``I_SMILE = E_p(x,y)[f] - log E_p(x)p(y)[exp clip(f, -tau, tau)]``.

    The scores' log-sum-exp must have been clipped (``clip=tau`` of the critic). Clipping trades
    variance for bias: no longer a bound, tends to `donsker_varadhan` for large tau. Its critic is
    trained with `jsd`.

    Song & Ermon, 2020, arXiv:1910.06222, eq. 6.
    """
    return donsker_varadhan(scores)


def jsd(matrix: Tensor) -> Tensor:
    """``E_p(x,y)[-softplus(-f)] - E_p(x)p(y)[softplus(f)]``, the objective of a JSD critic.

    A lower bound on a divergence, ``2 JSD(p(x,y) || p(x)p(y)) - 2 log 2``, not an estimate of
    information: it trains a critic with little variance, whose optimum is
    ``f = log p(x,y) / p(x)p(y)``. The estimate made of it is ``I_NWJ`` of ``f + 1``, a lower bound
    on ``I(x; y)``, biased low by the critic's error.

    Args:
        matrix: scores ``[B, B]``, positives on the diagonal.

    Nowozin et al., 2016, arXiv:1606.00709, table 2; Poole et al., 2019, arXiv:1905.06922,
    section 2.1.
    """
    positive = matrix.diagonal()
    others = F.softplus(matrix).sum() - F.softplus(positive).sum()
    return -F.softplus(-positive).mean() - others / (len(matrix) * (len(matrix) - 1))


def club(scores: PairwiseScores) -> Tensor:
    """``I_CLUB = E_p(x,y)[log q(y|x)] - E_p(x)p(y)[log q(y|x)]``.

    Upper bound on ``I(x; y)`` where ``q`` is the true conditional; with a learned one it is off by
    their divergence, to either side. No ceiling; biased high, strongly for narrow conditionals.

    Cheng et al., 2020, arXiv:2006.12013, eq. 7.
    """
    return (scores.positive - scores.mean).mean()


def l1out(scores: PairwiseScores) -> Tensor:
    """``I_L1Out = E[log q(y_i|x_i) - log 1/(B-1) sum_{j != i} q(y_i|x_j)]``.

    Upper bound on ``I(x; y)`` where ``q`` is the true conditional, as that of an encoder is; a
    learned one breaks the bound by its divergence. Tight where the information is small against
    ``log B``, loose (biased high) above.

    Poole et al., 2019, arXiv:1905.06922, eq. 13.
    """
    return (scores.positive - _log_mean_exp(scores)).mean()


def conditional_mi_reduction(whole: PairwiseScores, local: PairwiseScores) -> Tensor:
    """``I_L1Out(z; c) - I_NCE(z, z^i; c)``, the gap from global to local inference.

    Upper bound on ``I(z; c) - I(z, z^i; c)``, an upper bound minus a lower bound; biased high by
    the slack of both, and by the information of ``z`` about its own context that other contexts of
    the task do not share.

    Args:
        whole: log-densities of each z under each context's posterior.
        local: scores of each ``(z, z^i)`` against each task's.

    Zhao et al., 2025, section III.
    """
    return l1out(whole) - info_nce(local)
