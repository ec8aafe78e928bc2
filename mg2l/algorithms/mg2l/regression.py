"""Representations as coefficients: regression on learned features of transitions."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mg2l.algorithms.transition_encoder import TransitionMoments
from mg2l.core.distributed import world
from mg2l.experience.replay import Context, Distinct, as_context
from mg2l.nn.aggregators import RunningPool
from mg2l.nn.moments import RunningMoments
from mg2l.ops.backend import NATIVE, Backend

NOISE = 0.1
"""Variance of the errors of standardised rewards, before it has been learned."""

CHANGES = 4
"""Changes of an observation that are regressed; of wider ones, as many mixtures."""

RUN = 10
"""Consecutive transitions that are drawn together."""

WHOLE = 0.5
"""Fraction of the contexts of updates that hold all of their episodes. By these features are
learned fast, by the others how sure to be of few transitions."""

AGENTS = 2
"""Agents that an update learns from, others in each, where there are more with one policy."""

LOG_SCALE, FORMER_LOG_SCALE = 0.5, 3.0
"""Bound on the logarithm of the scale of a reward's error, up and down. Rewards that are rare would
else count as noise before anything is learned from them. The second is that of networks which were
saved without it."""

SIZE = 0.5
"""Root mean square of coefficients as policies read them."""

SIZE_RATE = 0.01
"""How much of the mean square of coefficients each update renews."""


class Regressand(NamedTuple):
    """What is regressed of transitions ``[*, F]``: targets, each beside its features."""

    reward: Tensor
    """``[*, 1 + D]``: the standardised reward and its features, the last of which is constant, all
    in units of the scale of the reward's error."""

    log_scale: Tensor
    """``[*]``, the logarithm of that scale."""

    change: Tensor
    """``[*, P, 1 + D]``: changes of the observation less what is expected in all tasks, and their
    features."""

    began: Tensor
    """``[*, O]``, observation before."""

    ended: Tensor
    """``[*, O]``, observation afterwards."""

    def split(self, rows: int) -> tuple[Regressand, Regressand]:
        """What belongs to the first rows, and to the others."""
        return Regressand(*(x[:rows] for x in self)), Regressand(*(x[rows:] for x in self))


class Regressed(NamedTuple):
    """What is known of A agents in B contexts, and how well it predicts others of their tasks."""

    x: Tensor
    """``[B, A, D]``, coefficients, which are not `TransitionRegression.scaled`."""

    errors: Tensor
    """``[A, 1 + P]``, see `TransitionRegression.squared_errors`."""

    log_share: Tensor
    """``[A]``, mean logarithm of the share that a context's own coefficients have of the likelihood
    of what they predict, among all of other tasks."""

    accuracy: Tensor
    """``[A]``, fraction of contexts whose own coefficients predict best."""


class Latest(NamedTuple):
    """What is kept of the latest transition of agents ``[*]``."""

    reward: Tensor
    """``[*, 1 + D]``, see `Regressand`."""

    earlier: Tensor
    """``[*, 1 + D]``, that of the transition before."""

    followed: Tensor
    """``[*]`` bool, whether it followed that one."""

    ended: Tensor
    """``[*, O]``, observation afterwards."""


class ChangeMoments(TransitionMoments):
    """Moments of every feature of transitions, and of the changes of observations.

    Args:
        features: F, observation + action + 1 + observation.
        observation: O.
    """

    def __init__(self, features: int, observation: int) -> None:
        super().__init__(features)
        self.change = RunningMoments(observation)

    def update(self, rows: Tensor, kept: Tensor | None = None) -> None:
        """Merge those transitions ``[*, F]`` for which ``kept`` ``[*]`` is true."""
        super().update(rows, kept)
        width = self.change.mean.shape[-1]
        change = (rows[..., -width:] - rows[..., :width]).flatten(0, -2)
        self.change.update(change, None if kept is None else kept.flatten())


