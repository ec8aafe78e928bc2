"""Representations as coefficients: rewards regressed on learned features of transitions."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mg2l.algorithms.transition_encoder import TransitionMoments
from mg2l.experience.replay import Context, as_context
from mg2l.nn.aggregators import RunningPool

RIDGE = 0.01
"""Weight of the prior ``N(0, I)`` of the coefficients against the mean over transitions."""


class RewardRegression(nn.Module):
    """Ridge regression of an agent's standardised rewards on learned features of its transitions.

    ``x^i = argmin_x mean_t (r_t - x . phi(o_t, a_t, o'_t))^2 + RIDGE |x|^2``, in closed form: the
    mean of the posterior of Bayesian linear regression (Harrison et al., 2018, *Meta-Learning
    Priors for Efficient Online Bayesian Regression*, arXiv:1807.08912). The last feature is the
    constant. Shared by all agents; no agent's transitions reach another agent's ``x^i``.

    Args:
        hidden: widths of the hidden layers of ``phi``.
        transition: width F of a transition.
        reward: the reward's column in it.
        width: D, number of features.
    """

    def __init__(self, hidden: list[int], transition: int, reward: int, width: int) -> None:
        super().__init__()
        sizes = [transition - 1, *hidden, width - 1]
        self.moments = TransitionMoments(transition)
        self.reward = reward
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in itertools.pairwise(sizes))

    def forward(self, context: Context | Tensor) -> Tensor:
        """``x`` of B contexts: ``[B, A, D]``."""
        features, rewards = self.features(as_context(context).gather())
        return self.solve(self._products(features, rewards)).to(features.dtype)

    def features(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``[*, D]`` of transitions ``[*, F]``, and their standardised rewards ``[*]``."""
        rows = self.moments.standardise(rows)
        x = torch.cat([rows[..., : self.reward], rows[..., self.reward + 1 :]], -1)
        for layer in self.layers[:-1]:
            x = F.gelu(layer(x))
        x = self.layers[-1](x)
        return torch.cat([x, torch.ones_like(x[..., :1])], -1), rows[..., self.reward]

    def solve(self, products: Tensor) -> Tensor:
        """Coefficients ``[*, D]`` for means ``[*, D, 1 + D]``, see `_products`."""
        wanted, gram = products[..., :1], products[..., 1:]
        ridge = RIDGE * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        if torch.compiler.is_exporting():  # ONNX has no factorisation
            return _eliminate(gram + ridge, wanted)
        factor = torch.linalg.cholesky_ex(gram + ridge).L  # does not wait for a GPU to check
        return torch.cholesky_solve(wanted, factor).squeeze(-1)

    def predict(self, x: Tensor, rows: Tensor) -> Tensor:
        """Standardised rewards that ``x`` ``[B, A, D]`` predicts of transitions ``[B, T, A, F]``.

        Returns:
            ``[B, T, A]``.
        """
        return (self.features(rows)[0] * x.unsqueeze(1)).sum(-1)

    @staticmethod
    def _products(features: Tensor, rewards: Tensor) -> Tensor:
        """Means over T of features times the reward and of features times features.

        Args:
            features: ``[B, T, A, D]``.
            rewards: ``[B, T, A]``.

        Returns:
            ``[B, A, D, 1 + D]`` in float64: what is solved is ill-conditioned.
        """
        each = features.transpose(1, 2).double()
        beside = torch.cat([rewards.transpose(1, 2).unsqueeze(-1).double(), each], -1)
        return each.transpose(-1, -2) @ beside / features.shape[1]

    # One transition after the other.

    pools_as_it_goes = True

    def begin(self, rows: Tensor, weight: Tensor) -> RunningPool:
        """Pool transitions ``[N, T, A, F]``, each of which counts ``weight`` ``[N]`` times."""
        mass = (weight * rows.shape[1]).unsqueeze(1).expand(-1, rows.shape[2])
        return RunningPool(self._products(*self.features(rows)), mass, torch.zeros_like(mass))

    def extend(self, pool: RunningPool | None, rows: Tensor, alive: Tensor) -> RunningPool:
        """Add a transition ``[N, A, F]`` of each agent that is ``alive`` ``[N, A]``."""
        products = self._products(*(x.unsqueeze(1) for x in self.features(rows)))
        if pool is None:
            return RunningPool(products, alive, torch.zeros_like(alive))
        mass = pool.mass + alive
        part = (alive / mass.clamp(min=1))[..., None, None].to(products.dtype)
        return RunningPool(torch.lerp(pool.pooled, products, part), mass, pool.peak)

    def read_out(self, pool: RunningPool) -> Tensor:
        """``x``, ``[N, A, D]``, of all transitions in a pool."""
        return self.solve(pool.pooled).float()


def _eliminate(matrix: Tensor, wanted: Tensor) -> Tensor:
    """Solve symmetric positive definite systems ``[*, D, D]``, ``[*, D, 1]``, by Gauss and Jordan.

    Of such matrices no pivot vanishes.
    """
    rows = torch.cat([matrix, wanted], -1)
    size = matrix.shape[-1]
    for pivot in range(size):
        scaled = rows[..., pivot : pivot + 1, :] / rows[..., pivot : pivot + 1, pivot : pivot + 1]
        rows = rows - rows[..., pivot : pivot + 1] * scaled
        rows = torch.cat([rows[..., :pivot, :], scaled, rows[..., pivot + 1 :, :]], -2)
    return rows[..., -1]
