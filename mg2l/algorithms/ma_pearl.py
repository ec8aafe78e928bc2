"""MA-PEARL: a belief over the task that is a product of Gaussian factors, one per transition.

Rakelly, Zhou, Quillen, Finn, Levine, *Efficient Off-Policy Meta-Reinforcement Learning via
Probabilistic Context Variables*, ICML 2019, arXiv:1903.08254, for several agents.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mg2l.algorithms.base import CriticLatent
from mg2l.algorithms.context import ContextInference, InferredCriticLatent
from mg2l.algorithms.encoder import Encoding, TransitionEncoder, TransitionMoments
from mg2l.estimators.gaussian import Gaussian, kl_to_standard
from mg2l.experience.problem import ProblemSpec
from mg2l.experience.replay import Context
from mg2l.experience.rollout import Rollout

_VARIANCE_FLOOR = 1e-7


def product_of_gaussians(means: Tensor, variances: Tensor) -> Gaussian:
    """The normalised product of factors ``[*, T, D]`` over their next-to-last axis, ``[*, D]``.

    Precisions add up, and the mean is weighted by them (eq. 2 of the paper).
    """
    precisions = 1 / variances
    total = precisions.sum(-2)
    return Gaussian((precisions * means).sum(-2) / total, total.rsqrt())


def posterior(factors: Tensor) -> Gaussian:
    """Product of Gaussians whose raw means and spreads are ``[*, T, 2 D]``: ``[*, D]``."""
    means, spreads = factors.chunk(2, -1)
    return product_of_gaussians(means, F.softplus(spreads) + _VARIANCE_FLOOR)


class MAPearl(ContextInference):
    """``q(z|c) = prod_t N(mu(c_t), sigma^2(c_t))``, trained by value loss and KL to ``N(0, I)``.

    ``L = L_V(z) + kl_weight KL(q(z|c) || N(0, I))`` with ``z ~ q(z|c)`` (eq. 1 of the paper, with
    the value loss of PPO for that of an off-policy critic). The critic's ``c`` are all agents'
    transitions.

    Decentralised: an actor is told a sample of the product of its own agent's factors alone.
    """

    def __init__(self, spec: ProblemSpec) -> None:
        super().__init__(spec)
        width = self.options.context_dim
        self.factors = TransitionEncoder(self.options, spec.transition, 2 * width, spec.vision).to(
            spec.device
        )
        self.train_with(list(self.factors.parameters()))

    def moments(self) -> list[TransitionMoments]:
        return [self.factors.moments]

    def infer(self, context: Context) -> Encoding:
        factors = self.factors(context)  # [B, A, T, 2 D]
        return Encoding(posterior(factors.flatten(1, 2)), posterior(factors))

    def trained_by_critic(self) -> list[nn.Parameter]:
        return self.trained

    def critic_latent(self, tasks: np.ndarray, rollout: Rollout) -> CriticLatent:
        return _Posterior(self, self.contexts(torch.as_tensor(tasks)))

    def update(self) -> dict[str, Any]:
        """Nothing: the value loss has trained all. How far posteriors are from the prior."""
        with torch.no_grad():
            encoding = self.infer(self.contexts(torch.arange(self.tasks)))
        return {
            "kl/global": float(kl_to_standard(encoding.task).mean()),
            "kl/local": float(kl_to_standard(encoding.local).mean()),
        }

    def pretrain(self) -> None:
        """Nothing: there is no value loss yet."""


class _Posterior(InferredCriticLatent):
    """A sample of the posterior in each epoch, and its KL to the prior beside the value loss."""

    def __init__(self, inference: MAPearl, context: Context) -> None:
        super().__init__(self._sample)
        self.inference, self.context = inference, context
        self._q: Gaussian | None = None

    def _sample(self) -> Tensor:
        self._q = self.inference.infer(self.context).task
        return self.inference.latent_of(self._q)

    def penalty(self) -> Tensor:
        assert self._q is not None
        return self.inference.options.kl_weight * kl_to_standard(self._q).mean()
