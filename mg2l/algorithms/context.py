"""Base of the algorithms that infer the task from contexts: sets of explored transitions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mg2l.algorithms.base import (
    CriticLatent,
    Encoding,
    LatentSource,
    LearnedConfig,
    LearnedInference,
)
from mg2l.algorithms.transition_encoder import TransitionMoments
from mg2l.config.algorithms import AlgorithmConfig
from mg2l.config.sections import Config
from mg2l.core.schema import ConfigError, bounded, check_steps
from mg2l.estimators.gaussian import Gaussian
from mg2l.experience.finite import require_finite
from mg2l.experience.problem import ProblemSpec
from mg2l.experience.replay import Context, ContextReplay
from mg2l.experience.rollout import Rollout

DRIFT_CONTEXTS = 16
"""Contexts per task from which metrics are taken."""


@dataclass
class ContextConfig(LearnedConfig):
    """Keys of the algorithms that infer the task from contexts."""

    hidden_sizes_mlp: list[int] = bounded([64, 64, 64], ge=1, le=8192)  # noqa: RUF009
    """Hidden layers of the transition encoder and of the local inference networks."""

    ae_batch_size: int = bounded(100, ge=1, le=1_000_000)
    """Transitions in a context from which the latents of actors and critics are inferred."""

    context_episodes: int = bounded(10, ge=1, le=1_000_000)
    """Episodes, or where they end early stretches of ``max_ep_len`` steps, that the transitions of
    such a context are drawn from."""

    min_context_episodes: int = bounded(0, ge=0, le=1_000_000)
    """If not 0, contexts of fewer episodes, too: log-uniform between this and ``context_episodes``.
    At meta-test there are only the few that an agent has explored."""

    replay_rollouts: bool = False
    """Keep the rollouts that policies are trained on in the context replay, beside explored ones:
    more episodes of each task, at no environment step."""

    explore_refresh: int = bounded(0, ge=0, le=1_000_000)
    """Steps after which an exploring agent draws another latent; 0 is one for the whole episode."""

    update_contexts: int = bounded(160, ge=1, le=1_000_000)
    """Contexts that an encoder update learns from."""

    update_transitions: int = bounded(10, ge=1, le=1_000_000)
    """Transitions in a context that an encoder update learns from. Short ones must be recognised by
    what single transitions say, long ones can be by the average layout of their episodes."""

    update_episodes: int = bounded(1, ge=1, le=1_000_000)
    """Episodes that the transitions of such a context are drawn from."""

    n_init_updates: int = bounded(500, ge=0, le=1_000_000_000)
    """Encoder updates on the first exploration rollouts, before any policy acts on what is
    inferred."""

    ae_buffer_size: int = bounded(100_000, ge=1, le=100_000_000)
    """Transitions kept per task in the context replay."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.hidden_sizes_mlp:
            raise ValueError("hidden_sizes_mlp must have at least one layer, got []")
        if self.min_context_episodes > self.context_episodes:
            raise ValueError(
                f"min_context_episodes={self.min_context_episodes} must be at most "
                f"context_episodes={self.context_episodes}"
            )


