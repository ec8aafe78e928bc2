"""CORRO: single transitions are contrasted with what they might be in other tasks.

Yuan, Lu, *Robust Task Representations for Offline Meta-Reinforcement Learning via Contrastive
Learning*, ICML 2022, arXiv:2206.10442, for several agents.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mg2l.algorithms.agent import ContextAgent, slice_agent
from mg2l.algorithms.base import CriticLatent, Encoding
from mg2l.algorithms.context import ContextInference, InferredCriticLatent
from mg2l.algorithms.corro.config import CORROConfig
from mg2l.algorithms.losses import info_nce, pair_scores
from mg2l.algorithms.transition_encoder import TransitionEncoder, TransitionMoments
from mg2l.core.distributed import world
from mg2l.estimators.gaussian import STD_FLOOR, Gaussian, kl_to_standard
from mg2l.experience.problem import ProblemSpec
from mg2l.experience.replay import Context
from mg2l.experience.rollout import Rollout
from mg2l.nn.aggregators import PIAHead


def _mlp(sizes: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.GELU()]
    return nn.Sequential(*layers[:-1])


class Generator(nn.Module):
    """Conditional VAE of rewards and next observations over all tasks, ``p(r, o' | o, a, l)``.

    Trained on ``|(r, o') - decoded|^2 / 2 + KL(q(l | o, a, r, o') || N(0, I))``; with ``l`` from
    the prior it generates what ``(o, a)`` might have led to in some task.

    Args:
        spec: the sizes.
        hidden: layers of encoder and decoder.
        width: width of ``l``.
    """

    def __init__(self, spec: ProblemSpec, hidden: list[int], width: int) -> None:
        super().__init__()
        self.width, self.noise = width, spec.noise
        self.given = spec.observation + spec.action
        self.encoder = _mlp([spec.transition, *hidden, 2 * width])
        self.decoder = _mlp([self.given + width, *hidden, spec.observation + 1])

    def loss(self, transitions: Tensor) -> Tensor:
        """Negative evidence bound [nats] of standardised ``[*, F]``, up to a constant."""
        mean, raw_std = self.encoder(transitions).chunk(2, -1)
        q = Gaussian(mean, F.softplus(raw_std) + STD_FLOOR)
        given, outcome = transitions[..., : self.given], transitions[..., self.given :]
        decoded = self.decoder(torch.cat([given, q.sample(self.noise)], -1))
        error = 0.5 * (decoded - outcome).square().sum(-1)
        bound: Tensor = (error + kl_to_standard(q)).mean()
        return bound

    @torch.no_grad()
    def generate(self, transitions: Tensor, count: int) -> Tensor:
        """Transitions ``[*, count, F]`` with the same observations and actions."""
        given = transitions[..., : self.given].unsqueeze(-2)
        given = given.expand(*transitions.shape[:-1], count, self.given)

        def randn(shape: list[int]) -> Tensor:
            return torch.randn(shape, generator=self.noise, device=given.device)

        latent = world.draw(randn, (*given.shape[:-1], self.width))
        return torch.cat([given, self.decoder(torch.cat([given, latent], -1))], -1)


class CORRO(ContextInference):
    """Transition encoder by InfoNCE, attention over transitions by the value loss.

    For a transition ``x`` of a task, another one ``x'`` of it, and ``x_j`` that have the
    observation and action of ``x`` but generated reward and next observation (eq. 7 of the paper),

    ``L = -E log(e^{s(x, x')} / (e^{s(x, x')} + sum_j e^{s(x, x_j)}))``,

    with the cosine of their codes over ``temperature`` as ``s``.

    Decentralised: an actor's latent is what the attention reads from its own agent's transitions.
    """

    config_class = CORROConfig
    options: CORROConfig

    def __init__(self, spec: ProblemSpec) -> None:
        super().__init__(spec)
        options, width = self.options, self.options.context_dim
        self.codes = TransitionEncoder(options.hidden_sizes_mlp, spec.transition, width)
        self.generator = Generator(spec, options.hidden_sizes_mlp, options.generator_dim)
        self.attention = PIAHead(width, width, spec.backend)
        self.to(spec.device)
        self.train_with(list(self.parameters()))

    def moments(self) -> list[TransitionMoments]:
        return [self.codes.moments]

    def infer(self, context: Context) -> Encoding:
        codes = self.codes(context).detach()  # [B, A, T, D]: the attention alone learns from it
        local, joint = self.attention(codes), self.attention(codes.flatten(1, 2))
        return Encoding(
            Gaussian(joint, torch.zeros_like(joint)), Gaussian(local, torch.zeros_like(local))
        )

    def agent_network(self, agent: int) -> CORROAgent:
        return CORROAgent(self, agent)

    def critic_latent(self, tasks: np.ndarray, rollout: Rollout) -> CriticLatent:
        context = self.contexts(torch.as_tensor(tasks))
        return InferredCriticLatent(lambda: self.infer(context).task.mean)

    def trained_by_critic(self) -> list[nn.Parameter]:
        return list(self.attention.parameters())

    def pretrain(self) -> None:
        """The generator comes first: what it makes up untrained is recognised by that alone."""
        for _ in range(self.options.generator_lead * self.options.n_init_updates):
            drawn = self.short_contexts(world.own(self.update_tasks())).gather()
            loss = self.generator.loss(self.codes.moments.standardise(drawn))
            self._step(*self._differentiate(loss, {}, {"transitions": drawn}))
        super().pretrain()

    def loss(self, measure_gap: bool) -> tuple[Tensor, dict[str, Tensor], dict[str, Any]]:
        tasks = world.own(self.update_tasks())
        drawn = self.short_contexts(tasks).gather()  # [B, T, A, F]
        # Half of a context's transitions are contrasted, the other half are their positives.
        half = drawn.shape[1] // 2
        contrasted = drawn[:, :half]
        moments = self.codes.moments
        standardised = moments.standardise(contrasted)
        generated = moments.restore(
            self.generator.generate(standardised, self.options.generated_negatives)
        )
        codes = self.codes(drawn[:, : 2 * half]).transpose(1, 2)  # [B, T, A, D]
        query, positive = codes[:, :half], codes[:, half:]
        # Encoded as B half T contexts, each of the transitions that are generated for one.
        negatives = self.codes(generated.flatten(0, 1).transpose(1, 2)).unflatten(
            0, contrasted.shape[:2]
        )
        keys = torch.cat([positive.unsqueeze(-2), negatives], -2)  # [B, T, A, 1 + negatives, D]
        scores = pair_scores(
            query.flatten(0, 2), keys.flatten(0, 2), "cosine", self.options.temperature,
            own_keys=True,
        )  # fmt: skip
        first = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
        bound = info_nce(scores, first)
        generator = self.generator.loss(standardised)
        metrics = {
            "corro/bound": bound.bound,
            "corro/accuracy": bound.accuracy,
            "corro/generator": generator,
        }
        return generator - bound.bound, metrics, {"transitions": drawn, "tasks": tasks}


class CORROAgent(ContextAgent):
    """Codes of the transitions of one agent, and the attention over them."""

    def __init__(self, inference: CORRO, agent: int) -> None:
        super().__init__(inference.codes.moments)
        self.codes = slice_agent(inference.codes, agent)
        self.attention = slice_agent(inference.attention, agent)

    def infer(self, context: Tensor) -> Gaussian:
        mean = self.attention(self.codes(context))
        return Gaussian(mean, torch.zeros_like(mean))
