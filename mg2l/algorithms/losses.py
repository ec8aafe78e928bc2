"""Contrastive bounds on the information about the task. All information is in nats."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mg2l.estimators.bounds import l1out
from mg2l.estimators.gaussian import Gaussian
from mg2l.ops.backend import NATIVE, Backend


class InfoNCE(NamedTuple):
    """Result of a contrastive bound."""

    bound: Tensor
    """Lower bound on the mutual information [nats], at most ``log K``."""

    accuracy: Tensor
    """Fraction of the queries whose positive scores highest."""


def pair_scores(
    queries: Tensor,
    keys: Tensor,
    score: str,
    temperature: float,
    bilinear: Tensor | None = None,
    own_keys: bool = False,
) -> Tensor:
    """Scores ``[*, B, K]`` of queries ``[*, B, D]`` against keys.

    Args:
        queries: ``[*, B, D]``.
        keys: ``[*, K, D]`` for all queries, or with ``own_keys`` ``[*, B, K, D]`` for each its own.
        score: ``dot``, ``cosine`` or ``bilinear``.
        temperature: divisor.
        bilinear: form ``[D, D]`` of the last.
        own_keys: see ``keys``.
    """
    if score == "cosine":
        queries, keys = F.normalize(queries, dim=-1), F.normalize(keys, dim=-1)
    elif score == "bilinear" and bilinear is not None:
        queries = queries @ bilinear
    if own_keys:
        return (keys @ queries.unsqueeze(-1)).squeeze(-1) / temperature
    return queries @ keys.transpose(-1, -2) / temperature


def info_nce(scores: Tensor, positive: Tensor) -> InfoNCE:
    """``I_NCE = log K + E[log softmax(scores)[positive]]``, a lower bound [nats].

    van den Oord et al., 2018, arXiv:1807.03748, eq. 4; Poole et al., 2019, arXiv:1905.06922,
    eq. 10.

    Args:
        scores: ``[*, B, K]``.
        positive: ``[B]`` int64, column of each query's own task.

    Returns:
        Bound and accuracy, ``[*]``.
    """
    own = positive.unsqueeze(-1).expand(*scores.shape[:-1], 1)
    log_probs = torch.log_softmax(scores, -1).gather(-1, own).squeeze(-1)
    hits = (scores.argmax(-1) == positive).to(scores.dtype)
    return InfoNCE(math.log(scores.shape[-1]) + log_probs.mean(-1), hits.mean(-1))


def leave_one_out(q: Gaussian, z: Tensor, backend: Backend = NATIVE) -> Tensor:
    """``I_L1Out = E[log q(z_b|c_b) - log 1/(B-1) sum_{j != b} q(z_b|c_j)]``, an upper bound [nats].

    It bounds ``I(z; c)``: :func:`mg2l.estimators.l1out`.

    Args:
        q: posteriors of B independent contexts, ``[B, D]``.
        z: a sample of each, ``[B, D]``.
        backend: operators to compute with.
    """
    own = torch.arange(len(z), device=z.device)
    return l1out(backend.pairwise_lse(z, q.mean, own, std=q.std))
