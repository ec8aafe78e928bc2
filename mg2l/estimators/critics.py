"""Critics: ``critic(x, y) -> PairwiseScores`` of a batch, positives on the diagonal.

Critics whose score is a dot product never form the matrix of all pairs
(:func:`mg2l.ops.pairwise_lse`); ``matrix`` does, for `jsd`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mg2l.estimators.gaussian import Gaussian
from mg2l.ops import pairwise_lse
from mg2l.ops.results import PairwiseScores

STD_FLOOR = 1e-3
"""Smallest standard deviation of the Gaussian critic."""


def mlp(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Linear layers with GELU between them."""
    sizes = [inputs, *hidden, outputs]
    layers: list[nn.Module] = []
    for i, o in itertools.pairwise(sizes):
        layers += [nn.Linear(i, o), nn.GELU()]
    return nn.Sequential(*layers[:-1])


class Critic(nn.Module):
    """Base: scores are dot products of ``queries(x)`` and ``keys(y)``, both ``[B, D]``."""

    def queries(self, x: Tensor) -> Tensor:
        """``[B, in] -> [B, D]``."""
        raise NotImplementedError

    def keys(self, y: Tensor) -> Tensor:
        """``[B, in] -> [B, D]``."""
        raise NotImplementedError

    def forward(self, x: Tensor, y: Tensor, clip: float | None = None) -> PairwiseScores:
        """Scores of all pairs of ``x`` and ``y``, ``[B, in]`` each, reduced per query."""
        own = torch.arange(len(x), device=x.device)
        return pairwise_lse(self.queries(x), self.keys(y), own, clip=clip)

    def matrix(self, x: Tensor, y: Tensor) -> Tensor:
        """Scores ``[B, B]``."""
        return self.queries(x) @ self.keys(y).t()


class separable(Critic):  # noqa: N801  (critics are named as in the literature)
    """``f(x, y) = g(x) . h(y)`` with two networks (van den Oord et al., 2018).

    Args:
        x_size: width of x.
        y_size: width of y.
        hidden: hidden layers of both networks.
        features: width of ``g`` and ``h``.
    """

    def __init__(self, x_size: int, y_size: int, hidden: Sequence[int], features: int) -> None:
        super().__init__()
        self.g, self.h = mlp(x_size, hidden, features), mlp(y_size, hidden, features)

    def queries(self, x: Tensor) -> Tensor:
        """See `Critic`."""
        q: Tensor = self.g(x)
        return q

    def keys(self, y: Tensor) -> Tensor:
        """See `Critic`."""
        k: Tensor = self.h(y)
        return k


class bilinear(Critic):  # noqa: N801
    """``f(x, y) = g(x)^T W y``; with no hidden layers ``x^T W y`` (Hjelm et al., 2019).

    Arguments as of `separable`.
    """

    def __init__(self, x_size: int, y_size: int, hidden: Sequence[int], features: int) -> None:
        super().__init__()
        self.g = mlp(x_size, hidden, y_size) if hidden else nn.Linear(x_size, y_size, bias=False)

    def queries(self, x: Tensor) -> Tensor:
        """See `Critic`."""
        q: Tensor = self.g(x)
        return q

    def keys(self, y: Tensor) -> Tensor:
        """See `Critic`."""
        return y


class cosine(separable):  # noqa: N801
    """``f(x, y) = cos(g(x), h(y)) / tau`` with a learned temperature (Chen et al., 2020)."""

    def __init__(self, x_size: int, y_size: int, hidden: Sequence[int], features: int) -> None:
        super().__init__(x_size, y_size, hidden, features)
        self.log_scale = nn.Parameter(torch.tensor(2.0))

    def queries(self, x: Tensor) -> Tensor:
        """See `Critic`."""
        return F.normalize(self.g(x), dim=-1) * self.log_scale.exp()

    def keys(self, y: Tensor) -> Tensor:
        """See `Critic`."""
        return F.normalize(self.h(y), dim=-1)


class concatenated(Critic):  # noqa: N801
    """``f(x, y) = g([x, y])``: one network on every pair, B x B of them (Belghazi et al., 2018).

    Arguments as of `separable`; ``features`` is not used.
    """

    def __init__(self, x_size: int, y_size: int, hidden: Sequence[int], features: int) -> None:
        super().__init__()
        self.g = mlp(x_size + y_size, hidden, 1)

    def forward(self, x: Tensor, y: Tensor, clip: float | None = None) -> PairwiseScores:
        """See `Critic`."""
        # A row of scores against the unit vectors: the scores themselves are the dot products.
        scores = self.matrix(x, y)
        unit = torch.eye(len(y), dtype=x.dtype, device=x.device)
        return pairwise_lse(scores, unit, torch.arange(len(x), device=x.device), clip=clip)

    def matrix(self, x: Tensor, y: Tensor) -> Tensor:
        """See `Critic`."""
        left = x.unsqueeze(1).expand(-1, len(y), -1)
        right = y.unsqueeze(0).expand(len(x), -1, -1)
        scores: Tensor = self.g(torch.cat([left, right], -1)).squeeze(-1)
        return scores


class gaussian(Critic):  # noqa: N801
    """``f(x, y) = log N(y; mu(x), diag sigma(x)^2)``, a conditional density (Cheng et al., 2020).

    Here a y is a query and the x are the keys: ``club`` and ``l1out`` average over the conditions.
    Arguments as of `separable`; ``features`` is not used.
    """

    def __init__(self, x_size: int, y_size: int, hidden: Sequence[int], features: int) -> None:
        super().__init__()
        self.g = mlp(x_size, hidden, 2 * y_size)

    def conditional(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of ``y`` given ``x``, ``[B, y_size]`` each."""
        mean, raw_std = self.g(x).chunk(2, -1)
        return mean, F.softplus(raw_std) + STD_FLOOR

    def forward(self, x: Tensor, y: Tensor, clip: float | None = None) -> PairwiseScores:
        """See `Critic`."""
        mean, std = self.conditional(x)
        own = torch.arange(len(x), device=x.device)
        return pairwise_lse(y, mean, own, std=std, clip=clip)

    def matrix(self, x: Tensor, y: Tensor) -> Tensor:
        """See `Critic`."""
        mean, std = self.conditional(x)
        return Gaussian(mean, std).log_prob(y.unsqueeze(1))


CRITICS: dict[str, type[Critic]] = {
    critic.__name__: critic for critic in (separable, bilinear, cosine, concatenated, gaussian)
}
"""Every critic by its name."""
