"""CORRO: single transitions are contrasted with what they would be in other tasks.

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

from mg2l.algorithms.base import CriticLatent
from mg2l.algorithms.context import ContextInference, InferredCriticLatent
from mg2l.algorithms.encoder import Encoding, TransitionEncoder, TransitionMoments
from mg2l.algorithms.losses import info_nce, pair_scores
from mg2l.config.sections import Config
from mg2l.core.schema import ConfigError, check_steps
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
    the prior it makes up what ``(o, a)`` might have led to in some task.

    Args:
        spec: the sizes.
        hidden: layers of encoder and decoder.
        width: of ``l``.
    """

    def __init__(self, spec: ProblemSpec, hidden: list[int], width: int) -> None:
        super().__init__()
        self.width, self.noise = width, spec.noise
        self.given = spec.observation + spec.action
        self.encoder = _mlp([spec.transition, *hidden, 2 * width])
        self.decoder = _mlp([self.given + width, *hidden, spec.observation + 1])

    def loss(self, transitions: Tensor) -> Tensor:
        """Negative evidence bound [nats], but for a constant, of standardised ``[*, F]``."""
        mean, spread = self.encoder(transitions).chunk(2, -1)
        q = Gaussian(mean, F.softplus(spread) + STD_FLOOR)
        given, outcome = transitions[..., : self.given], transitions[..., self.given :]
        found = self.decoder(torch.cat([given, q.sample(self.noise)], -1))
        error = 0.5 * (found - outcome).square().sum(-1)
        bound: Tensor = (error + kl_to_standard(q)).mean()
        return bound

    @torch.no_grad()
    def make_up(self, transitions: Tensor, count: int) -> Tensor:
        """Transitions ``[*, count, F]`` with the same observations and actions."""
        given = transitions[..., : self.given].unsqueeze(-2)
        given = given.expand(*transitions.shape[:-1], count, self.given)
        shape = (*given.shape[:-1], self.width)
        latent = torch.randn(shape, generator=self.noise, device=given.device)
        return torch.cat([given, self.decoder(torch.cat([given, latent], -1))], -1)


class CORRO(ContextInference):
    """Transition encoder by InfoNCE, attention over transitions by the value loss.

    For a transition ``x`` of a task, another one ``x'`` of it, and ``x_j`` that have the
    observation and action of ``x`` but made-up reward and next observation (eq. 7 of the paper),

    ``L = -E log(e^{s(x, x')} / (e^{s(x, x')} + sum_j e^{s(x, x_j)}))``,

    with the cosine of their codes over ``temperature`` as ``s``.

    Decentralised: an actor is told what the attention makes of its own agent's transitions alone.
    """

    def __init__(self, spec: ProblemSpec) -> None:
        super().__init__(spec)
        options, width = self.options, self.options.context_dim
        self.codes = TransitionEncoder(options, spec.transition, width)
        self.generator = Generator(spec, options.hidden_sizes_mlp, options.generator_dim)
        self.attention = PIAHead(width, width, spec.path)
        self.to(spec.device)
        self.train_with(list(self.parameters()))

    @classmethod
    def check_config(cls, config: Config) -> None:
        super().check_config(config)
        options = config.encoder
        if options.update_transitions < 2:  # one of a context is contrasted with another
            raise ConfigError(
                f"corro needs update_transitions of at least 2, got {options.update_transitions}"
            )
        check_steps(
            update_contexts=options.update_contexts,
            update_transitions=options.update_transitions,
            generated_negatives=options.generated_negatives,
        )

    def moments(self) -> list[TransitionMoments]:
        return [self.codes.moments]

    def infer(self, context: Context) -> Encoding:
        codes = self.codes(context).detach()  # [B, A, T, D]: the attention alone learns from it
        local, everybodys = self.attention(codes), self.attention(codes.flatten(1, 2))
        return Encoding(
            Gaussian(everybodys, torch.zeros_like(everybodys)),
            Gaussian(local, torch.zeros_like(local)),
        )

    def critic_latent(self, tasks: np.ndarray, rollout: Rollout) -> CriticLatent:
        context = self.contexts(torch.as_tensor(tasks))
        return InferredCriticLatent(lambda: self.infer(context).task.mean)

    def trained_by_critic(self) -> list[nn.Parameter]:
        return list(self.attention.parameters())

    def loss(self, measure_gap: bool) -> tuple[Tensor, dict[str, Tensor], dict[str, Any]]:
        tasks = self.update_tasks()
        drawn = self.short_contexts(tasks).gather()  # [B, T, A, F]
        # Half of a context's transitions are contrasted, the other half are their positives.
        half = drawn.shape[1] // 2
        ours = drawn[:, :half]
        moments = self.codes.moments
        standardised = moments.standardise(ours)
        made_up = moments.restore(
            self.generator.make_up(standardised, self.options.generated_negatives)
        )
        codes = self.codes(drawn[:, : 2 * half]).transpose(1, 2)  # [B, T, A, D]
        query, positive = codes[:, :half], codes[:, half:]
        # As contexts: of B half T "contexts", each with as many transitions as are made up.
        negatives = self.codes(made_up.flatten(0, 1).transpose(1, 2)).unflatten(0, ours.shape[:2])
        keys = torch.cat([positive.unsqueeze(-2), negatives], -2)  # [B, T, A, 1 + negatives, D]
        scores = pair_scores(
            query.flatten(0, 2), keys.flatten(0, 2), "cosine", self.options.temperature,
            own_keys=True,
        )  # fmt: skip
        first = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
        found = info_nce(scores, first)
        generator = self.generator.loss(standardised)
        metrics = {
            "corro/bound": found.bound,
            "corro/accuracy": found.accuracy,
            "corro/generator": generator,
        }
        return generator - found.bound, metrics, {"transitions": drawn, "tasks": tasks}
