"""MG2L: everybody's experience tells the critic what the task is, each agent's own tells its actor.

Zhao, Fu, Chai, Zhu, Zhao, *Meta Learning Task Representation in Multiagent Reinforcement
Learning: From Global Inference to Local Inference*, IEEE TNNLS 36(8), 2025.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn import functional as F

from mg2l.algo.finite import require_finite
from mg2l.algo.inference import TaskForCritic, TaskInference
from mg2l.algo.rollout import Rollout
from mg2l.config import Config
from mg2l.encoder.encoder import TaskEncoder
from mg2l.encoder.gaussian import Gaussian
from mg2l.encoder.objective import Objective
from mg2l.ops.path import Path
from mg2l.replay import Context, ContextReplay, lived_through

_DRIFT_CONTEXTS = 16


class MG2L(TaskInference):
    """Multi-level task encoder, its context replay and its training.

    Args:
        config: the run.
        tasks: K training tasks.
        agents: A.
        observation: width of an observation.
        action_space: of every agent; discrete actions enter a transition one-hot.
        noise: source of representations' noise, on the device.
        draws: source of contexts, on the CPU.
        path: operators to compute with.
    """

    explores = True
    optimiser: torch.optim.Optimizer
    means: Tensor

    def __init__(
        self,
        config: Config,
        tasks: int,
        agents: int,
        observation: int,
        action_space: spaces.Space[Any],
        noise: torch.Generator,
        draws: torch.Generator,
        path: Path,
    ) -> None:
        super().__init__()
        self.options, self.rollout = config.encoder, config.rollout
        self.max_norm = config.ppo.max_grad_norm if config.ppo.use_max_grad_norm else math.inf
        self.tasks, self.agents, self.action_space = tasks, agents, action_space
        self.noise, self.draws = noise, draws
        discrete = isinstance(action_space, spaces.Discrete)
        action = int(action_space.n) if discrete else int(action_space.shape[0])  # type: ignore
        self.actions = action if discrete else 0
        width = 2 * observation + action + 1
        self.actor_width = self.critic_width = self.options.context_dim

        device = noise.device
        share = config.policy.share_policy
        self.encoder = TaskEncoder(self.options, agents, width, path, share).to(device)
        self.objective = Objective(self.options, tasks, self.encoder, noise, path, share).to(device)
        self.target: TaskEncoder | None = None
        if self.options.target_decay > 0:
            self.target = copy.deepcopy(self.encoder).requires_grad_(False)
        self.replay = ContextReplay(
            tasks, self.options.ae_buffer_size, config.env.max_ep_len, agents, width, device
        )
        trained = [p for p in self.objective.parameters() if p.requires_grad]
        self.optimiser = torch.optim.Adam(
            trained, self.options.lr, eps=config.ppo.opti_eps, fused=True
        )
        # Mean representation of each task at the last update, global first: [K, 1 + A, D].
        shape = (tasks, 1 + agents, self.options.context_dim)
        self.register_buffer("means", torch.zeros(shape, device=device))

    # What actors and critics are told.

    @property
    def acting(self) -> TaskEncoder:
        """The encoder that actors listen to, and critics that do not train it."""
        return self.encoder if self.target is None else self.target

    def _told(self, q: Gaussian) -> Tensor:
        return q.sample(self.noise) if self.rollout.act_on == "sample" else q.mean

    def contexts(self, tasks: Tensor) -> Context:
        """Contexts of the tasks ``[B]``, ``[B, T, A, F]``, in the replay."""
        return self.replay.sample(
            tasks, self.options.ae_batch_size, self.options.context_episodes, self.draws
        )

    def _short_contexts(self, tasks: Tensor) -> Context:
        """Contexts that the encoder is trained on."""
        options = self.options
        return self.replay.sample(
            tasks, options.update_transitions, options.update_episodes, self.draws
        )

    @torch.no_grad()
    def tell_actors(self, tasks: np.ndarray, steps: int) -> Tensor:
        rows = steps if self.rollout.context_refresh == "step" else 1
        ids = torch.as_tensor(tasks)
        told = [self._told(self.acting(self.contexts(ids)).local) for _ in range(rows)]
        return torch.stack(told)

    def tell_critic(self, tasks: np.ndarray) -> TaskForCritic:
        context = self.contexts(torch.as_tensor(tasks))
        if self.options.critic_to_encoder:
            return _Inferred(self, context)
        with torch.no_grad():
            return TaskForCritic(self._told(self.acting(context).task))

    def trained_by_critic(self) -> list[nn.Parameter]:
        if not self.options.critic_to_encoder:
            return []
        return [*self.encoder.aggregator.parameters(), *self.encoder.over_agents.parameters()]

    # Exploration.

    def explore(self, environments: int) -> Tensor:
        """A draw from the prior ``N(0, I)`` for every agent, held for the whole rollout."""
        shape = (1, environments, self.agents, self.options.context_dim)
        z = torch.randn(shape, generator=self.noise, device=self.noise.device)
        return self.encoder.place(z)

    def observe(self, rollout: Rollout, tasks: np.ndarray) -> dict[str, float]:
        transitions = self.transitions(rollout)
        # Here and not at the loss: by then policies have acted on what was inferred from them.
        require_finite("transitions", transitions.sum(), {"transitions": transitions})
        metrics = self._recognised(transitions, tasks) if self.ready() else {}
        if self.options.normalize_transitions:
            self.encoder.aggregator.moments.update(transitions)
            if self.target is not None:
                moments = self.encoder.aggregator.moments.state_dict()
                self.target.aggregator.moments.load_state_dict(moments)
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
        ids = torch.as_tensor(np.unique(tasks)).repeat_interleave(_DRIFT_CONTEXTS)
        context = fresh.sample(
            ids, self.options.ae_batch_size, self.options.context_episodes, self.draws
        )
        keys = None
        if self.objective.needs_keys:
            keys = self.contexts(self.objective.key_tasks(ids))
        metrics = self.objective(context, ids, keys, self.acting, measure_gap=False)[1]
        return {
            f"accuracy/fresh_{level}": float(metrics[f"accuracy/{level}"])
            for level in ("global", "local")
        }

    def transitions(self, rollout: Rollout) -> Tensor:
        """Transitions ``(o, a, r, o')`` of a rollout, ``[T, N, A, F]``, none of them of the dead.

        Actions are as the environment takes them, clipped to their space, or one-hot.
        """
        actions = rollout.actions
        if self.actions:
            actions = F.one_hot(actions, self.actions).float()
        elif isinstance(self.action_space, spaces.Box):
            low, high = (
                torch.as_tensor(bound, device=actions.device)
                for bound in (self.action_space.low, self.action_space.high)
            )
            actions = actions.clamp(low, high)
        parts = [
            rollout.observations[:-1],
            actions,
            rollout.rewards.unsqueeze(-1),
            rollout.final_observations,
        ]
        return lived_through(torch.cat(parts, -1), rollout.active)

    def ready(self) -> bool:
        return bool((self.replay.added > 0).all())

    # Training.

    def prepare(self) -> None:
        for _ in range(self.options.n_init_updates):
            self._update_once()

    def update(self) -> dict[str, Any]:
        found: dict[str, list[Tensor]] = {}
        for left in reversed(range(self.options.ae_updates_per_iter)):
            for name, value in self._update_once(measure_gap=left == 0).items():
                found.setdefault(name, []).append(value.detach())
        metrics: dict[str, Any] = {
            name: float(torch.stack(values).mean()) for name, values in found.items()
        }
        if "mi/gap" in metrics:  # mi/l1out is that of the last update, mi/local the mean of all
            metrics["mi/gap"] = metrics["mi/l1out"] - metrics["mi/local"]
        return metrics | self._measure()

    def _update_once(self, measure_gap: bool = False) -> dict[str, Tensor]:
        # Every task as often as any other, or as many tasks as there are contexts.
        count = self.options.update_contexts
        tasks = torch.randperm(self.tasks, generator=self.draws).repeat(-(-count // self.tasks))
        tasks = tasks[:count]
        queries = self._short_contexts(tasks)
        keys: Context | None = None
        if self.objective.needs_keys:
            keys = self._short_contexts(self.objective.key_tasks(tasks))
        metrics: dict[str, Tensor]
        loss, metrics = self.objective(queries, tasks, keys, self.acting, measure_gap)
        batch: dict[str, Tensor | Context | None] = {
            "queries": queries,
            "tasks": tasks,
            "keys": keys,
        }
        require_finite("loss/encoder", loss, batch)
        self.optimiser.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.objective.parameters(), self.max_norm)
        require_finite("grad_norm/encoder", norm, batch)
        metrics["grad_norm/encoder"] = norm
        self.optimiser.step()
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
        ids = torch.arange(self.tasks).repeat_interleave(_DRIFT_CONTEXTS)
        encoding = self.acting(self.contexts(ids))
        z = torch.cat([encoding.task.mean.unsqueeze(1), encoding.local.mean], 1)
        z = z.view(self.tasks, _DRIFT_CONTEXTS, 1 + self.agents, -1)
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

    def buffers_state(self) -> dict[str, Any]:
        return {"replay": self.replay.state_dict()} if self.ready() else {}

    def load_buffers_state(self, state: dict[str, Any]) -> None:
        self.replay.load_state_dict(state["replay"])


class _Inferred(TaskForCritic):
    """Encoded anew each time it is asked for, so that the value loss reaches the encoder."""

    def __init__(self, inference: MG2L, context: Context) -> None:
        self.inference, self.context = inference, context

    def __call__(self) -> Tensor:
        return self.inference._told(self.inference.encoder.infer_task(self.context))
