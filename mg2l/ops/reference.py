"""Every operator in plain torch: its definition, and the reference of tests and benchmarks.

Same arguments and results as the functions of :mod:`mg2l.ops`, none of the checks.

Attention over a set with a logit that is not finite is NaN throughout, and so are the log-sum-exps
of a query with a score that is not finite, so that guards against non-finite losses see it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

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

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
"""Minus the logarithm of the standard normal density at 0."""


def gae(
    rewards: Tensor,
    values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    gae_lambda: float,
    *,
    final_values: Tensor | None = None,
    value_mean: Tensor | None = None,
    value_std: Tensor | None = None,
) -> GAE:
    """See :func:`mg2l.ops.gae`."""
    if final_values is not None:  # kept steps may hold anything
        final_values = torch.where(truncated & ~terminated, final_values, 0)
    if value_mean is not None and value_std is not None:
        values = values * value_std + value_mean
        final_values = None if final_values is None else final_values * value_std + value_mean
    zero = rewards.new_zeros(())
    next_values = values[1:]
    if final_values is not None:
        next_values = torch.where(truncated, final_values, next_values)
    next_values = torch.where(terminated, zero, next_values)
    over = terminated | truncated
    carry = torch.zeros_like(values[0])
    advantages = torch.empty_like(rewards)
    for step in reversed(range(rewards.shape[0])):
        error = rewards[step] + gamma * next_values[step] - values[step]
        carry = error + gamma * gae_lambda * torch.where(over[step], zero, carry)
        advantages[step] = carry
    wide = advantages.double()
    mean = wide.sum(0) / max(len(wide), 1)
    squares = (wide - mean).square().sum(0)
    moments = torch.stack([mean, squares]) * _one_if_finite(squares)
    return GAE(advantages, advantages + values[:-1], moments)


def encode_context(
    context: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    query: Tensor,
    *,
    index: Tensor | None = None,
    approximate: str = "none",
    bfloat16: bool = False,
    return_weights: bool = False,
) -> EncodedContext:
    """See :func:`mg2l.ops.encode_context`."""
    features = context if index is None else context[index]
    agents = features.shape[2]
    for weight, bias in zip(weights, biases, strict=True):
        if bfloat16:
            rows, groups = features.movedim(2, 0).flatten(1, 2), weight
            if weight.dim() == 2:
                rows, groups = rows.flatten(0, 1).unsqueeze(0), weight.unsqueeze(0)
            product = _RoundedProduct.apply(rows, groups)  # type: ignore[no-untyped-call]
            features = product.view(agents, *features.shape[:2], -1).movedim(0, 2) + bias
        elif weight.dim() == 2:
            features = F.linear(features, weight, bias)
        else:
            features = torch.einsum("btaf,ahf->btah", features, weight) + bias
        features = F.gelu(features, approximate=approximate)
    logits = torch.einsum("btah,ah->bat", features, query.expand(agents, -1))
    pooling = (logits * _one_if_finite(logits)).softmax(-1)
    pooled = torch.einsum("bat,btah->bah", pooling, features)
    return EncodedContext(pooled, pooling.detach() if return_weights else None)


def pia_pool(
    x: Tensor,
    query: Tensor,
    *,
    dim: int = -2,
    mask: Tensor | None = None,
    return_weights: bool = False,
) -> Pooled:
    """See :func:`mg2l.ops.pia_pool`."""
    x = x.movedim(dim, -2)
    if mask is not None:
        mask = mask.movedim(dim + 1 if dim < 0 else dim, -1).unsqueeze(-2)
        x = torch.where(mask.transpose(-1, -2), x, 0)  # masked inputs are never read
    logits = query @ x.transpose(-1, -2)
    if mask is not None:  # a set without members reads no query either
        logits = torch.where(mask.any(-1, keepdim=True), logits, 0)
    logits = logits * _one_if_finite(logits)
    if mask is not None:
        # Where a set has no member at all, infinities would be NaN in its gradients.
        logits = logits.masked_fill(~mask & mask.any(-1, keepdim=True), -math.inf)
    weights = logits.softmax(-1)
    if mask is not None:
        weights = torch.where(mask, weights, 0)  # a set without members pools to 0
    return Pooled(weights @ x, weights.detach() if return_weights else None)


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
    """See :func:`mg2l.ops.pairwise_lse`."""
    if std is None:
        scores = scale * (queries @ keys.transpose(-1, -2))
    else:
        wide = std.unsqueeze(-3)
        error = (queries.unsqueeze(-2) - keys.unsqueeze(-3)) / wide
        log_density = -0.5 * error.square() - wide.log() - 0.5 * math.log(2 * math.pi)
        scores = scale * log_density.sum(-1)
    own = positive.unsqueeze(-1)
    negative = torch.ones_like(scores, dtype=torch.bool)
    if query_labels is not None and key_labels is not None:
        negative &= query_labels.unsqueeze(-1) != key_labels.unsqueeze(-2)
    if mask is not None:
        negative &= mask
    negative.scatter_(-1, own, False)
    positive_score = scores.gather(-1, own).squeeze(-1)
    clipped = scores if clip is None else scores.clamp(-clip, clip)
    count = negative.sum(-1)
    mean = torch.where(negative, scores, 0).sum(-1) / count.clamp(min=1)
    lse_negatives = clipped.masked_fill(~negative, -math.inf).logsumexp(-1) * _one_if_finite(mean)
    rank = (negative & (scores > positive_score.unsqueeze(-1))).sum(-1)
    clipped_positive = positive_score if clip is None else positive_score.clamp(-clip, clip)
    lse = torch.logaddexp(lse_negatives, clipped_positive * _one_if_finite(positive_score))
    return PairwiseScores(lse, lse_negatives, mean, positive_score, count, rank)


class _RoundedProduct(torch.autograd.Function):
    """``x W^T`` of numbers rounded to bfloat16, as are those of the products of its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        rounded = _rounded(x), _rounded(weight)
        ctx.save_for_backward(*rounded)
        return rounded[0] @ rounded[1].mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        grad = _rounded(grad)
        return grad @ weight, grad.mT @ x