class ContextInference(LearnedInference):
    """The context replay and its exploration, latents inferred from it, and training on it.

    A subclass says what it infers (`infer`), what critics are conditioned on and may train, and
    what it learns from contexts (`loss`).
    """

    config_class: type[AlgorithmConfig] = ContextConfig
    options: ContextConfig
    latent_source: LatentSource = "context"
    explores = True

    prior: Literal["normal", "sphere"] = "normal"
    """Where draws of the prior lie: as they are, or projected to the sphere of radius sqrt(D)."""

    def __init__(self, spec: ProblemSpec) -> None:
        super().__init__(spec)
        self.rollout, self.tasks = spec.config.rollout, spec.tasks.n_train
        self.actor_latent_dim = self.critic_latent_dim = self.options.context_dim
        self.replay = ContextReplay(
            self.tasks,
            self.options.ae_buffer_size,
            spec.config.env.max_ep_len,
            self.agents,
            spec.transition,
            spec.device,
        )

    @classmethod
    def check_config(cls, config: Config) -> None:
        steps, options = config.env.max_ep_len, config.algo
        assert isinstance(options, ContextConfig)
        if options.ae_buffer_size < steps:
            raise ConfigError(
                f"ae_buffer_size={options.ae_buffer_size} holds no episode of max_ep_len={steps} "
                f"steps; {config.algo_name} keeps whole ones of every task"
            )
        rollout = config.rollout
        check_steps(n_ae_rollout_threads=rollout.n_ae_rollout_threads, max_ep_len=steps)
        check_steps(
            n_rollout_threads=rollout.n_rollout_threads, ae_batch_size=options.ae_batch_size
        )
        check_steps(
            update_contexts=options.update_contexts, update_transitions=options.update_transitions
        )

    # Inference.

    def moments(self) -> list[TransitionMoments]:
        """Moments of all transitions explored, by which networks standardise their inputs."""
        raise NotImplementedError

    def recognise(self, context: Context, tasks: Tensor) -> dict[str, float]:
        """Fraction of the contexts whose task is recognised, ``accuracy/global`` and ``/local``.

        The nearest of the training tasks' mean representations in the replay is taken for it.
        """
        ids = torch.arange(self.tasks).repeat_interleave(DRIFT_CONTEXTS)
        known, found = self.infer(self.contexts(ids)), self.infer(context)
        accuracies = {}
        for level in ("task", "local"):
            means = getattr(known, level).mean.flatten(1)
            shape = getattr(known, level).mean.shape
            means = means.view(self.tasks, DRIFT_CONTEXTS, -1).mean(1).view(-1, *shape[1:])
            z = getattr(found, level).mean
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
            options.ae_batch_size,
            options.context_episodes,
            self.draws,
            options.min_context_episodes,
        )

    def short_contexts(self, tasks: Tensor) -> Context:
        """Contexts that the encoder is trained on."""
        options = self.options
        return self.replay.sample(
            tasks, options.update_transitions, options.update_episodes, self.draws
        )

    def update_tasks(self) -> Tensor:
        """Tasks ``[B]`` of the contexts of an update.

        Every task as often as any other, or as many tasks as there are contexts.
        """
        count = self.options.update_contexts
        tasks = torch.randperm(self.tasks, generator=self.draws).repeat(-(-count // self.tasks))
        return tasks[:count]

    def latent_for_actors(self, encoding: Encoding) -> Tensor:
        """Latents of the actors after B contexts, ``[B, A, D]``."""
        return self.latent_of(encoding.local)

    def latent_for_critic(self, encoding: Encoding) -> Tensor:
        """Latent of the critics after B contexts, ``[B, D]``."""
        return self.latent_of(encoding.task)

    @property
    def context_length(self) -> int:
        return self.options.ae_batch_size

    def agent_manifest(self) -> dict[str, Any]:
        context = {
            "length": self.context_length,
            "capacity": self.options.ae_buffer_size,
            "prior": self.prior,
            "act_on": self.rollout.act_on,
            "explore_refresh": self.options.explore_refresh,
        }
        return {"context": context}

    @torch.no_grad()
    def actor_latent(self, tasks: np.ndarray, steps: int) -> Tensor:
        rows = steps if self.rollout.context_refresh == "step" else 1
        ids = torch.as_tensor(tasks)
        latents = [self.latent_for_actors(self.infer(self.contexts(ids))) for _ in range(rows)]
        return torch.stack(latents)

    @torch.no_grad()
    def critic_latent(self, tasks: np.ndarray, rollout: Rollout) -> CriticLatent:
        context = self.contexts(torch.as_tensor(tasks))
        return CriticLatent(self.latent_for_critic(self.infer(context)))

    # Exploration.

    def project(self, z: Tensor) -> Tensor:
        """Project draws of the prior ``[*, D]`` to where representations live."""
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
            self._keep(self.transitions(rollout), tasks)

    def _keep(self, transitions: Tensor, tasks: np.ndarray) -> None:
        """Append transitions ``[T, N, A, F]`` of environments with tasks ``[N]`` to the replay."""
        steps = self.replay.data.shape[2]
        for segment in transitions.split(steps):
            for column, task in enumerate(tasks):
                self.replay.add(int(task), segment[:, column])

    def add_exploration(self, rollout: Rollout, tasks: np.ndarray) -> dict[str, float]:
        transitions = self.transitions(rollout)
        # Checked here, before policies act on what is inferred from them.
        require_finite("transitions", transitions.sum(), {"transitions": transitions})
        metrics = self._recognised(transitions, tasks) if self.ready() else {}
        if self.options.normalize_transitions:
            first, *others = self.moments()
            first.update(transitions)
            for moments in others:
                moments.load_state_dict(first.state_dict())
        self._keep(transitions, tasks)
        return metrics

    @torch.no_grad()
    def _recognised(self, transitions: Tensor, tasks: np.ndarray) -> dict[str, float]:
        """Fraction of the contexts from transitions ``[T, N, A, F]`` whose task is recognised.

        The transitions have never been trained on: accuracy on the replay says little, since it
        can be memorised.
        """
        steps, count, agents, features = transitions.shape
        fresh = ContextReplay(
            self.tasks, count * steps, steps, agents, features, transitions.device
        )
        for column, task in enumerate(tasks):
            fresh.add(int(task), transitions[:, column])
        ids = torch.as_tensor(np.unique(tasks)).repeat_interleave(DRIFT_CONTEXTS)
        context = fresh.sample(
            ids, self.options.ae_batch_size, self.options.context_episodes, self.draws
        )
        found = self.recognise(context, ids)
        return {
            name.replace("accuracy/", "accuracy/fresh_"): value for name, value in found.items()
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
