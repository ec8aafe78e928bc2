"""Base of the algorithms that infer the task from contexts: sets of explored transitions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mg2l.algorithms.base import (
    CriticLatent,
    Encoding,
    LatentSource,
    LearnedInference,
)
from mg2l.algorithms.config import ContextConfig
from mg2l.algorithms.growing import GrowingContexts
from mg2l.algorithms.transition_encoder import TransitionMoments
from mg2l.config.algorithms import AlgorithmConfig
from mg2l.core.distributed import world
from mg2l.core.schema import ConfigError
from mg2l.core.transfer import to_device
from mg2l.estimators.gaussian import Gaussian
from mg2l.experience.finite import require_finite
from mg2l.experience.problem import ProblemSpec
from mg2l.experience.replay import Context, ContextReplay
from mg2l.experience.rollout import Rollout

MEASURED_CONTEXTS = 320
"""Contexts of all agents and tasks from which metrics of representations are taken."""

INFERRED_CONTEXTS = 4096
"""Contexts that are inferred at a time by all processes, of whole steps: what their indices and
features take is bounded."""


class ContextInference(LearnedInference):
    """The context replay and its exploration, latents inferred from it, and training on it.

    A subclass defines its inference (`infer`), the latent of the critics, which their loss may
    train, and its loss on contexts (`loss`).
    """

    config_class: type[AlgorithmConfig] = ContextConfig
    options: ContextConfig
    latent_source: LatentSource = "context"
    explores = True

    whole_contexts: float = 0.0
    """Fraction of the growing contexts of updates that hold all of their episodes."""

    prior: Literal["normal", "sphere"] = "normal"
    """Whether draws of the prior are projected to the sphere of radius sqrt(D)."""

    def __init__(self, spec: ProblemSpec) -> None:
        super().__init__(spec)
        self.rollout, self.tasks = spec.config.rollout, spec.tasks.n_train
        self.actor_latent_dim = self.critic_latent_dim = self.options.context_dim
        steps = spec.config.env.max_ep_len
        least = 4 * self.tasks * steps * self.agents * spec.transition / 10**6
        if self.options.replay_memory < least:
            raise ConfigError(
                f"replay_memory={self.options.replay_memory} MB holds no episode of "
                f"max_ep_len={steps} steps of each of {self.tasks} tasks, which take "
                f"{math.ceil(least)} MB"
            )
        self.replay = ContextReplay(
            self.tasks,
            self.options.ae_buffer_size,
            steps,
            self.agents,
            spec.transition,
            spec.device,
            10**6 * self.options.replay_memory,
        )

    # Inference.

    def moments(self) -> list[TransitionMoments]:
        """Moments of all transitions explored, by which networks standardise their inputs."""
        raise NotImplementedError

    @property
    def measured(self) -> int:
        """Contexts per task from which metrics are taken: 16, fewer of many tasks and agents."""
        return max(2, min(16, MEASURED_CONTEXTS // (self.tasks * self.agents)))

    def recognise(self, context: Context, tasks: Tensor) -> dict[str, float]:
        """Fraction of the contexts whose task is recognised, ``accuracy/global`` and ``/local``.

        A context is assigned to the task whose mean representation in the replay is nearest.
        """
        count = self.measured
        ids = torch.arange(self.tasks).repeat_interleave(count)
        known, inferred = self.infer(self.contexts(ids)), self.infer(context)
        accuracies = {}
        for level in ("task", "local"):
            means = getattr(known, level).mean.flatten(1)
            shape = getattr(known, level).mean.shape
            means = means.view(self.tasks, count, -1).mean(1).view(-1, *shape[1:])
            z = getattr(inferred, level).mean
            gaps = (z.unsqueeze(1) - means.unsqueeze(0)).norm(dim=-1)  # [B, K] or [B, K, A]
            own = tasks.to(z.device).view(-1, *[1] * (z.dim() - 2))
            hits = (gaps.argmin(1) == own).float()
            accuracies[f"accuracy/{'global' if level == 'task' else level}"] = float(hits.mean())
        return accuracies

    # Conditioning.

    def latent_of(self, q: Gaussian) -> Tensor:
        """The latent of a Gaussian: its mean, or a sample."""
        return q.sample(self.noise) if self.rollout.act_on == "sample" else q.mean

    def contexts(self, tasks: Tensor) -> Context:
        """Contexts of the tasks ``[B]``, ``[B, T, A, F]``, in the replay."""
        options = self.options
        return self.replay.sample(
            tasks,
            self.context_length,
            options.context_episodes,
            self.draws,
            options.min_context_episodes,
            run=self.run,
        )

    def split_contexts(self, draw: Callable[[Tensor], Context], tasks: Tensor) -> Context:
        """This process's part of contexts of the same tasks ``[B]`` in all processes.

        Args:
            draw: `contexts` or `short_contexts`.
            tasks: their number need not be a multiple of that of the processes.
        """
        with world.local():
            drawn = draw(tasks)
        return drawn.own()

    def short_contexts(self, tasks: Tensor, whole: bool = False) -> Context:
        """Contexts to train the encoder on.

        Args:
            tasks: ``[B]`` int64.
            whole: those of growing contexts, too, are of all transitions of their episodes.
        """
        options = self.options
        seen: Tensor | None = None
        if options.grow_contexts and not whole:
            most = options.update_episodes * self.replay.data.shape[2]
            fewest = min(self.run, most)
            seen = (fewest * (most / fewest) ** self._uniform(len(tasks), 1)[:, 0]).long()
            if self.whole_contexts:
                all_of_them = self._uniform(len(tasks), 1)[:, 0] < self.whole_contexts
                seen = torch.where(all_of_them, most, seen)
        return self.replay.sample(
            tasks,
            options.update_transitions,
            options.update_episodes,
            self.draws,
            seen=seen,
            run=self.run,
        )

    def update_tasks(self) -> Tensor:
        """Tasks ``[B]`` of the contexts of an update, of all processes.

        Every task equally often, or each context of another task.
        """
        count = self.options.update_contexts
        tasks = torch.randperm(self.tasks, generator=self.draws, device=self.draws.device)
        return tasks.repeat(-(-count // self.tasks))[:count]

    def latent_for_actors(self, encoding: Encoding) -> Tensor:
        """Latents of the actors after B contexts, ``[B, A, D]``."""
        return self.latent_of(encoding.local)

    def latent_for_critic(self, encoding: Encoding) -> Tensor:
        """Latent of the critics after B contexts, ``[B, D]``."""
        return self.latent_of(encoding.task)

    @property
    def grows_contexts(self) -> bool:
        return self.options.grow_contexts

    @property
    def context_length(self) -> int:
        """That of the key, or all transitions of a context's episodes if they are fewer."""
        options = self.options
        held = options.context_episodes * self.replay.data.shape[2]
        return min(options.ae_batch_size, held)

    def agent_manifest(self) -> dict[str, Any]:
        context = {
            "length": self.context_length,
            "capacity": self.options.ae_buffer_size,
            "prior": self.prior,
            "act_on": self.rollout.act_on,
            "explore_refresh": self.options.explore_refresh,
            "grows": self.grows_contexts,
            "explores_on_context": self.explores_on_context,
        }
        return {"context": context}

    def growing_latent(
        self,
        num_envs: int,
        earlier: Tensor | None = None,
        seen: Tensor | None = None,
        seed: int | None = None,
    ) -> GrowingContexts:
        return GrowingContexts(self, self.unknown(num_envs), earlier, seen, seed)

    def _from_replay(self, tasks: Tensor) -> GrowingContexts:
        """Contexts that grow from nothing, or from episodes of the replay."""
        most = self.options.context_episodes
        size, some = self._uniform(len(tasks), 2).unbind(1)
        seen = (most**size).round().long() * (some < 0.5) * self.replay.data.shape[2]
        earlier = self.replay.sample(
            tasks,
            self.context_length,
            most,
            self.draws,
            seen=seen.clamp(min=1),
            run=self.run,
        )
        return self.growing_latent(len(tasks), earlier.gather(), seen)

    def _uniform(self, rows: int, columns: int) -> Tensor:
        def uniform(shape: list[int]) -> Tensor:
            return torch.rand(shape, generator=self.draws, device=self.draws.device)

        return world.draw(uniform, (rows, columns))

    def unknown(self, num_envs: int) -> Tensor:
        """Latents ``[N, A, D]`` of actors that have seen nothing: zero where contexts grow.

        Otherwise draws of the prior.
        """
        if not self.grows_contexts:
            return self.sample_prior(num_envs)[0]
        shape = (num_envs, self.agents, self.actor_latent_dim)
        return torch.zeros(shape, device=self.device)

    @torch.no_grad()
    def actor_latent(self, tasks: np.ndarray, steps: int) -> Any:
        if self.options.grow_contexts:
            return self._from_replay(torch.as_tensor(tasks))
        rows = steps if self.rollout.context_refresh == "step" else 1
        ids = to_device(tasks, self.device)
        at_once = max(1, INFERRED_CONTEXTS // (len(ids) * world.size))
        latents: list[Tensor] = []
        for first in range(0, rows, at_once):
            count = min(at_once, rows - first)
            with world.repeated(count):
                encoding = self.infer(self.contexts(ids.repeat(count)))
                latents.append(self.latent_for_actors(encoding))
        latent: Tensor = torch.cat(latents).unflatten(0, (rows, -1))
        return latent

    @torch.no_grad()
    def critic_latent(self, tasks: np.ndarray, rollout: Rollout) -> CriticLatent:
        context = self.contexts(to_device(tasks, self.device))
        return CriticLatent(self.latent_for_critic(self.infer(context)))

    # Exploration.

    def project(self, z: Tensor) -> Tensor:
        """Project draws of the prior ``[*, D]`` to the space of representations."""
        return z

    def sample_prior(self, num_envs: int) -> Tensor:
        """A draw from the prior ``N(0, I)`` for every agent, held for the whole rollout."""
        shape = (1, num_envs, self.agents, self.options.context_dim)
        z = torch.randn(shape, generator=self.noise, device=self.noise.device)
        return self.project(z)

    def sample_explorer(self, num_envs: int) -> Tensor:
        """Latents ``[1, N, A, D]`` with which agents explore: draws of the prior."""
        return self.sample_prior(num_envs)

    def exploration_latent(self, num_envs: int, steps: int) -> Tensor:
        refresh = self.options.explore_refresh
        if not refresh:
            return self.sample_explorer(num_envs)
        draws = [self.sample_explorer(num_envs) for _ in range(-(-steps // refresh))]
        return torch.cat(draws).repeat_interleave(refresh, 0)[:steps]

    def add_rollout(self, rollout: Rollout, tasks: np.ndarray) -> None:
        if self.options.replay_rollouts:
            transitions, tasks = self._gathered(self.transitions(rollout), tasks)
            with world.local():  # all processes have the same
                self._standardise_by(transitions)
            self._keep(transitions, tasks)

    def _gathered(self, transitions: Tensor, tasks: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """Transitions ``[T, N, A, F]`` and tasks ``[N]`` of the environments of all processes."""
        everywhere = world.gather(torch.as_tensor(tasks)).numpy()
        return world.gather(transitions, dim=1), everywhere

    def _keep(self, transitions: Tensor, tasks: np.ndarray) -> None:
        """Append transitions ``[T, N, A, F]`` of environments with tasks ``[N]`` to the replay."""
        steps = self.replay.data.shape[2]
        for segment in transitions.split(steps):
            for column, task in enumerate(tasks):
                self.replay.add(int(task), segment[:, column])

    def add_exploration(self, rollout: Rollout, tasks: np.ndarray) -> dict[str, float]:
        transitions = self.transitions(rollout)
        # Checked here, before policies act on latents inferred from them.
        require_finite("transitions", transitions.sum(), {"transitions": transitions})
        transitions, tasks = self._gathered(transitions, tasks)
        with world.local():  # all processes keep the same
            metrics = self._recognised(transitions, tasks) if self.ready() else {}
            self._standardise_by(transitions)
            self._keep(transitions, tasks)
        return metrics

    def _standardise_by(self, transitions: Tensor) -> None:
        """Merge transitions ``[T, N, A, F]`` that the replay takes into the moments."""
        if self.options.normalize_transitions:
            first, *others = self.moments()
            first.update(transitions)
            for moments in others:
                moments.load_state_dict(first.state_dict())

    @torch.no_grad()
    def _recognised(self, transitions: Tensor, tasks: np.ndarray) -> dict[str, float]:
        """Fraction of the contexts from transitions ``[T, N, A, F]`` whose task is recognised.

        The transitions have never been trained on: accuracy on the replay says little, since it
        can be memorised.
        """
        steps, _, agents, features = transitions.shape
        most = int(np.bincount(tasks).max())
        fresh = ContextReplay(self.tasks, most * steps, steps, agents, features, transitions.device)
        for column, task in enumerate(tasks):
            fresh.add(int(task), transitions[:, column])
        ids = torch.as_tensor(np.unique(tasks)).repeat_interleave(self.measured)
        context = fresh.sample(
            ids,
            self.context_length,
            self.options.context_episodes,
            self.draws,
            run=self.run,
        )
        fractions = self.recognise(context, ids)
        return {
            name.replace("accuracy/", "accuracy/fresh_"): value for name, value in fractions.items()
        }

    def ready(self) -> bool:
        return bool((self.replay.added > 0).all())

    # Training.

    def pretrain(self) -> None:
        for _ in range(self.options.n_init_updates):
            self._update_once()

    def buffers_state(self) -> dict[str, Any]:
        return {"replay": self.replay.state_dict()} if self.ready() else {}

    def load_buffers_state(self, state: dict[str, Any]) -> None:
        self.replay.load_state_dict(state["replay"])


class InferredCriticLatent(CriticLatent):
    """Encoded again each time it is asked for, so that the value loss reaches the encoder.

    Args:
        infer: computes the latent, with its graph.
    """

    def __init__(self, infer: Any) -> None:
        super().__init__(None)
        self._infer = infer

    def __call__(self) -> Tensor:
        latent: Tensor = self._infer()
        return latent
