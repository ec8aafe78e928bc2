"""What actors and critics are conditioned on besides observations, and how that is learned.

Each algorithm is one subclass of `TaskInference`; the loop, the networks and PPO are the same.
Other parts ask it what it can do by properties and methods, and never which algorithm it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mg2l.config.algorithms import AlgorithmConfig
from mg2l.config.sections import Config
from mg2l.core.schema import bounded
from mg2l.estimators.gaussian import Gaussian
from mg2l.experience.finite import require_finite
from mg2l.experience.problem import ProblemSpec
from mg2l.experience.replay import Context
from mg2l.experience.rollout import LatentStream, Rollout
from mg2l.experience.transitions import Transitions

if TYPE_CHECKING:
    from mg2l.algorithms.agent import AgentNetwork

LatentSource = Literal["nothing", "features", "last_step", "context", "belief"]
"""Where an actor's latent comes from: there is none; the task's own features; what happened in the
last step; a set of transitions; a belief that is updated with every transition."""


class Encoding(NamedTuple):
    """What is inferred from B contexts."""

    task: Gaussian
    """Global representation ``z``, ``[B, D]``."""

    local: Gaussian
    """Each agent's own representation ``z^i``, ``[B, A, D]``; its gradients stop at ``x^i``."""


class TaskInference(nn.Module):
    """Base of all algorithms: nothing is known of the task, nothing is learned of it.

    Args:
        spec: the run and the sizes of its environment.
    """

    config_class: type[AlgorithmConfig] = AlgorithmConfig
    """Dataclass of the algorithm's own keys."""

    latent_source: LatentSource = "nothing"
    """Where an actor's latent comes from."""

    actor_latent_dim: int = 0
    """Width of an actor's latent."""

    critic_latent_dim: int = 0
    """Width of a critic's latent."""

    explores: bool = False
    """Whether it learns from exploration rollouts."""

    knows_task: bool = False
    """Whether it is given the task instead of inferring it: a bound for those that infer."""

    representation_dim: int = 0
    """How many of the first numbers of an actor's latent represent the task; 0 where none do."""

    update_interval: int = 1
    """Iterations between two calls of `update`."""

    optimiser: torch.optim.Optimizer | None = None
    """Trains the inference networks, if there are any."""

    def __init__(self, spec: ProblemSpec) -> None:
        super().__init__()
        self.agents, self.device = spec.agents, spec.device
        self.options = spec.config.algo
        self.transitions = Transitions(spec)

    @classmethod
    def check_config(cls, config: Config) -> None:
        """Validate what this algorithm is to run with, before anything is built.

        Raises:
            ConfigError: values with which it cannot run; the message names their keys.
        """

    # Conditioning.

    def actor_latent(self, tasks: np.ndarray, steps: int) -> Tensor | LatentStream | None:
        """What each actor is conditioned on at each step of a rollout.

        Args:
            tasks: ``[N]`` task of each environment.
            steps: T.

        Returns:
            ``[T, N, A, D]``, or ``[1, N, A, D]`` for the same at every step, or None for nothing,
            or a stream that follows the rollout step by step.
        """
        return None

    def critic_latent(self, tasks: np.ndarray, rollout: Rollout) -> CriticLatent:
        """What the critics are conditioned on in a rollout in environments with tasks ``[N]``."""
        return CriticLatent(None)

    def trained_by_critic(self) -> list[nn.Parameter]:
        """Parameters that the value loss trains too."""
        return []

    # Inference from contexts, where `latent_source` is "context".

    @property
    def infers_from_contexts(self) -> bool:
        """Whether the task is inferred from sets of transitions, by `infer`."""
        return self.latent_source == "context"

    @property
    def context_length(self) -> int:
        """T: transitions in a context from which actors' latents are inferred."""
        raise self._lacks("contexts")

    def infer(self, context: Context) -> Encoding:
        """Representations of B contexts ``[B, T, A, F]``, an agent's from its own transitions."""
        raise self._lacks("contexts")

    def latent_for_actors(self, encoding: Encoding) -> Tensor:
        """Latents of the actors after B contexts, ``[B, A, D]``."""
        raise self._lacks("contexts")

    @property
    def has_priorities(self) -> bool:
        """Whether `priorities` are known."""
        return False

    def priorities(self, context: Context | Tensor) -> Tensor:
        """Weight of each transition in what its agent infers: B contexts to ``[B, A, T]``.

        They sum to 1 over the transitions.
        """
        raise self._lacks("priorities")

    def information(self, context: Context, tasks: Tensor) -> dict[str, float]:
        """Bounds on the information of B contexts about their tasks ``[B]`` [nats], by name."""
        return {}

    # Belief step by step, where `latent_source` is "belief".

    def initial_belief_state(self, rows: int) -> Tensor:
        """State before the first transition, ``[G, rows, 1, H]``, of G agents or one team."""
        raise self._lacks("beliefs")

    def belief_step(self, transition: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take in one transition of each agent.

        Args:
            transition: ``[A, B, F]``.
            state: ``[G, B, 1, H]`` before it.

        Returns:
            The actors' latents ``[G, B, D]`` from now on, and the next state.
        """
        raise self._lacks("beliefs")

    def _lacks(self, what: str) -> NotImplementedError:
        return NotImplementedError(f"{type(self).__name__} has no {what}")

    # Decentralised execution.

    @property
    def decentralised(self) -> bool:
        """Whether each agent acts on its own experience alone once it is trained."""
        return True

    def agent_network(self, agent: int) -> AgentNetwork | None:
        """What one agent infers the task with; None where its latent needs no network.

        Raises:
            ValueError: agents do not act on their own experience alone; says why.
        """
        return None

    def agent_manifest(self) -> dict[str, Any]:
        """What an exported agent must know besides its networks; goes into ``export.json``."""
        return {}

    # Experience.

    def add_rollout(self, rollout: Rollout, tasks: np.ndarray) -> None:
        """Store a rollout that the policies are trained on; called before `critic_latent`."""

    def sample_prior(self, num_envs: int) -> Tensor | None:
        """Latents of actors that know nothing of their task yet: ``[1, N, A, D]``."""
        return None

    def exploration_latent(self, num_envs: int, steps: int) -> Tensor | None:
        """Latents of the actors in an exploration rollout of T steps: ``[T | 1, N, A, D]``."""
        return self.sample_prior(num_envs)

    def add_exploration(self, rollout: Rollout, tasks: np.ndarray) -> dict[str, float]:
        """Store an exploration rollout in environments with tasks ``[N]``; returns metrics."""
        return {}

    def ready(self) -> bool:
        """Whether every training task has been explored."""
        return True

    # Training.

    def pretrain(self) -> None:
        """Train on the first exploration rollouts, before any policy acts on what is inferred."""

    def update(self) -> dict[str, Any]:
        """Train on the stored experience; returns metrics."""
        return {}

    def buffers_state(self) -> dict[str, Any]:
        """What is neither a parameter nor an optimiser's and yet needed to resume."""
        return {}

    def load_buffers_state(self, state: dict[str, Any]) -> None:
        """Restore `buffers_state`."""


class CriticLatent:
    """What the critics are conditioned on while one rollout is trained on.

    Args:
        latent: ``[N, D]``, or ``[T + 1, N, D]`` for something else at every step, or None.
    """

    def __init__(self, latent: Tensor | None) -> None:
        self._latent = latent

    @classmethod
    def same_as_actors(cls, rollout: Rollout) -> CriticLatent:
        """The latents of all actors at every step, those of the last step repeated after it."""
        assert rollout.latent is not None
        joint = rollout.latent.flatten(2)
        return cls(torch.cat([joint, joint[-1:]]))

    def __call__(self) -> Tensor | None:
        """The latent, with the graph to the networks that computed it where these are trained."""
        return self._latent

    def penalty(self) -> Tensor | None:
        """What is minimised together with the value loss for the latest latent, or None."""
        return None


@dataclass
class LearnedConfig(AlgorithmConfig):
    """Keys of the algorithms that learn to infer the task."""

    context_dim: int = bounded(16, ge=1, le=8192)
    """Width D of a task representation."""

    normalize_transitions: bool = True
    """Standardise transitions with the moments of all that were explored."""

    lr: float = bounded(2e-3, gt=0)
    """Learning rate of the encoder."""

    ae_updates_per_iter: int = bounded(50, ge=0, le=1_000_000)
    """Encoder updates per iteration."""

    train_ae_interval: int = bounded(1, ge=1)
    """Iterations between two rounds of encoder updates."""


class LearnedInference(TaskInference):
    """Base of the algorithms whose networks learn to infer the task: their training loop.

    A subclass makes its networks, calls `train_with`, and says what is minimised (`loss`).

    Args:
        spec: the run and the sizes of its environment.
    """

    config_class: type[AlgorithmConfig] = LearnedConfig
    options: LearnedConfig
    optimiser: torch.optim.Optimizer

    def __init__(self, spec: ProblemSpec) -> None:
        super().__init__(spec)
        ppo = spec.config.ppo
        self.max_norm = ppo.max_grad_norm if ppo.use_max_grad_norm else math.inf
        self.noise, self.draws = spec.noise, spec.draws
        self.representation_dim = self.options.context_dim
        self.update_interval = self.options.train_ae_interval
        self._eps = ppo.opti_eps

    def train_with(self, parameters: list[nn.Parameter]) -> None:
        """Make the optimiser of the encoder's parameters."""
        self.trained = parameters
        self.optimiser = torch.optim.Adam(parameters, self.options.lr, eps=self._eps, fused=True)

    def loss(self, measure_gap: bool) -> tuple[Tensor, dict[str, Tensor], dict[str, Any]]:
        """Loss on freshly drawn experience, its metrics, and the tensors it was computed from.

        Args:
            measure_gap: whether to compute metrics that cost more than the loss itself, too.
        """
        raise NotImplementedError

    def update(self) -> dict[str, Any]:
        history: dict[str, list[Tensor]] = {}
        for left in reversed(range(self.options.ae_updates_per_iter)):
            for name, value in self._update_once(measure_gap=left == 0).items():
                history.setdefault(name, []).append(value.detach())
        return {name: float(torch.stack(values).mean()) for name, values in history.items()}

    def _update_once(self, measure_gap: bool = False) -> dict[str, Tensor]:
        loss, metrics, batch = self.loss(measure_gap)
        require_finite("loss/encoder", loss, batch)
        self.optimiser.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.trained, self.max_norm)
        require_finite("grad_norm/encoder", norm, batch)
        self.optimiser.step()
        return metrics | {"grad_norm/encoder": norm}
