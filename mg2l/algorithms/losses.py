"""Contrastive bounds on the information about the task. All information is in nats."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mg2l.core.distributed import world
from mg2l.estimators.bounds import l1out
from mg2l.estimators.gaussian import Gaussian
from mg2l.nn.sphere import unit
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
        queries, keys = unit(queries), unit(keys)
    elif score == "bilinear" and bilinear is not None:
        queries = queries @ bilinear
    if own_keys:
        return (keys @ queries.unsqueeze(-1)).squeeze(-1) / temperature
    return queries @ keys.transpose(-1, -2) / temperature


def info_nce(scores: Tensor, positive: Tensor) -> InfoNCE:
    """`mg2l.estimators.info_nce` of the scores of all pairs, with its accuracy.

    Args:
        scores: ``[*, B, K]``.
        positive: ``[B]`` int64, column of each query's own task.

    Returns:
        Bound and accuracy, ``[*]``.
    """
    own = positive.unsqueeze(-1).expand(*scores.shape[:-1], 1)
    log_probs = torch.log_softmax(scores, -1).gather(-1, own).squeeze(-1)
    accuracy = (scores.argmax(-1) == positive).to(scores.dtype).mean(-1)
    return InfoNCE(math.log(scores.shape[-1]) + log_probs.mean(-1), accuracy)


def leave_one_out(q: Gaussian, z: Tensor, backend: Backend = NATIVE) -> Tensor:
    """``I_L1Out = E[log q(z_b|c_b) - log 1/(B-1) sum_{j != b} q(z_b|c_j)]``, an upper bound [nats].

    It bounds ``I(z; c)``: :func:`mg2l.estimators.l1out`.

    Args:
        q: posteriors of B independent contexts, ``[B, D]``.
        z: a sample of each, ``[B, D]``.
        backend: operators to compute with.

    Contexts are those of a process; the samples are compared with those of all processes.
    """
    start = world.rank * len(z)
    own = torch.arange(start, start + len(z), device=z.device)
    mean, std = world.gather(torch.cat([q.mean, q.std], -1)).chunk(2, -1)
    q = Gaussian(mean, std)
    return l1out(backend.pairwise_lse(z, q.mean, own, std=q.std))
