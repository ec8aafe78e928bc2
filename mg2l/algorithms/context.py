"""Base of the algorithms that infer the task from contexts: sets of explored transitions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mg2l.algorithms.base import CriticLatent, TaskInference
from mg2l.algorithms.encoder import Encoding, TransitionMoments
from mg2l.config.sections import Config
from mg2l.core.schema import ConfigError, check_steps
from mg2l.estimators.gaussian import Gaussian
from mg2l.experience.finite import require_finite
from mg2l.experience.problem import ProblemSpec
from mg2l.experience.replay import Context, ContextReplay
from mg2l.experience.rollout import Rollout
from mg2l.experience.transitions import Transitions

DRIFT_CONTEXTS = 16
"""Contexts per task from which metrics are taken."""


class ContextInference(TaskInference):
    """The context replay and its exploration, what is told from it, and training on it.

    A subclass says what it infers (`infer`), what critics are told and may train, and what it
    learns from contexts (`loss`).
    """

    explores = True
    optimiser: torch.optim.Optimizer

    def __init__(self, spec: ProblemSpec) -> None:
        super().__init__(spec)
        config = spec.config
        self.options, self.rollout = config.encoder, config.rollout
        self.max_norm = config.ppo.max_grad_norm if config.ppo.use_max_grad_norm else math.inf
        self.tasks, self.transitions = spec.tasks.n_train, Transitions(spec)
        self.noise, self.draws = spec.noise, spec.draws
        self.actor_latent_dim = self.critic_latent_dim = self.options.context_dim
        self.replay = ContextReplay(
            self.tasks,
            self.options.ae_buffer_size,
            config.env.max_ep_len,
            self.agents,
            spec.transition,
            spec.device,
        )
        self._eps = config.ppo.opti_eps

    @classmethod
    def check_config(cls, config: Config) -> None:
        steps, options = config.env.max_ep_len, config.encoder
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

    # What a subclass is.

    def infer(self, context: Context) -> Encoding:
        """What is inferred from contexts, for acting on: of agent i from its own transitions."""
        raise NotImplementedError

    def moments(self) -> list[TransitionMoments]:
        """What must know the moments of all transitions explored."""
        raise NotImplementedError

    def loss(self, measure_gap: bool) -> tuple[Tensor, dict[str, Tensor], dict[str, Any]]:
        """Loss on contexts drawn anew, its metrics, and what it was computed from."""
        raise NotImplementedError

    def recognise(self, context: Context, tasks: Tensor) -> dict[str, float]:
        """Share of the contexts whose task is recognised, ``accuracy/global`` and ``/local``.

        By the nearest of the training tasks' mean representations in the replay.
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

    # What actors and critics are told.

    def latent_of(self, q: Gaussian) -> Tensor:
        """What is told of a Gaussian: its mean, or a sample."""
        return q.sample(self.noise) if self.rollout.act_on == "sample" else q.mean

    def contexts(self, tasks: Tensor) -> Context:
        """Contexts of the tasks ``[B]``, ``[B, T, A, F]``, in the replay."""
        return self.replay.sample(
            tasks, self.options.ae_batch_size, self.options.context_episodes, self.draws
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
        """What actors are told of B contexts, ``[B, A, D]``."""
        return self.latent_of(encoding.local)

    def latent_for_critic(self, encoding: Encoding) -> Tensor:
        """What critics are told of B contexts, ``[B, D]``."""
        return self.latent_of(encoding.task)

    @torch.no_grad()
    def actor_latent(self, tasks: np.ndarray, steps: int) -> Tensor:
        rows = steps if self.rollout.context_refresh == "step" else 1
        ids = torch.as_tensor(tasks)
        told = [self.latent_for_actors(self.infer(self.contexts(ids))) for _ in range(rows)]
        return torch.stack(told)

    @torch.no_grad()
    def critic_latent(self, tasks: np.ndarray, rollout: Rollout) -> CriticLatent:
        context = self.contexts(torch.as_tensor(tasks))
        return CriticLatent(self.latent_for_critic(self.infer(context)))

    # Exploration.

    def project(self, z: Tensor) -> Tensor:
        """Put draws of the prior ``[*, D]`` where representations live."""
        return z

    def sample_prior(self, num_envs: int) -> Tensor:
        """A draw from the prior ``N(0, I)`` for every agent, held for the whole rollout."""
        shape = (1, num_envs, self.agents, self.options.context_dim)
        z = torch.randn(shape, generator=self.noise, device=self.noise.device)
        return self.project(z)

    def add_exploration(self, rollout: Rollout, tasks: np.ndarray) -> dict[str, float]:
        transitions = self.transitions(rollout)
        # Here and not at the loss: by then policies have acted on what was inferred from them.
        require_finite("transitions", transitions.sum(), {"transitions": transitions})
        metrics = self._recognised(transitions, tasks) if self.ready() else {}
        if self.options.normalize_transitions:
            first, *others = self.moments()
            first.update(transitions)
            for moments in others:
                moments.load_state_dict(first.state_dict())
        for column, task in enumerate(tasks):
            self.replay.add(int(task), transitions[:, column])
        return metrics

    @torch.no_grad()
    def _recognised(self, transitions: Tensor, tasks: np.ndarray) -> dict[str, float]:
        """Share of the contexts from transitions ``[T, N, A, F]`` whose task is recognised.

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

    def train_with(self, parameters: list[nn.Parameter]) -> None:
        """Make the optimiser, of the encoder's ``lr``."""
        self.trained = parameters
        self.optimiser = torch.optim.Adam(parameters, self.options.lr, eps=self._eps, fused=True)

    def pretrain(self) -> None:
        for _ in range(self.options.n_init_updates):
            self._update_once()

    def update(self) -> dict[str, Any]:
        found: dict[str, list[Tensor]] = {}
        for left in reversed(range(self.options.ae_updates_per_iter)):
            for name, value in self._update_once(measure_gap=left == 0).items():
                found.setdefault(name, []).append(value.detach())
        return {name: float(torch.stack(values).mean()) for name, values in found.items()}

    def _update_once(self, measure_gap: bool = False) -> dict[str, Tensor]:
        loss, metrics, batch = self.loss(measure_gap)
        require_finite("loss/encoder", loss, batch)
        self.optimiser.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.trained, self.max_norm)
        require_finite("grad_norm/encoder", norm, batch)
        metrics["grad_norm/encoder"] = norm
        self.optimiser.step()
        return metrics

    def buffers_state(self) -> dict[str, Any]:
        return {"replay": self.replay.state_dict()} if self.ready() else {}

    def load_buffers_state(self, state: dict[str, Any]) -> None:
        self.replay.load_state_dict(state["replay"])


class InferredCriticLatent(CriticLatent):
    """Encoded anew each time it is asked for, so that the value loss reaches the encoder.

    Args:
        infer: what critics are told, with its graph.
    """

    def __init__(self, infer: Any) -> None:
        super().__init__(None)
        self._infer = infer

    def __call__(self) -> Tensor:
        told: Tensor = self._infer()
        return told
