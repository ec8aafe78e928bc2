"""Scores of all queries against all keys, reduced per query without forming the matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mg2l.ops.once import differentiable_once
from mg2l.ops.results import PairwiseScores


def pairwise_lse(
    queries: Tensor,
    keys: Tensor,
    positive: Tensor,
    *,
    scale: float = 1.0,
    std: Tensor | None = None,
    query_labels: Tensor | None = None,
    key_labels: Tensor | None = None,
    mask: Tensor | None = None,
    clip: float | None = None,
) -> PairwiseScores:
    """Reduce the scores of all pairs to what estimators of mutual information need.

    ``s_ij = scale q_i . k_j``, or with ``std`` the diagonal Gaussian log-density ``s_ij = scale log
    N(q_i; k_j, diag std_j^2)``. Each query has one positive; its negatives are the keys that are
    neither the positive nor excluded by labels or mask. InfoNCE (van den Oord et al., 2018,
    arXiv:1807.03748, eq. 4) is ``log(negatives + 1) + mean(positive - lse)``; NWJ,
    Donsker-Varadhan, SMILE (``clip``; Song & Ermon, 2020, arXiv:1910.06222, eq. 6) and the
    leave-one-out bound (Poole et al., 2019, arXiv:1905.06922, eq. 13) follow from the rest.

    Neither pass stores anything of size B x M: scores are computed a tile at a time, and
    again for the gradients.

    Args:
        queries: ``[*G, B, D]`` float32 or float64.
        keys: ``[*G, M, D]`` like ``queries``.
        positive: ``[*G, B]`` int64 in ``[0, M)``: each query's own key.
        scale: Factor of the scores, an inverse temperature.
        std: ``[*G, M, D]`` like ``keys``, positive: the keys are means of Gaussians.
        query_labels: ``[*G, B]`` int64: keys with the same label are not negatives.
        key_labels: ``[*G, M]`` int64, given with ``query_labels``.
        mask: ``[*G, B, M]`` bool, False excludes a key from a query's negatives.
        clip: Positive; scores are clamped to ``[-clip, clip]`` in both log-sum-exps.

    If the mean of a query's scores or its positive score is not finite, its log-sum-exps are NaN:
    see :mod:`mg2l.ops.reference`.

    Returns:
        :class:`PairwiseScores`. ``lse``, ``lse_negatives``, ``mean`` and ``positive`` are
        differentiable once with respect to ``queries``, ``keys`` and ``std``.

    Raises:
        ValueError: ``clip`` is not positive.
        RuntimeError: Shapes, dtypes or devices do not fit, ``scale`` is not finite, ``positive`` is
            out of range (on CUDA, where a check would wait for the device, the query's results are
            NaN), there is no key, or only one of the labels is given; or a second derivative is
            asked for.

    Example:
        >>> pairwise_lse(torch.zeros(1, 2), torch.zeros(3, 2), torch.tensor([0])).lse
        tensor([1.0986])
    """
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be positive, got {clip}")
    groups = queries.shape[:-2]

    def flat(tensor: Tensor | None, axes: int) -> Tensor | None:
        if tensor is None or tensor.dim() != len(groups) + axes or tensor.dim() == axes + 1:
            return tensor
        return tensor.reshape(groups.numel(), *tensor.shape[len(groups) :])

    if queries.dim() < 2:
        raise ValueError(f"queries must have shape [*G, B, D], got {list(queries.shape)}")
    for name, tensor, axes in (
        ("keys", keys, 2),
        ("positive", positive, 1),
        ("std", std, 2),
        ("query_labels", query_labels, 1),
        ("key_labels", key_labels, 1),
        ("mask", mask, 2),
    ):
        if tensor is not None and tensor.shape[: tensor.dim() - axes] != groups:
            raise ValueError(
                f"{name} must have {axes} axes after those of the groups {list(groups)}, "
                f"got {list(tensor.shape)}"
            )
    result = torch.ops.mg2l.pairwise_lse.default(
        flat(queries, 2),
        flat(keys, 2),
        flat(positive, 1),
        scale,
        flat(std, 2),
        flat(query_labels, 1),
        flat(key_labels, 1),
        flat(mask, 2),
        clip,
    )
    if len(groups) != 1:
        result = [tensor.view(*groups, queries.shape[-2]) for tensor in result]
    return PairwiseScores(*result)


@torch.library.register_fake("mg2l::pairwise_lse")
def _fake(queries: Tensor, *_: Any) -> tuple[Tensor, ...]:
    floats = [queries.new_empty(queries.shape[:2]) for _ in range(4)]
    counts = [queries.new_empty(queries.shape[:2], dtype=torch.int64) for _ in range(2)]
    return (*floats, *counts)


@torch.library.register_fake("mg2l::pairwise_lse_backward")
def _backward_fake(
    grad_lse: Tensor,
    grad_lse_negatives: Tensor,
    grad_mean: Tensor,
    grad_positive: Tensor,
    queries: Tensor,
    keys: Tensor,
    positive: Tensor,
    scale: float,
    std: Tensor | None,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        queries.new_empty(queries.shape),
        keys.new_empty(keys.shape),
        keys.new_empty((0,) if std is None else std.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    queries, keys, positive, ctx.scale, std, query_labels, key_labels, mask, ctx.clip = inputs
    lse, lse_negatives, _, _, negatives, rank = output
    ctx.mark_non_differentiable(negatives, rank)
    ctx.save_for_backward(
        queries, keys, positive, std, query_labels, key_labels, mask, lse, lse_negatives, negatives
    )


def _backward(ctx: Any, *grads: Tensor) -> Any:
    queries, keys, positive, std, query_labels, key_labels, mask, *results = ctx.saved_tensors
    to_queries, to_keys, to_std = torch.ops.mg2l.pairwise_lse_backward.default(
        *grads[:4],
        queries,
        keys,
        positive,
        ctx.scale,
        std,
        query_labels,
        key_labels,
        mask,
        ctx.clip,
        *results,
    )
    return to_queries, to_keys, None, None, None if std is None else to_std, *[None] * 4


torch.library.register_autograd("mg2l::pairwise_lse", _backward, setup_context=_setup_context)
differentiable_once("pairwise_lse")
