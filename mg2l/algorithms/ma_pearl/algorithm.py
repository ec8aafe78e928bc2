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

from mg2l.algorithms.agent import ContextAgent, slice_agent
from mg2l.algorithms.base import CriticLatent, Encoding
from mg2l.algorithms.context import ContextInference, InferredCriticLatent
from mg2l.algorithms.ma_pearl.config import MAPearlConfig
from mg2l.algorithms.transition_encoder import TransitionEncoder, TransitionMoments
from mg2l.core.distributed import world
from mg2l.estimators.gaussian import Gaussian, kl_to_standard
from mg2l.experience.problem import ProblemSpec
from mg2l.experience.replay import Context
from mg2l.experience.rollout import Rollout
from mg2l.nn.aggregators import product_of_gaussians

_VARIANCE_FLOOR = 1e-7


def posterior(factors: Tensor) -> Gaussian:
    """Product of Gaussians, raw means and standard deviations ``[*, T, 2 D]``: ``[*, D]``."""
    means, raw_stds = factors.chunk(2, -1)
    mean, precision = product_of_gaussians(means, F.softplus(raw_stds) + _VARIANCE_FLOOR)
    return Gaussian(mean, precision.rsqrt())


class MAPearl(ContextInference):
    """``q(z|c) = prod_t N(mu(c_t), sigma^2(c_t))``, trained by value loss and KL to ``N(0, I)``.

    ``L = L_V(z) + kl_weight KL(q(z|c) || N(0, I))`` with ``z ~ q(z|c)`` (eq. 1 of the paper, with
    the value loss of PPO for that of an off-policy critic). The critic's ``c`` are all agents'
    transitions.

    Decentralised: an actor's latent is a sample from the product of its own agent's factors only.
    """

    config_class = MAPearlConfig
    options: MAPearlConfig

    def __init__(self, spec: ProblemSpec) -> None:
        super().__init__(spec)
        width = self.options.context_dim
        self.factors = TransitionEncoder(
            self.options.hidden_sizes_mlp, spec.transition, 2 * width, spec.vision
        ).to(spec.device)
        self.train_with(list(self.factors.parameters()))

    def moments(self) -> list[TransitionMoments]:
        return [self.factors.moments]

    def infer(self, context: Context) -> Encoding:
        factors = self.factors(context)  # [B, A, T, 2 D]
        return Encoding(posterior(factors.flatten(1, 2)), posterior(factors))

    def agent_network(self, agent: int) -> MAPearlAgent:
        return MAPearlAgent(self, agent)

    def trained_by_critic(self) -> list[nn.Parameter]:
        return self.trained

    def critic_latent(self, tasks: np.ndarray, rollout: Rollout) -> CriticLatent:
        return _Posterior(self, torch.as_tensor(tasks))

    def update(self) -> dict[str, Any]:
        """Measure how far posteriors are from the prior; the value loss trains all parameters."""
        with torch.no_grad(), world.local():
            encoding = self.infer(self.contexts(torch.arange(self.tasks)))
        return {
            "kl/global": float(kl_to_standard(encoding.task).mean()),
            "kl/local": float(kl_to_standard(encoding.local).mean()),
        }

    def pretrain(self) -> None:
        """Does nothing: there is no value loss yet."""


class _Posterior(InferredCriticLatent):
    """A sample of the posterior of fresh contexts, and its KL to the prior beside the value loss.

    With every critic step, as in PEARL: its encoder has no other loss to learn from.
    """

    every_minibatch = True

    def __init__(self, inference: MAPearl, tasks: Tensor) -> None:
        super().__init__(self._sample)
        self.inference, self.tasks = inference, tasks
        self._q: Gaussian | None = None

    def _sample(self) -> Tensor:
        self._q = self.inference.infer(self.inference.contexts(self.tasks)).task
        return self.inference.latent_of(self._q)

    def penalty(self) -> Tensor:
        assert self._q is not None
        return self.inference.options.kl_weight * kl_to_standard(self._q).mean()


class MAPearlAgent(ContextAgent):
    """Product of the factors of one agent's transitions."""

    def __init__(self, inference: MAPearl, agent: int) -> None:
        super().__init__(inference.factors.moments)
        self.factors = slice_agent(inference.factors, agent)

    def infer(self, context: Tensor) -> Gaussian:
        return posterior(self.factors(context))