class TransitionRegression(nn.Module):
    """Regression of what an agent's transitions led to on learned features of them.

    Rewards ``r_t = x . phi(o_t, a_t, o'_t) + e_t`` and, for tasks that show in the dynamics,
    changes of observations ``o'_t - o_t = f(o_t, a_t) + x . psi(o_t, a_t) + d_t``, all
    standardised, have coefficients ``x`` in common. ``psi`` is what an action does beside the mean
    action, for which it is 0: else coefficients would hold what team-mates do, which changes while
    they learn. These are the mean of their posterior by Bayesian linear regression (Harrison et
    al., 2018, *Meta-Learning Priors for Efficient Online Bayesian Regression*, arXiv:1807.08912),
    for errors of learned variances and the prior ``N(0, tau^2 I)``,

    ``x^i = argmin_x sum_t (e_t^2 / sigma^2 + sum_p d_tp^2 / sigma_p^2) + |x|^2 / tau^2``.

    ``tau^2`` is the mean square of the coefficients of the latest updates (empirical Bayes: Efron
    and Morris, 1973, JASA 68): as features are learned, coefficients become larger or smaller, and
    a variance that stays would trust the first transitions of a task too much or too little.

    Errors of rewards, each over a scale that is learned as a function of the transition (what can
    be computed from an observation is known well, a collision is not), are those of an
    autoregressive process of second order with two roots,
    ``e_t = (rho_1 + rho_2) e_{t-1} - rho_1 rho_2 e_{t-2} + u_t`` (generalised least squares:
    Cochrane and Orcutt, 1949): what an agent cannot explain of its rewards, such as where its
    team-mates are where they share a reward, changes slowly, and goes on as it began. From each
    transition what the two before let expect is subtracted, in features and reward. The roots are
    learned. Transitions follow each other if one ends where the other begins. The last feature of
    rewards is the constant. Shared by all agents; no agent's transitions reach another agent's
    ``x^i``.

    Args:
        hidden: widths of the hidden layers of ``phi``. ``f`` and ``psi`` are one network with a
            single hidden layer, as wide as the last of these.
        transition: width F of a transition.
        reward: the reward's column in it.
        width: D, number of features.
        backend: operators to compute with.
    """

    mixture: Tensor
    """``[O, P]``, where observations are mixed."""

    mean_square: Tensor
    """``[]``, of the coefficients of the latest updates, and their variance a priori."""

    log_scale_bound: Tensor
    """``[]``, `LOG_SCALE` of the version that trained it."""

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
        self.reward, self.observation = reward, transition - reward - 1
        self.width = width
        self.moments = ChangeMoments(transition, self.observation)
        self.changes = min(self.observation, CHANGES)
        self.of_rewards = _layers([transition - 1, *hidden, width])
        self.of_changes = _layers([reward, hidden[-1], self.changes * (1 + width)])
        if self.changes < self.observation:
            draws = torch.Generator().manual_seed(0)
            mixture = torch.randn(self.observation, self.changes, generator=draws)
            self.register_buffer("mixture", mixture / self.observation**0.5, persistent=False)
        self.register_buffer("mean_square", torch.ones(()))
        self.register_buffer("log_scale_bound", torch.tensor(LOG_SCALE))
        self.root_logits = nn.Parameter(torch.tensor([0.0, -1.0]))
        # Changes are not explained at first, so that they do not disturb where they say nothing.
        self.log_noise = nn.Parameter(torch.tensor([math.log(NOISE), *[0.0] * self.changes]))

    @property
    def roots(self) -> Tensor:
        """``rho_1`` and ``rho_2`` of the errors of rewards, ``[2]`` in ``(0, 1)``."""
        return self.root_logits.sigmoid()

    def _expected(self) -> tuple[Tensor, Tensor]:
        """What errors of rewards let expect, of variance 1 by themselves.

        Returns:
            Coefficients ``[3]`` of the error before, for an error of which only that is known, and
            of the two before; and the variances ``[3]`` of an error, given none, one and two.
        """
        one, two = self.roots.unbind()
        total, product = one + two, one * two
        alone = total / (1 + product)
        given_two = (1 - product) / (1 + product) * ((1 - one**2) * (1 - two**2))
        variances = torch.stack([torch.ones_like(total), 1 - alone**2, given_two])
        return torch.stack([alone, total, -product]), variances

    @property
    def precision(self) -> Tensor:
        """``[1 + P]`` in float64, the inverse variances of errors: of rewards, of changes."""
        return (-self.log_noise.double()).exp()

    def forward(self, context: Context | Tensor) -> Tensor:
        """``x`` of B contexts as `scaled`: ``[B, A, D]``."""
        context = as_context(context)
        return self.scaled(self._coefficients(self.regressand(context.distinct.rows), context))

    def scaled(self, x: Tensor) -> Tensor:
        """Coefficients as policies read them: of size `SIZE` in the latest updates.

        How large they are depends on how large features are, which changes while these are learned.
        """
        return x * SIZE * self._variance.rsqrt()

    @property
    def _variance(self) -> Tensor:
        """Of coefficients, a priori."""
        return self.mean_square.clamp(min=1e-8)

    def regress(self, known: Context | Tensor, asked: Context | Tensor, tasks: Tensor) -> Regressed:
        """Coefficients, and how well they predict; their mean square becomes that of the prior.

        Args:
            known: B contexts from which they are inferred.
            asked: B contexts that they predict.
            tasks: ``[B]`` int64, of both.
        """
        known, asked = as_context(known), as_context(asked)
        both, first = known.distinct.join(asked.distinct), len(known.distinct.rows)
        of_known, of_asked = self.regressand(both.rows).split(first)
        x = self._coefficients(of_known, known)
        every = world.gather(x)
        self.mean_square.lerp_(every.detach().square().mean(), SIZE_RATE)
        moments = self._moments(of_asked, asked.distinct)
        errors = self._squared_errors(x, of_asked, asked.distinct, moments)
        products = self._pooled(of_asked, asked.distinct, moments)
        return Regressed(x, errors, *self._recognised(every, products, tasks))

    def squared_errors(self, x: Tensor, context: Context | Tensor) -> Tensor:
        """Errors of predictions by ``x`` ``[B, A, D]`` of the transitions of B contexts.

        Returns:
            ``[A, 1 + P]``, mean squares over B and T of errors of standardised rewards and changes;
            of a reward that follows another, given the error of that one. Those of rewards are over
            their scales, the geometric mean of which counts as 1.
        """
        drawn = as_context(context).distinct
        now = self.regressand(drawn.rows)
        return self._squared_errors(x, now, drawn, self._moments(now, drawn))

    def regressand(self, rows: Tensor) -> Regressand:
        """What is regressed of transitions ``[*, F]``."""
        began, ended = rows[..., : self.observation], rows[..., self.reward + 1 :]
        changed = self.moments.change.standardise(ended - began)
        if self.changes < self.observation:
            changed = changed @ self.mixture
        rows = self.moments.standardise(rows)
        paid, chosen = rows[..., self.reward, None], rows[..., : self.reward]
        features, scale = self._features(
            torch.cat([chosen, rows[..., self.reward + 1 :]], -1), self.of_rewards
        ).split([self.width - 1, 1], -1)
        scale = self.log_scale_bound * (scale / self.log_scale_bound).tanh()
        reward = torch.cat([paid, features, torch.ones_like(paid)], -1) * (-scale).exp()
        # Less those of the mean action: what happens whatever an agent does is no task of its own.
        usual = F.pad(chosen[..., : self.observation], (0, self.reward - self.observation))
        both = self._features(torch.stack([chosen, usual]), self.of_changes)
        expected, features = both.unflatten(-1, (self.changes, -1)).split([1, self.width], -1)
        change = torch.cat([changed.unsqueeze(-1) - expected[0], features[0] - features[1]], -1)
        return Regressand(reward, scale.squeeze(-1), change, began, ended)

    def _features(self, x: Tensor, layers: nn.ModuleList) -> Tensor:
        weights, biases = zip(*((y.weight, y.bias) for y in layers), strict=True)
        return self.backend.gelu_mlp(x.flatten(0, -2), weights, biases).view(*x.shape[:-1], -1)

    def solve(self, products: Tensor, seen: Tensor) -> Tensor:
        """Coefficients ``[*, D]``.

        Args:
            products: means ``[*, D, 1 + D]`` over transitions, see `_products`.
            seen: ``[*]``, how many transitions these stand for.
        """
        wanted, gram = products[..., :1], products[..., 1:]
        prior = 1 / (seen.clamp(min=1).to(gram.dtype) * self._variance)
        matrix = gram + torch.diag_embed(prior.unsqueeze(-1).expand(gram.shape[:-1]))
        if torch.compiler.is_exporting():  # ONNX has no factorisation
            return _eliminate(matrix, wanted)
        factor = torch.linalg.cholesky_ex(matrix).L  # does not wait for a GPU to check
        return torch.cholesky_solve(wanted, factor).squeeze(-1)

    def _coefficients(self, now: Regressand, context: Context) -> Tensor:
        """Those ``[B, A, D]`` of B contexts, given what is regressed of their rows."""
        drawn = context.distinct
        products = self._pooled(now, drawn, self._moments(now, drawn))[..., 1:, :]
        seen = context.stands_for.unsqueeze(1).expand(products.shape[:2])
        return self.solve(products, seen).to(self.log_noise.dtype)

    def _pooled(self, now: Regressand, drawn: Distinct, moments: Tensor) -> Tensor:
        """Means of `_products` over the transitions of B contexts, ``[B, A, 1 + D, 1 + D]``.

        The first row is that of the targets themselves. ``moments``: see `_moments`.
        """
        variances = self._expected()[1].double()
        rewards = (moments / variances.view(-1, 1, 1, 1)).sum(1)
        own, of_changes = self.precision[0], self.precision[1:].sqrt().to(now.change.dtype)
        change = now.change if drawn.places is None else now.change[drawn.places]
        each = (change * of_changes.unsqueeze(-1)).transpose(1, 2).flatten(2, 3)
        products: Tensor = own * rewards + each.mT @ each / change.shape[1]
        return products

    def _squared_errors(
        self, x: Tensor, now: Regressand, drawn: Distinct, moments: Tensor
    ) -> Tensor:
        error = _error_of(x)
        column = error.double().unsqueeze(-1)
        of_rewards = (column * (moments.sum(1) @ column)).sum((-2, -1)).mean(0).to(x.dtype)
        log_scale = drawn.mean(now.log_scale.flatten(0, -2))
        log_scale = world.gather(log_scale.unsqueeze(0)).mean(0)  # of the contexts of all processes
        of_rewards = of_rewards * (2 * log_scale).exp()
        change = now.change.flatten(0, -4)
        of_changes = (change @ drawn.repeat(error).unsqueeze(-1)).squeeze(-1).square()
        return torch.cat([of_rewards.unsqueeze(-1), drawn.mean(of_changes)], -1)

    def _recognised(self, x: Tensor, products: Tensor, tasks: Tensor) -> tuple[Tensor, Tensor]:
        """By whose coefficients the transitions of B contexts are most likely.

        Candidates are a context's own coefficients and those of all contexts of other tasks.

        Args:
            x: ``[K, A, D]``, of the contexts of all processes.
            products: of what is asked, see `_pooled`.
            tasks: ``[B]``.

        Returns:
            ``log_share`` and ``accuracy`` of `Regressed`.
        """
        rows, tasks = torch.arange(len(products), device=x.device), tasks.to(x.device)
        own = rows + world.rank * len(rows)
        candidates = tasks.unsqueeze(1) != world.gather(tasks)
        candidates[rows, own] = True
        error = _error_of(x).double().transpose(0, 1)  # [A, K, 1 + D]
        squares = (error.unsqueeze(-1) * error.unsqueeze(-2)).flatten(2)
        scores = -products.transpose(0, 1).flatten(2) @ squares.mT / 2  # [A, B, K]
        scores = scores.masked_fill(~candidates, -torch.inf)
        of_own = scores.log_softmax(-1)[:, rows, own]
        accuracy = (scores.argmax(-1) == own).to(x.dtype).mean(-1)
        return of_own.mean(1).to(x.dtype), accuracy

    def _moments(self, now: Regressand, drawn: Distinct) -> Tensor:
        """Second moments of the innovations of rewards and features in B contexts.

        Returns:
            ``[B, 3, A, 1 + D, 1 + D]``, see `mg2l.ops.innovation_moments`.
        """
        coefficients = self._expected()[0]
        return self.backend.innovation_moments(
            now.reward, drawn.rows, coefficients, self.observation, places=drawn.places
        )

    def _whitened(self, now: Regressand, latest: Latest, follows: Tensor) -> Tensor:
        """Innovations of rewards and features ``[*, 1 + D]``, all of the same variance.

        Args:
            now: what is regressed.
            latest: of the transitions before.
            follows: ``[*]`` bool, whether these follow them.
        """
        (alone, first, second), variances = self._expected()
        both = (follows & latest.followed).unsqueeze(-1)
        follows = follows.unsqueeze(-1)
        before = torch.where(both, first, alone) * latest.reward
        expected = torch.where(follows, before, 0.0)
        expected = expected + torch.where(both, second * latest.earlier, 0.0)
        none, one, two = variances.rsqrt()
        return (now.reward - expected) * torch.where(both, two, torch.where(follows, one, none))

    def _products(self, reward: Tensor, change: Tensor) -> Tensor:
        """Features times targets and features, weighed by the precision of the targets' errors.

        Args:
            reward: ``[N, A, 1 + D]``.
            change: ``[N, A, P, 1 + D]``.

        Returns:
            ``[N, A, D, 1 + D]`` in float64: what is solved is ill-conditioned.
        """
        each = torch.cat([reward.unsqueeze(-2), change], -2).double()
        return (each[..., 1:] * self.precision.unsqueeze(-1)).mT @ each

    @staticmethod
    def upgrade(networks: dict[str, Tensor]) -> dict[str, Tensor]:
        """Regressions of before their bound was kept in them had `FORMER_LOG_SCALE`."""
        bounds = {
            name.replace("mean_square", "log_scale_bound"): torch.tensor(FORMER_LOG_SCALE)
            for name in networks
            if name.endswith("aggregator.mean_square")
        }
        return bounds | networks

    # One transition after the other.

    pools_as_it_goes = True

    def begin(self, rows: Tensor, weight: Tensor) -> RunningPool:
        """Pool transitions ``[N, T, A, F]``, each of which counts ``weight`` ``[N]`` times.

        Pooled are the means of `_products`; kept is the `Latest`.
        """
        mass = (weight * rows.shape[1]).unsqueeze(1).expand(-1, rows.shape[2])
        now, drawn = self.regressand(rows), Distinct(rows)
        products = self._pooled(now, drawn, self._moments(now, drawn))[..., 1:, :]
        before = self._latest(self.regressand(rows[:, max(rows.shape[1] - 2, 0)]))
        latest = self._latest(self.regressand(rows[:, -1]), before if rows.shape[1] > 1 else None)
        return RunningPool(products, mass, latest)

    def extend(self, pool: RunningPool | None, rows: Tensor, alive: Tensor) -> RunningPool:
        """Add a transition ``[N, A, F]`` of each agent that is ``alive`` ``[N, A]``."""
        now = self.regressand(rows)
        latest = self._latest(now, None if pool is None else Latest(*pool.kept))
        before = latest if pool is None else Latest(*pool.kept)
        products = self._products(self._whitened(now, before, latest.followed), now.change)
        if pool is None:
            return RunningPool(products, alive, latest)
        mass = pool.mass + alive
        part = (alive / mass.clamp(min=1))[..., None, None].to(products.dtype)
        return RunningPool(torch.lerp(pool.pooled, products, part), mass, latest)

    @staticmethod
    def _latest(now: Regressand, before: Latest | None = None) -> Latest:
        """What is kept of transitions, which may follow others."""
        if before is None:
            nothing = torch.zeros_like(now.ended[..., 0], dtype=torch.bool)
            return Latest(now.reward, torch.zeros_like(now.reward), nothing, now.ended)
        follows = (now.began == before.ended).all(-1)
        return Latest(now.reward, before.reward, follows, now.ended)

    def read_out(self, pool: RunningPool) -> Tensor:
        """``x`` as `scaled`, ``[N, A, D]``, of all transitions in a pool."""
        return self.scaled(self.solve(pool.pooled, pool.mass).float())


def _error_of(x: Tensor) -> Tensor:
    """``[*, 1 + D]``, which times targets and features is the error of ``x`` ``[*, D]``."""
    return torch.cat([torch.ones_like(x[..., :1]), -x], -1)


def _layers(sizes: list[int]) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(i, o) for i, o in itertools.pairwise(sizes))


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
