"""Representations as coefficients: rewards regressed on learned features of transitions."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mg2l.algorithms.transition_encoder import TransitionMoments
from mg2l.experience.replay import Context, Distinct, as_context
from mg2l.nn.aggregators import RunningPool
from mg2l.ops.backend import NATIVE, Backend

RIDGE = 0.01
"""Weight of the prior ``N(0, I)`` of the coefficients against the mean over transitions."""

RUN = 10
"""Consecutive transitions that are drawn together."""


class Regressand(NamedTuple):
    """What is regressed of transitions ``[*, F]``."""

    features: Tensor
    """``[*, D]``, the last of which is constant."""

    reward: Tensor
    """``[*]``, standardised."""

    began: Tensor
    """``[*, O]``, observation before."""

    ended: Tensor
    """``[*, O]``, observation afterwards."""

    def follows(self, before: Regressand) -> Tensor:
        """``[*]``, 1 of a transition that begins where the one before ended, else 0."""
        return (self.began == before.ended).all(-1).to(self.reward.dtype)


class RewardRegression(nn.Module):
    """Regression of an agent's standardised rewards on learned features of its transitions.

    The mean of the posterior of Bayesian linear regression (Harrison et al., 2018, *Meta-Learning
    Priors for Efficient Online Bayesian Regression*, arXiv:1807.08912),

    ``x^i = argmin_x mean_t (r_t - x . phi(o_t, a_t, o'_t))^2 + RIDGE |x|^2``,

    by generalised least squares: what an agent cannot explain of its rewards, such as what its
    team-mates do where they share a reward, changes slowly. Errors are those of an autoregressive
    process of first order, ``e_t = rho e_{t-1} + u_t`` (Cochrane and Orcutt, 1949): from each
    transition ``rho`` times the one before is subtracted, in features and reward. ``rho`` is
    learned. Transitions follow each other if one ends where the other begins. The last
    feature is the constant. Shared by all agents; no agent's transitions reach another agent's
    ``x^i``.

    Args:
        hidden: widths of the hidden layers of ``phi``.
        transition: width F of a transition.
        reward: the reward's column in it.
        width: D, number of features.
        backend: operators to compute with.
    """

    def __init__(
        self,
        hidden: list[int],
        transition: int,
        reward: int,
        width: int,
        backend: Backend = NATIVE,
    ) -> None:
        super().__init__()
        self.backend = backend
        sizes = [transition - 1, *hidden, width - 1]
        self.moments = TransitionMoments(transition)
        self.reward, self.observation = reward, transition - reward - 1
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in itertools.pairwise(sizes))
        self.correlation_logit = nn.Parameter(torch.zeros(()))

    @property
    def correlation(self) -> Tensor:
        """``rho`` between the errors of consecutive transitions, in ``(0, 1)``."""
        return self.correlation_logit.sigmoid()

    def forward(self, context: Context | Tensor) -> Tensor:
        """``x`` of B contexts: ``[B, A, D]``."""
        return self._coefficients(self._moments(as_context(context).distinct))

    def regress(self, known: Context | Tensor, asked: Context | Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients, and how well they predict.

        Args:
            known: B contexts from which they are inferred.
            asked: B contexts whose rewards they predict.

        Returns:
            `forward` of those known, ``[B, A, D]``, and `squared_errors` on those asked,
            ``[B, A]``.
        """
        one, other = as_context(known).distinct, as_context(asked).distinct
        of_known, of_asked = self._moments(one.join(other)).chunk(2)
        x = self._coefficients(of_known)
        return x, self._squared_errors(x, of_asked)

    def squared_errors(self, x: Tensor, context: Context | Tensor) -> Tensor:
        """Errors of predictions by ``x`` ``[B, A, D]`` of the rewards of B contexts.

        Returns:
            ``[B, A]``, mean squares over T of errors of standardised rewards; of a transition that
            follows another, given the error of that one.
        """
        return self._squared_errors(x, self._moments(as_context(context).distinct))

    def regressand(self, rows: Tensor) -> Regressand:
        """What is regressed of transitions ``[*, F]``."""
        began, ended = rows[..., : self.observation], rows[..., self.reward + 1 :]
        rows = self.moments.standardise(rows)
        x = torch.cat([rows[..., : self.reward], rows[..., self.reward + 1 :]], -1)
        weights, biases = zip(*((y.weight, y.bias) for y in self.layers), strict=True)
        x = self.backend.gelu_mlp(x.flatten(0, -2), weights, biases).view(*x.shape[:-1], -1)
        x = torch.cat([x, torch.ones_like(x[..., :1])], -1)
        return Regressand(x, rows[..., self.reward], began, ended)

    def solve(self, products: Tensor) -> Tensor:
        """Coefficients ``[*, D]`` for means ``[*, D, 1 + D]``, see `_products`."""
        wanted, gram = products[..., :1], products[..., 1:]
        ridge = RIDGE * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        if torch.compiler.is_exporting():  # ONNX has no factorisation
            return _eliminate(gram + ridge, wanted)
        factor = torch.linalg.cholesky_ex(gram + ridge).L  # does not wait for a GPU to check
        return torch.cholesky_solve(wanted, factor).squeeze(-1)

    def _coefficients(self, moments: Tensor) -> Tensor:
        """Those ``[B, A, D]`` of what `_moments` returns."""
        return self.solve(self._whitened_products(moments)).to(self.correlation_logit.dtype)

    def _whitened_products(self, moments: Tensor) -> Tensor:
        """`_products` of what `_moments` returns: errors have the same variance in both parts."""
        first, following = moments.unbind(1)
        return torch.add(first, following / (1 - self.correlation.double().square()))[..., 1:, :]

    def _squared_errors(self, x: Tensor, moments: Tensor) -> Tensor:
        error = torch.cat([torch.ones_like(x[..., :1]), -x], -1).to(moments.dtype).unsqueeze(-1)
        return (error * (moments.sum(1) @ error)).sum((-2, -1)).to(x.dtype)

    def _moments(self, drawn: Distinct) -> Tensor:
        """Second moments of the innovations of rewards and features in B contexts.

        Returns:
            ``[B, 2, A, 1 + D, 1 + D]``, see `mg2l.ops.innovation_moments`.
        """
        now = self.regressand(drawn.rows)
        return self.backend.innovation_moments(
            torch.cat([now.reward.unsqueeze(-1), now.features], -1),
            drawn.rows,
            self.correlation,
            self.observation,
            places=drawn.places,
        )

    def _whitened(
        self, now: Regressand, before: Regressand, follows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Innovations of features ``[*, D]`` and rewards ``[*]``, all of the same variance."""
        part = self.correlation * follows
        scale = torch.where(follows > 0, (1 - self.correlation**2).rsqrt(), 1.0)
        features = now.features - part.unsqueeze(-1) * before.features
        return features * scale.unsqueeze(-1), (now.reward - part * before.reward) * scale

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
        """Pool transitions ``[N, T, A, F]``, each of which counts ``weight`` ``[N]`` times.

        Pooled are the means of `_products`; kept is what is regressed of the latest transition.
        """
        mass = (weight * rows.shape[1]).unsqueeze(1).expand(-1, rows.shape[2])
        products = self._whitened_products(self._moments(as_context(rows).distinct))
        return RunningPool(products, mass, self.regressand(rows[:, -1:]))

    def extend(self, pool: RunningPool | None, rows: Tensor, alive: Tensor) -> RunningPool:
        """Add a transition ``[N, A, F]`` of each agent that is ``alive`` ``[N, A]``."""
        now = self.regressand(rows.unsqueeze(1))
        if pool is None:
            products = self._products(*self._whitened(now, now, torch.zeros_like(now.reward)))
            return RunningPool(products, alive, now)
        before = Regressand(*pool.kept)
        products = self._products(*self._whitened(now, before, now.follows(before)))
        mass = pool.mass + alive
        part = (alive / mass.clamp(min=1))[..., None, None].to(products.dtype)
        return RunningPool(torch.lerp(pool.pooled, products, part), mass, now)

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
