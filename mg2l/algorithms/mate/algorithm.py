"""MATE: multi-agent task embeddings that explain rewards and next observations.

Schaefer, Christianos, Storkey, Albrecht, *Learning Task Embeddings for Teamwork Adaptation in
Multi-Agent Reinforcement Learning*, 2022, arXiv:2207.02249.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mg2l.algorithms.belief import BeliefInference
from mg2l.algorithms.mate.config import MATEConfig
from mg2l.estimators.gaussian import kl_to_standard
from mg2l.experience.problem import ProblemSpec
from mg2l.nn.decoder import Decoder


class MATE(BeliefInference):
    """Embeddings of three kinds (``mate_encoding``), trained as variational autoencoders.

    With ``z_t ~ q(z | transitions before t)`` and decoders of ``r_t`` and ``o_{t+1}`` from
    ``(o_t, a_t, z_t)``,

    ``L = observation_weight |o_{t+1} - o'(o_t, a_t, z_t)|^2 + reward_weight |r_t - r'(o_t, a_t,
    z_t)|^2 + kl_weight KL(q || N(0, I))``.

    The embedding is the one that was acted on, so a decoder predicts what it has not seen.

    - ``own`` (independent MATE): encoder and decoder per agent, from and of its own transitions.
    - ``joint`` (centralised): one of each, from and of the joint transitions of the team. Inference
      is centralised at meta-test, too.
    - ``mixed``: encoders per agent, from its own transitions; one decoder of the joint ones, from
      the embedding of agent ``i`` with probability ``w_i``, a softmax of all observations. The loss
      is the expectation over ``i``.

    Decentralised except for ``joint``: an agent infers from its own transitions only.
    """

    config_class = MATEConfig
    options: MATEConfig

    def __init__(self, spec: ProblemSpec) -> None:
        assert isinstance(spec.config.algo, MATEConfig)
        kind = spec.config.algo.mate_encoding
        super().__init__(spec, joint=kind == "joint")
        self.decodes_team = kind != "own"
        groups, team = (1, self.agents) if self.decodes_team else (self.agents, 1)
        known = team * (spec.observation + spec.action) + self.options.context_dim
        sizes = self.options.decoder_sizes_mlp
        self.decoder = Decoder(groups, known, sizes, team * (spec.observation + 1))
        self.mixer: Decoder | None = None
        if kind == "mixed":
            self.mixer = Decoder(1, team * spec.observation, sizes[:1], self.agents)
        self.to(self.device)
        self.train_with(list(self.parameters()))

    def negative_elbo(self, transitions: Tensor, reset: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        q = self.beliefs(transitions, reset)
        z = q.sample(self.noise, dim=2)  # [G, T, B, D]
        observations, actions, rewards, finals = (
            part.movedim(2, 0) for part in self.transitions.split(transitions)
        )
        if self.decodes_team:
            observations, actions, rewards, finals = (
                part.movedim(0, 2).flatten(2).unsqueeze(0)
                for part in (observations, actions, rewards, finals)
            )
        known = torch.cat([observations, actions], -1).expand(len(z), -1, -1, -1)
        decoded = torch.cat([known, z], -1)
        if self.mixer is not None:  # one decoder for all agents' embeddings
            decoded = self.decoder(decoded.flatten(0, 1).unsqueeze(0)).view(*z.shape[:-1], -1)
        else:
            decoded = self.decoder(decoded)
        sizes = [finals.shape[-1], rewards.shape[-1]]
        decoded_finals, decoded_rewards = decoded.split(sizes, -1)
        errors = {
            "belief/observation_error": (decoded_finals - finals).square().mean(-1),
            "belief/reward_error": (decoded_rewards - rewards).square().mean(-1),
        }
        if self.mixer is not None:
            weights = torch.softmax(self.mixer(observations), -1)[0].movedim(-1, 0)  # [A, T, B]
            errors = {name: (error * weights).sum(0) for name, error in errors.items()}
        metrics = {name: error.mean() for name, error in errors.items()}
        metrics["belief/kl"] = kl_to_standard(q).mean()
        loss = (
            self.options.observation_weight * metrics["belief/observation_error"]
            + self.options.reward_weight * metrics["belief/reward_error"]
            + self.options.kl_weight * metrics["belief/kl"]
        )
        return loss, metrics