def _rounded(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).to(x.dtype)


def stacked_mlp(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    relu: bool = True,
    plain_last: bool = False,
    bfloat16: bool = False,
) -> Tensor:
    """See :func:`mg2l.ops.stacked_mlp`."""
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True), 1):
        normalised = not plain_last or layer < len(weights)
        if bfloat16 and normalised:
            x = _RoundedProduct.apply(x, weight) + bias.unsqueeze(1)  # type: ignore[no-untyped-call]
        else:
            x = torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))
        if normalised:
            x = F.relu(x) if relu else torch.tanh(x)
            x = F.layer_norm(x, x.shape[-1:])
    return x


def film(features: Tensor, generated: Tensor, index: Tensor | None = None) -> Tensor:
    """See :func:`mg2l.ops.film`."""
    scale, shift = (generated if index is None else generated[:, index]).chunk(2, -1)
    return (1 + scale) * features + shift


def surrogate(
    log_probs: Tensor, before: Tensor, advantages: Tensor, weights: Tensor | float, clip: float
) -> Surrogate:
    """See :func:`mg2l.ops.surrogate`."""
    before, advantages, weights = _constants(before, advantages, weights)
    change = log_probs - before
    ratio = change.exp()
    clipped = ratio.clamp(1 - clip, 1 + clip) * advantages
    loss = -(torch.minimum(ratio * advantages, clipped) * weights).sum(1)
    ratio, change, clipped = ratio.detach(), change.detach(), clipped.detach()
    plain = ratio * advantages
    slope = torch.where(plain <= clipped, -weights * plain, 0.0)
    outside = ((ratio - 1).abs() > clip).to(ratio.dtype)
    kl = ((ratio - 1 - change) * weights).sum(1)
    return Surrogate(loss, kl, (outside * weights).sum(1), slope)


def gaussian_surrogate(
    mean: Tensor,
    log_std: Tensor,
    action: Tensor,
    before: Tensor,
    advantages: Tensor,
    weights: Tensor | float,
    *,
    clip: float,
    entropy_coef: float,
    own: Tensor | None = None,
) -> GaussianSurrogate:
    """See :func:`mg2l.ops.gaussian_surrogate`."""
    error, scale = (action.detach() - mean) * torch.exp(-log_std), torch.exp(-log_std)
    constant, entropy = log_std + LOG_SQRT_2PI, log_std + (LOG_SQRT_2PI + 0.5)
    if own is not None:
        error, scale = error * own, scale * own
        constant, entropy = torch.where(own, constant, 0), torch.where(own, entropy, 0)
    log_probs = -0.5 * error.square().sum(-1) - constant.sum(-1)
    found = surrogate(log_probs, before, advantages, weights, clip)
    (each,) = _constants(weights * torch.ones_like(log_probs))
    entropies = (entropy.sum(-1) * each).sum(1)
    error, scale = error.detach(), scale.detach()
    slope = found.slope.unsqueeze(-1)
    to_log_std = (slope * (error.square() - 1)).sum(1, True)
    to_log_std = to_log_std - entropy_coef * each.sum(1).view(-1, 1, 1)
    return GaussianSurrogate(
        found.loss - entropy_coef * entropies,
        found.loss.detach(),
        entropies.detach(),
        found.kl,
        found.clip_fraction,
        slope * error * scale,
        to_log_std if own is None else torch.where(own, to_log_std, 0),
    )


