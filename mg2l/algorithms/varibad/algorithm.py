"""VariBAD: a belief over the task, kept across episodes, that explains past and future.

Zintgraf, Shiarlis, Igl, Schulze, Gal, Hofmann, Whiteson, *VariBAD: A Very Good Method for
Bayes-Adaptive Deep RL via Meta-Learning*, ICLR 2020, arXiv:1910.08348, for several agents.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mg2l.algorithms.belief import BeliefInference
from mg2l.algorithms.varibad.config import VariBADConfig
from mg2l.estimators.gaussian import Gaussian, kl_between
from mg2l.experience.problem import ProblemSpec
from mg2l.nn.decoder import Decoder


class VariBAD(BeliefInference):
    """Posteriors ``q(z | transitions before t)``, one encoder and two decoders per agent.

    With ``z_t ~ q_t``, the mean over t of (eq. 8 of the paper, squared errors for densities)

    ``sum_s (observation_weight |o_{s+1} - o'(o_s, a_s, z_t)|^2 + reward_weight |r_s - r'(o_s, a_s,
    o_{s+1}, z_t)|^2) + kl_weight KL(q_t || q_{t-1})``,

    where ``s`` runs over the whole trajectory, and ``q_{-1} = N(0, I)``. The sum is estimated from
    ``decoded_steps`` of its terms.

    Decentralised: an agent infers from its own transitions only, in all episodes of a task.
    """

    config_class = VariBADConfig
    options: VariBADConfig

    def __init__(self, spec: ProblemSpec) -> None:
        super().__init__(spec)
        before = spec.observation + spec.action + self.options.context_dim
        after = before + spec.observation
        sizes = self.options.decoder_sizes_mlp
        self.dynamics = Decoder(self.agents, before, sizes, spec.observation)
        self.reward = Decoder(self.agents, after, sizes, 1)
        self.to(self.device)
        self.train_with(list(self.parameters()))

    def negative_elbo(self, transitions: Tensor, reset: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        q = self.beliefs(transitions, reset)  # [A, T, B, D]
        steps = len(transitions)
        terms, decoded = (
            torch.randperm(steps, generator=self.draws, device=self.device)[:count]
            for count in (self.options.elbo_terms, self.options.decoded_steps)
        )
        z = q.sample(self.noise, dim=2)[:, terms].unsqueeze(2)  # [A, terms, 1, B, D]
        shape = (-1, len(terms), len(decoded), -1, -1)
        z = z.expand(shape)
        observations, actions, rewards, finals = (
            part[decoded].movedim(2, 0).unsqueeze(1).expand(shape)
            for part in self.transitions.split(transitions)
        )
        decoded_finals = self.dynamics(torch.cat([observations, actions, z], -1))
        decoded_rewards = self.reward(torch.cat([observations, actions, finals, z], -1))
        metrics = {
            "belief/observation_error": (decoded_finals - finals).square().mean(),
            "belief/reward_error": (decoded_rewards - rewards).square().mean(),
            "belief/kl": kl_between(q, previous_belief(q, reset)).mean(),
        }
        loss = (
            steps * self.options.observation_weight * metrics["belief/observation_error"]
            + steps * self.options.reward_weight * metrics["belief/reward_error"]
            + self.options.kl_weight * metrics["belief/kl"]
        )
        return loss, metrics


def previous_belief(q: Gaussian, reset: Tensor) -> Gaussian:
    """The belief one step earlier, ``N(0, I)`` after a reset: both ``[A, T, B, D]``."""
    resets = reset[None, :, :, None]
    return Gaussian(
        q.mean.roll(1, 1).masked_fill(resets, 0.0), q.std.roll(1, 1).masked_fill(resets, 1.0)
    )
