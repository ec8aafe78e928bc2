"""MG2L: critics infer the task from the team's joint experience, each actor from its agent's own.

Zhao, Fu, Chai, Zhu, Zhao, *Meta Learning Task Representation in Multiagent Reinforcement
Learning: From Global Inference to Local Inference*, IEEE TNNLS 36(8), 2025.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mg2l.algorithms.agent import ContextAgent, Standardise, slice_agent
from mg2l.algorithms.base import CriticLatent, Encoding
from mg2l.algorithms.context import ContextInference, InferredCriticLatent
from mg2l.algorithms.growing import GrowingContexts, PooledContexts
from mg2l.algorithms.mg2l.config import MG2LConfig
from mg2l.algorithms.mg2l.encoder import RawEncoding, TaskEncoder, TransitionAggregator
from mg2l.algorithms.mg2l.objective import Objective
from mg2l.algorithms.mg2l.prediction import RewardPrediction
from mg2l.algorithms.mg2l.regression import AGENTS, RUN, WHOLE, Regressed, TransitionRegression
from mg2l.algorithms.transition_encoder import TransitionMoments
from mg2l.core.distributed import world
from mg2l.core.schema import ConfigError
from mg2l.core.transfer import to_device
from mg2l.estimators.gaussian import Gaussian
from mg2l.experience.finite import require_finite
from mg2l.experience.problem import ProblemSpec
from mg2l.experience.replay import Context
from mg2l.experience.rollout import Rollout
from mg2l.nn.vjp import Both, Pull

EXPLORING_CONTEXTS = 640
"""Contexts of all tasks whose mean representations agents explore with."""


class MG2L(ContextInference):
    """Multi-level task encoder and its training.

    Decentralised: at meta-test each agent infers from its own transitions only, except with
    ``actor_latent: global``, where all share a representation of their joint transitions.
    """

    config_class = MG2LConfig
    options: MG2LConfig
    means: Tensor

    def __init__(self, spec: ProblemSpec) -> None:
        super().__init__(spec)
        options, device, backend = self.options, spec.device, spec.backend
        share = spec.config.policy.share_policy
        if options.aggregator == "regression" and spec.vision is not None:
            raise ConfigError(
                "aggregator=regression reads observations as numbers, and these are images; choose "
                "another aggregator"
            )
        self.update_agents = self.agents
        if options.aggregator == "regression":
            self.run, self.whole_contexts = RUN, WHOLE
            self.update_agents = min(self.agents, AGENTS) if share else self.agents
        reward = spec.observation + spec.action
        self.encoder = TaskEncoder(
            options, self.agents, spec.transition, backend, share, spec.vision, reward
        ).to(device)
        self.objective = Objective(
            options, self.tasks, self.encoder, self.noise, backend, share
        ).to(device)
        self.target: TaskEncoder | None = None
        if options.target_decay > 0:
            self.target = copy.deepcopy(self.encoder).requires_grad_(False)
            self._followed: tuple[list[Tensor], list[Tensor]] = (
                [*self.target.parameters()],
                [*self.encoder.parameters()],
            )
        trained: list[nn.Module] = [self.objective]
        self.prediction: RewardPrediction | None = None
        if options.prediction_weight > 0:
            self.prediction = RewardPrediction(options, spec, self.update_agents, share).to(device)
            trained.append(self.prediction)
        self.train_with([p for part in trained for p in part.parameters() if p.requires_grad])
        if options.critic_latent == "local":
            self.critic_latent_dim = self.agents * options.context_dim
        if options.critic_latent == "both":
            self.critic_latent_dim = (1 + self.agents) * options.context_dim
        if options.bounded_by == "sphere":
            self.prior = "sphere"
        # Mean representation of each task at the last update, global first: [K, 1 + A, D].
        shape = (self.tasks, 1 + self.agents, options.context_dim)
        self.register_buffer("means", torch.zeros(shape, device=device))

    @classmethod
    def upgrade(cls, networks: dict[str, Tensor], written: int) -> dict[str, Tensor]:
        return TransitionRegression.upgrade(networks)

    # Conditioning.

    @property
    def acting(self) -> TaskEncoder:
        """The encoder of the actors' latents, and of critics' where these do not train it."""
        return self.encoder if self.target is None else self.target

    def infer(self, context: Context) -> Encoding:
        encoding: Encoding = self.acting(context)
        return encoding

    def moments(self) -> list[TransitionMoments]:
        encoders = [self.encoder] if self.target is None else [self.encoder, self.target]
        return [encoder.aggregator.moments for encoder in encoders]

    def project(self, z: Tensor) -> Tensor:
        return self.encoder.project(z)

    def growing_latent(
        self,
        num_envs: int,
        earlier: Tensor | None = None,
        seen: Tensor | None = None,
        seed: int | None = None,
    ) -> GrowingContexts:
        if not self.acting.aggregator.pools_as_it_goes:
            return super().growing_latent(num_envs, earlier, seen, seed)
        return PooledContexts(self, self.acting, self.unknown(num_envs), earlier, seen, seed)

    def latent_for_actors(self, encoding: Encoding) -> Tensor:
        if self.decentralised:
            return super().latent_for_actors(encoding)
        return self.latent_of(encoding.task).unsqueeze(1).expand(-1, self.agents, -1)

    def latent_for_critic(self, encoding: Encoding) -> Tensor:
        if self.options.critic_latent == "local":
            return self.latent_of(encoding.local).flatten(1)
        return super().latent_for_critic(encoding)

    def critic_latent(self, tasks: np.ndarray, rollout: Rollout) -> CriticLatent:
        acted: Tensor | None = None
        if self.options.critic_latent == "both":
            acted = CriticLatent.same_as_actors(rollout)()

        def beside(z: Tensor | None) -> Tensor:
            assert z is not None
            return z if acted is None else torch.cat([z.expand(len(acted), -1, -1), acted], -1)

        if not self.options.critic_to_encoder:
            return CriticLatent(beside(super().critic_latent(tasks, rollout)()))
        context = self.contexts(to_device(tasks, self.device))
        if acted is None and self.rollout.act_on == "mean" and self.encoder.has_vjp:
            return _TaskLatent(self.encoder, context)
        return InferredCriticLatent(
            lambda: beside(self.latent_of(self.encoder.infer_task(context)))
        )

    def trained_by_critic(self) -> list[nn.Parameter]:
        if not self.options.critic_to_encoder:
            return []
        return [*self.encoder.aggregator.parameters(), *self.encoder.over_agents.parameters()]

    @property
    def has_priorities(self) -> bool:
        return self.options.aggregator == "pia"

    def priorities(self, context: Context | Tensor) -> Tensor:
        aggregator = self.acting.aggregator
        assert isinstance(aggregator, TransitionAggregator)
        return aggregator.priorities(context)

    @torch.no_grad()
    def information(self, context: Context, tasks: Tensor) -> dict[str, float]:
        keys = self._keys(self.contexts, tasks)
        bounds = self.objective(context, tasks, keys, self.acting)[1]
        return {name: float(bound) for name, bound in bounds.items() if name.startswith("mi/")}

    @property
    def measured(self) -> int:
        if self.options.explore_with != "tasks":
            return super().measured
        return max(2, min(16, EXPLORING_CONTEXTS // self.tasks))  # agents act on their means

    # Decentralised execution.

    @property
    def decentralised(self) -> bool:
        return self.options.actor_latent == "local"

    def agent_manifest(self) -> dict[str, Any]:
        manifest = super().agent_manifest()
        if self.options.explore_with == "tasks" and bool(self.means.any()):
            manifest["context"]["explorers"] = self.explorers.tolist()
        return manifest

    def agent_network(self, agent: int) -> MG2LAgent:
        if not self.decentralised:
            raise ValueError(
                "actor_latent=global: all agents act on what is inferred from joint transitions"
            )
        return MG2LAgent(self, agent)

    # Exploration.

    def sample_explorer(self, num_envs: int) -> Tensor:
        # Before the first update, there are no means: every agent explores with the prior.
        if self.options.explore_with == "prior" or not bool(self.means.any()):
            return super().sample_explorer(num_envs)
        shape = (1, num_envs, self.agents)
        tasks = torch.randint(self.tasks, shape, generator=self.draws, device=self.device)
        return self.explorers[tasks, torch.arange(self.agents, device=self.device)]

    @property
    def explores_on_context(self) -> bool:
        return self.options.explore_with == "context"

    @property
    def explorers(self) -> Tensor:
        """``[K, A, D]``: mean representation of each training task, of each agent."""
        return self.project(self.means[:, 1:])

    # Training.

    def _keys(self, draw: Callable[[Tensor], Context], tasks: Tensor) -> Context | None:
        """Contexts that become keys for queries of the tasks ``[B]``, where keys are encoded.

        Those that all queries share are split among the processes.
        """
        objective = self.objective
        if not objective.needs_keys:
            return None
        key_tasks = objective.key_tasks(tasks)
        return draw(key_tasks) if objective.own_keys else self.split_contexts(draw, key_tasks)

    def recognise(self, context: Context, tasks: Tensor) -> dict[str, float]:
        """A context is assigned to the task of the key that scores highest."""
        if self.options.global_objective == "none":
            return super().recognise(context, tasks)
        keys = self._keys(self.contexts, tasks)
        metrics = self.objective(context, tasks, keys, self.acting, measure_gap=False)[1]
        return {name: float(metrics[name]) for name in ("accuracy/global", "accuracy/local")}

    def loss(self, measure_gap: bool) -> tuple[Tensor, dict[str, Tensor], dict[str, Any]]:
        batch, aggregator = self._draw(), self.encoder.aggregator
        if isinstance(aggregator, TransitionRegression):
            own = aggregator.regress(batch["queries"], batch["predicted"], batch["tasks"])
            return self._loss_of(
                self.encoder.raw_of(aggregator.scaled(own.x)), batch, measure_gap, own
            )
        return self._loss_of(self.encoder.raw(batch["queries"]), batch, measure_gap)

    def _draw(self) -> dict[str, Any]:
        """Contexts of an update, their tasks, those that become keys, and those to predict."""
        tasks = world.own(self.update_tasks())
        batch: dict[str, Any] = {"queries": self.short_contexts(tasks), "tasks": tasks}
        batch["keys"] = self._keys(self.short_contexts, tasks)
        if self.prediction is not None:
            # How a regression errs shows all over an episode, not where contexts have just begun.
            whole = isinstance(self.encoder.aggregator, TransitionRegression)
            batch["predicted"] = self.short_contexts(tasks, whole)
        if self.update_agents < self.agents:
            some = torch.randperm(self.agents, generator=self.draws, device=self.draws.device)
            for name in ("queries", "predicted"):
                batch[name] = replace(batch[name], agents=some[: self.update_agents])
        return batch

    def _loss_of(
        self,
        raw: RawEncoding,
        batch: dict[str, Any],
        measure_gap: bool,
        own: Regressed | None = None,
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Any]]:
        """What `loss` returns, given what the encoder makes of the queries.

        With ``own``, how well a regression predicts each agent's transitions.
        """
        loss, metrics = self.objective(raw, batch["tasks"], batch["keys"], self.acting, measure_gap)
        if self.prediction is not None:
            drawn, moments = batch["predicted"].distinct, self.encoder.aggregator.moments
            drawn = replace(drawn, rows=moments.standardise(drawn.rows))
            error, errors = self.prediction(self.encoder.gaussians(raw), drawn, own)
            loss = loss + self.options.prediction_weight * error
            metrics = metrics | errors
        return loss, metrics, batch

    def gradients(self, measure_gap: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
        encodes_keys = self.objective.needs_keys and self.target is None
        if encodes_keys or not self.encoder.has_vjp:
            return super().gradients(measure_gap)
        with torch.no_grad():
            batch = self._draw()
            raw, pull = self.encoder.vjp(batch["queries"])
            slopes: Sequence[Tensor | None]
            if self.objective.has_vjp and self.prediction is None:
                self.optimiser.zero_grad()
                loss, metrics, slopes = self.objective.vjp(
                    raw, batch["tasks"], measure_gap, 1 / world.size
                )
                require_finite("loss/encoder", loss, batch)
            else:
                leaves = RawEncoding(*(x.detach().requires_grad_() for x in raw))
                with torch.enable_grad():
                    terms = self._loss_of(leaves, batch, measure_gap)
                    metrics, batch = self._differentiate(*terms)
                slopes = [x.grad for x in leaves]
            pull(*slopes)
        return metrics, batch

    def update(self) -> dict[str, Any]:
        metrics = super().update()
        if "mi/gap" in metrics:  # mi/l1out is that of the last update, mi/local the mean of all
            metrics["mi/gap"] = metrics["mi/l1out"] - metrics["mi/local"]
        return metrics | self._measure()

    def _update_once(self, measure_gap: bool = False) -> dict[str, Tensor]:
        metrics = super()._update_once(measure_gap)
        if self.target is not None:
            with torch.no_grad():
                target, encoder = self._followed
                torch._foreach_lerp_(target, encoder, 1 - self.options.target_decay)
                slow, fast = self.target.aggregator, self.encoder.aggregator
                if isinstance(slow, TransitionRegression) and isinstance(
                    fast, TransitionRegression
                ):
                    slow.mean_square.copy_(fast.mean_square)
        return metrics

    @torch.no_grad()
    def _measure(self) -> dict[str, Any]:
        """Distances of representations within and between tasks, and how far they moved."""
        ids = torch.arange(self.tasks).repeat_interleave(self.measured)
        encoding = self.infer(self.split_contexts(self.contexts, ids))
        z = torch.cat([encoding.task.mean.unsqueeze(1), encoding.local.mean], 1)
        z = world.gather(z, count=len(ids))
        z = z.view(self.tasks, self.measured, 1 + self.agents, -1)
        means = z.mean(1)
        spread = (z - means.unsqueeze(1)).norm(dim=-1).mean()
        distances = torch.cdist(means.transpose(0, 1), means.transpose(0, 1))
        pairs = self.tasks * (self.tasks - 1) * (1 + self.agents)
        cosine = F.cosine_similarity(means, self.means, dim=-1)
        parts = [spread, distances.sum() / max(pairs, 1), self.means.any()]
        numbers = [x.reshape(1) for x in parts] + [cosine[:, 0], cosine[:, 1:].mean(1)]
        values = torch.cat(numbers).tolist()  # in one copy from the device
        metrics: dict[str, Any] = {"z/spread": values[0]}
        if self.tasks > 1:
            metrics["z/distance"] = values[1]
        if values[2]:  # there was an update before
            drift = values[3:]
            metrics["drift/global"] = {str(k): drift[k] for k in range(self.tasks)}
            metrics["drift/local"] = {str(k): drift[self.tasks + k] for k in range(self.tasks)}
        self.means.copy_(means)
        return metrics


class _TaskLatent(InferredCriticLatent):
    """Means of global representations, whose gradient has a closed form."""

    def __init__(self, encoder: TaskEncoder, context: Context) -> None:
        super().__init__(lambda: encoder.infer_task(context).mean)
        self._encoder, self._context = encoder, context

    @torch.no_grad()
    def vjp(self, both: Both = map) -> tuple[Tensor, Pull]:
        latent, pull = self._encoder.task_vjp(self._context, both)
        return latent, torch.no_grad()(pull)


class MG2LAgent(ContextAgent):
    """Local inference of one agent."""

    def __init__(self, inference: MG2L, agent: int) -> None:
        trained = inference.acting.aggregator
        super().__init__(trained.moments)
        self.encoder = slice_agent(inference.acting, agent)
        del self.encoder.over_agents
        if isinstance(trained, TransitionRegression):  # compares transitions as they are
            self.standardise.add_module("change", Standardise(trained.moments.change))
            self.encoder.aggregator.add_module("moments", self.standardise)
            self.add_module("standardise", nn.Identity())
        # torch specialises a GRU to the length that it is exported with.
        self.fixed_length = inference.options.aggregator == "rnn"

    def infer(self, context: Tensor) -> Gaussian:
        return self.encoder.infer_local(context)
