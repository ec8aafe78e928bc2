"""MG2L: everybody's experience tells the critic what the task is, each agent's own tells its actor.

Zhao, Fu, Chai, Zhu, Zhao, *Meta Learning Task Representation in Multiagent Reinforcement
Learning: From Global Inference to Local Inference*, IEEE TNNLS 36(8), 2025.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mg2l.algorithms.base import CriticLatent
from mg2l.algorithms.context import DRIFT_CONTEXTS, ContextInference, InferredCriticLatent
from mg2l.algorithms.encoder import Encoding, TaskEncoder, TransitionMoments
from mg2l.algorithms.mg2l.objective import Objective
from mg2l.experience.problem import ProblemSpec
from mg2l.experience.replay import Context
from mg2l.experience.rollout import Rollout


class MG2L(ContextInference):
    """Multi-level task encoder and its training.

    Decentralised: at meta-test each agent infers from its own transitions alone. Not so with
    ``told_actors: global``, where all share what is inferred from everybody's.
    """

    means: Tensor

    def __init__(self, spec: ProblemSpec) -> None:
        super().__init__(spec)
        options, device, path = self.options, spec.device, spec.path
        share = spec.config.policy.share_policy
        self.encoder = TaskEncoder(
            options, self.agents, spec.transition, path, share, spec.vision
        ).to(device)
        self.objective = Objective(options, self.tasks, self.encoder, self.noise, path, share).to(
            device
        )
        self.target: TaskEncoder | None = None
        if options.target_decay > 0:
            self.target = copy.deepcopy(self.encoder).requires_grad_(False)
        self.train_with([p for p in self.objective.parameters() if p.requires_grad])
        if options.told_critics == "local":
            self.critic_latent_dim = self.agents * options.context_dim
        # Mean representation of each task at the last update, global first: [K, 1 + A, D].
        shape = (self.tasks, 1 + self.agents, options.context_dim)
        self.register_buffer("means", torch.zeros(shape, device=device))

    # What actors and critics are told.

    @property
    def acting(self) -> TaskEncoder:
        """The encoder that actors listen to, and critics that do not train it."""
        return self.encoder if self.target is None else self.target

    def infer(self, context: Context) -> Encoding:
        encoding: Encoding = self.acting(context)
        return encoding

    def moments(self) -> list[TransitionMoments]:
        encoders = [self.encoder] if self.target is None else [self.encoder, self.target]
        return [encoder.aggregator.moments for encoder in encoders]

    def project(self, z: Tensor) -> Tensor:
        return self.encoder.project(z)

    def latent_for_actors(self, encoding: Encoding) -> Tensor:
        if self.options.told_actors == "local":
            return super().latent_for_actors(encoding)
        return self.latent_of(encoding.task).unsqueeze(1).expand(-1, self.agents, -1)

    def latent_for_critic(self, encoding: Encoding) -> Tensor:
        if self.options.told_critics == "global":
            return super().latent_for_critic(encoding)
        return self.latent_of(encoding.local).flatten(1)

    def critic_latent(self, tasks: np.ndarray, rollout: Rollout) -> CriticLatent:
        if not self.options.critic_to_encoder:
            return super().critic_latent(tasks, rollout)
        context = self.contexts(torch.as_tensor(tasks))
        return InferredCriticLatent(lambda: self.latent_of(self.encoder.infer_task(context)))

    def trained_by_critic(self) -> list[nn.Parameter]:
        if not self.options.critic_to_encoder:
            return []
        return [*self.encoder.aggregator.parameters(), *self.encoder.over_agents.parameters()]

    # Training.

    def recognise(self, context: Context, tasks: Tensor) -> dict[str, float]:
        """By the key that scores highest."""
        if self.options.global_objective == "none":
            return super().recognise(context, tasks)
        keys = None
        if self.objective.needs_keys:
            keys = self.contexts(self.objective.key_tasks(tasks))
        metrics = self.objective(context, tasks, keys, self.acting, measure_gap=False)[1]
        return {name: float(metrics[name]) for name in ("accuracy/global", "accuracy/local")}

    def loss(self, measure_gap: bool) -> tuple[Tensor, dict[str, Tensor], dict[str, Any]]:
        tasks = self.update_tasks()
        queries = self.short_contexts(tasks)
        keys: Context | None = None
        if self.objective.needs_keys:
            keys = self.short_contexts(self.objective.key_tasks(tasks))
        loss, metrics = self.objective(queries, tasks, keys, self.acting, measure_gap)
        return loss, metrics, {"queries": queries, "tasks": tasks, "keys": keys}

    def update(self) -> dict[str, Any]:
        metrics = super().update()
        if "mi/gap" in metrics:  # mi/l1out is that of the last update, mi/local the mean of all
            metrics["mi/gap"] = metrics["mi/l1out"] - metrics["mi/local"]
        return metrics | self._measure()

    def _update_once(self, measure_gap: bool = False) -> dict[str, Tensor]:
        metrics = super()._update_once(measure_gap)
        if self.target is not None:
            with torch.no_grad():
                torch._foreach_lerp_(
                    list(self.target.parameters()),
                    list(self.encoder.parameters()),
                    1 - self.options.target_decay,
                )
        return metrics

    @torch.no_grad()
    def _measure(self) -> dict[str, Any]:
        """How tight and how far apart the tasks' representations are, and how far they moved."""
        ids = torch.arange(self.tasks).repeat_interleave(DRIFT_CONTEXTS)
        encoding = self.infer(self.contexts(ids))
        z = torch.cat([encoding.task.mean.unsqueeze(1), encoding.local.mean], 1)
        z = z.view(self.tasks, DRIFT_CONTEXTS, 1 + self.agents, -1)
        means = z.mean(1)
        metrics: dict[str, Any] = {"z/spread": float((z - means.unsqueeze(1)).norm(dim=-1).mean())}
        if self.tasks > 1:
            apart = torch.cdist(means.transpose(0, 1), means.transpose(0, 1))
            pairs = self.tasks * (self.tasks - 1) * (1 + self.agents)
            metrics["z/distance"] = float(apart.sum() / pairs)
        if bool(self.means.any()):
            cosine = F.cosine_similarity(means, self.means, dim=-1)
            metrics["drift/global"] = {str(k): float(c) for k, c in enumerate(cosine[:, 0])}
            metrics["drift/local"] = {str(k): float(c) for k, c in enumerate(cosine[:, 1:].mean(1))}
        self.means.copy_(means)
        return metrics