def value_loss(
    prediction: Tensor,
    old: Tensor,
    target: Tensor,
    weights: Tensor | float,
    *,
    clip: float | None = None,
    delta: float | None = None,
) -> ValueLoss:
    """See :func:`mg2l.ops.value_loss`."""
    old, target, weights = _constants(old, target, weights)

    def loss(value: Tensor) -> Tensor:
        if delta is None:
            return 0.5 * (value - target).square()
        return F.huber_loss(value, target, reduction="none", delta=delta)

    losses = loss(prediction)
    error = (prediction - target).detach()
    slope = error if delta is None else error.clamp(-delta, delta)
    if clip is not None:
        moved = prediction - old
        clipped = loss(old + moved.clamp(-clip, clip))
        inside = moved.detach().abs() <= clip  # there, they differ by rounding
        slope = torch.where(inside | (losses >= clipped), slope, 0.0)
        losses = torch.where(inside, losses, torch.maximum(losses, clipped))
    return ValueLoss((losses * weights).sum(1), slope * weights)


def contrast(
    raw: Tensor,
    keys: Tensor,
    positive: Tensor,
    *,
    temperature: float,
    kl_weight: float,
    std_floor: float,
) -> Contrast:
    """See :func:`mg2l.ops.contrast`."""
    mean, raw_std = raw.chunk(2, -1)
    direction = F.normalize(mean, dim=-1)
    square = mean.shape[-1] * direction.square()
    variance = (F.softplus(raw_std) + std_floor).square()
    kl = 0.5 * (square + variance - 1 - variance.log()).sum(-1).mean(-1)
    scores = direction @ F.normalize(keys, dim=-1).T / temperature
    own = positive.expand(raw.shape[:-1]).unsqueeze(-1)
    log_probs = scores.log_softmax(-1).gather(-1, own).squeeze(-1)
    bound = math.log(len(keys)) + log_probs.mean(-1)
    accuracy = (scores.argmax(-1) == positive).to(raw.dtype).mean(-1)
    return Contrast(kl_weight * kl - bound, bound.detach(), accuracy, kl.detach())


def clip_norms(gradients: Sequence[Tensor], limit: float, *, per_group: bool = False) -> Tensor:
    """See :func:`mg2l.ops.clip_norms`."""
    groups = len(gradients[0]) if per_group else 1
    flat = torch.cat([x.reshape(groups, x.numel() // max(groups, 1)) for x in gradients], 1)
    norms: Tensor = torch.linalg.vector_norm(flat, dim=1)
    scale = (limit / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        each = scale.view(-1, *[1] * (gradient.dim() - 1)) if per_group else scale.squeeze(0)
        gradient.mul_(each)
    return norms


def _constants(*arguments: Any) -> list[Any]:
    """Arguments that get no gradients."""
    return [x.detach() if isinstance(x, Tensor) else x for x in arguments]


def _one_if_finite(x: Tensor) -> Tensor:
    """1 where ``x`` is finite, else NaN; no gradients."""
    return 1 + (x - x).detach()


def gelu_mlp(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """See :func:`mg2l.ops.gelu_mlp`."""
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = F.gelu(F.linear(x, weight, bias))
    return F.linear(x, weights[-1], biases[-1])


def innovation_moments(
    series: Tensor,
    transitions: Tensor,
    coefficients: Tensor,
    observation: int,
    *,
    places: Tensor | None = None,
) -> Tensor:
    """See :func:`mg2l.ops.innovation_moments`."""
    if places is not None:
        series, transitions = series[places], transitions[places]
    steps = torch.arange(series.shape[1], device=series.device)
    one, two = (steps - 1).clamp(min=0), (steps - 2).clamp(min=0)
    ended = transitions[:, one][..., transitions.shape[-1] - observation :]
    began = transitions[..., :observation]
    follows = (began == ended).all(-1) & (steps > 0).unsqueeze(-1)
    follows_two = follows & follows[:, one] & (steps > 1).unsqueeze(-1)
    kinds = torch.stack([~follows, follows & ~follows_two, follows_two], 1)
    series = series.double()
    # What is not used may be anything, and has no gradient.
    before = torch.where(follows.unsqueeze(-1), series[:, one], 0.0)
    earlier = torch.where(follows_two.unsqueeze(-1), series[:, two], 0.0)
    alone, first, second = coefficients.double()
    nothing = series.new_zeros(())
    of_before = torch.where(follows_two, first, torch.where(follows, alone, nothing))
    of_earlier = torch.where(follows_two, second, nothing)
    expected = of_before.unsqueeze(-1) * before + of_earlier.unsqueeze(-1) * earlier
    kinds = kinds.transpose(2, 3).unsqueeze(-1)
    each = torch.where(kinds, (series - expected).transpose(1, 2).unsqueeze(1), 0.0)
    return each.mT @ each / max(series.shape[1], 1)
