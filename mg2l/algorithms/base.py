"""The latents that actors and critics are conditioned on, and how they are learned.

Each algorithm is one subclass of `TaskInference`; the loop, the networks and PPO are the same.
Other parts query its properties and methods, and never which algorithm it is.

In data-parallel training (`mg2l.core.distributed`) the environments N of a rollout are those of one
process, and a loss is the mean over its own rows of an update.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mg2l.algorithms.config import LearnedConfig
from mg2l.config.algorithms import AlgorithmConfig
from mg2l.core.distributed import world
from mg2l.estimators.gaussian import Gaussian
from mg2l.experience.finite import require_finite
from mg2l.experience.problem import ProblemSpec
from mg2l.experience.replay import Context
from mg2l.experience.rollout import LatentStream, Rollout
from mg2l.experience.transitions import Transitions
from mg2l.nn.adam import Adam, clip_grad_norm
from mg2l.nn.vjp import Both, Pull

if TYPE_CHECKING:
    from mg2l.algorithms.agent import AgentNetwork

LatentSource = Literal["nothing", "features", "last_step", "context", "belief"]
"""Source of an actor's latent: none; the task's own features; the last step; a set of transitions;
a belief that is updated with every transition."""


class Encoding(NamedTuple):
    """Representations inferred from B contexts."""

    task: Gaussian
    """Global representation ``z``, ``[B, D]``."""

    local: Gaussian
    """Each agent's own representation ``z^i``, ``[B, A, D]``; its gradients stop at ``x^i``."""


class TaskInference(nn.Module):
    """Base of all algorithms; by itself it knows and learns nothing about the task.

    Args:
        spec: the run and the sizes of its environment.
    """

    config_class: type[AlgorithmConfig] = AlgorithmConfig
    """Dataclass of the algorithm's own keys."""

    latent_source: LatentSource = "nothing"
    """Source of an actor's latent."""

    actor_latent_dim: int = 0
    """Width of an actor's latent."""

    critic_latent_dim: int = 0
    """Width of a critic's latent."""

    explores: bool = False
    """Whether it learns from exploration rollouts."""

    knows_task: bool = False
    """Whether it is given the task instead of inferring it: an upper bound for those that infer."""

    representation_dim: int = 0
    """How many of the first numbers of an actor's latent represent the task; 0 where none do."""

    update_interval: int = 1
    """Iterations between two calls of `update`."""

    run: int = 1
    """How many consecutive transitions are drawn together for a context."""

    optimiser: Adam | None = None
    """Trains the inference networks, if there are any."""

    def __init__(self, spec: ProblemSpec) -> None:
        super().__init__()
        self.agents, self.device = spec.agents, spec.device
        self.options = spec.config.algo
        self.transitions = Transitions(spec)

    # Conditioning.

    def actor_latent(self, tasks: np.ndarray, steps: int) -> Tensor | LatentStream | None:
        """Latents that the actors are conditioned on at each step of a rollout.

        Args:
            tasks: ``[N]`` task of each environment.
            steps: T.

        Returns:
            ``[T, N, A, D]``, or ``[1, N, A, D]`` for the same at every step, or None for nothing,
            or a stream that follows the rollout step by step.
        """
        return None

    @property
    def grows_contexts(self) -> bool:
        """Whether contexts grow with every step in which agents act on them."""
        return False

    def critic_latent(self, tasks: np.ndarray, rollout: Rollout) -> CriticLatent:
        """Latent of the critics in a rollout in environments with tasks ``[N]``."""
        return CriticLatent(None)

    def trained_by_critic(self) -> list[nn.Parameter]:
        """Parameters that the value loss trains too."""
        return []

    def make_memory(self, groups: int, width: int) -> Any:
        """Memory of recurrent actors and critics, a `mg2l.nn.policy.Memory`.

        Args:
            groups: networks side by side, A or 1 where agents share one.
            width: H, of what it reads and returns.

        Returns:
            None for a GRU.
        """
        return None

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
        """Weight of each transition in its agent's inference: B contexts to ``[B, A, T]``.

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
        """Whether a trained agent acts on its own experience only."""
        return True

    def agent_network(self, agent: int) -> AgentNetwork | None:
        """The inference network of one agent; None where its latent needs no network.

        Raises:
            ValueError: agents do not act on their own experience only; the message says why.
        """
        return None

    def agent_manifest(self) -> dict[str, Any]:
        """Entries of ``export.json`` that an exported agent needs besides its networks."""
        return {}

    # Experience.

    def add_rollout(self, rollout: Rollout, tasks: np.ndarray) -> None:
        """Store a rollout that the policies are trained on; called before `critic_latent`."""

    def sample_prior(self, num_envs: int) -> Tensor | None:
        """Latents of actors that know nothing about their task yet: ``[1, N, A, D]``."""
        return None

    def growing_latent(
        self,
        num_envs: int,
        earlier: Tensor | None = None,
        seen: Tensor | None = None,
        seed: int | None = None,
    ) -> LatentStream:
        """Latents that actors infer step by step.

        Args:
            num_envs: N.
            earlier: ``[N, T, A, F]`` drawn from what they have seen before, T those of a context;
                None if that is nothing.
            seen: ``[N]`` int64, how many transitions these stand for.
            seed: of the draws of contexts; None takes it from the algorithm's.
        """
        raise self._lacks("growing contexts")

    @property
    def explores_on_context(self) -> bool:
        """Whether agents explore on what they have inferred so far."""
        return False

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
        """Train on the first exploration rollouts, before any policy acts on inferred latents."""

    def update(self) -> dict[str, Any]:
        """Train on the stored experience; returns metrics."""
        return {}

    def buffers_state(self) -> dict[str, Any]:
        """State needed to resume that is neither a parameter nor an optimiser's."""
        return {}

    def load_buffers_state(self, state: dict[str, Any]) -> None:
        """Restore `buffers_state`."""

    @classmethod
    def upgrade(cls, networks: dict[str, Tensor], written: int) -> dict[str, Tensor]:
        """Convert its networks from a checkpoint of an earlier format.

        Args:
            networks: ``state_dict`` of this module.
            written: format of the checkpoint.
        """
        return networks


class CriticLatent:
    """Latent that the critics are conditioned on while one rollout is trained on.

    Args:
        latent: ``[N, D]``, or ``[T + 1, N, D]`` where it changes with every step, or None.
    """

    every_minibatch: bool = False
    """Whether it is inferred again for every minibatch, and the encoder trained with each critic
    step, or both once an epoch."""

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

    def vjp(self, both: Both = map) -> tuple[Tensor | None, Pull | None]:
        """The latent, and what takes its gradient back, None where it trains nothing.

        The gradient of the penalty is added; see `mg2l.nn.vjp`.

        Args:
            both: does two halves of what takes long, with the same results in turns and at once.
        """
        latent = self()
        if latent is None or not latent.requires_grad:
            return latent, None

        def pull(grad: Tensor) -> None:
            penalty = self.penalty()
            loss = (latent * grad).sum()
            if penalty is not None:
                loss = loss + penalty.sum() / world.size  # a mean over own environments
            loss.backward()

        return latent.detach(), pull

    def penalty(self) -> Tensor | None:
        """Penalty for the latest latent, minimised together with the value loss, or None."""
        return None


class LearnedInference(TaskInference):
    """Base of the algorithms whose networks learn to infer the task: their training loop.

    A subclass makes its networks, calls `train_with`, and defines the `loss`.

    Args:
        spec: the run and the sizes of its environment.
    """

    config_class: type[AlgorithmConfig] = LearnedConfig
    options: LearnedConfig
    optimiser: Adam

    def __init__(self, spec: ProblemSpec) -> None:
        super().__init__(spec)
        ppo = spec.config.ppo
        self.max_norm = ppo.max_grad_norm if ppo.use_max_grad_norm else math.inf
        self.noise, self.draws, self.backend = spec.noise, spec.draws, spec.backend
        self.representation_dim = self.options.context_dim
        self.update_interval = self.options.train_ae_interval
        self._eps = ppo.opti_eps

    def train_with(self, parameters: list[nn.Parameter]) -> None:
        """Make the optimiser of the encoder's parameters."""
        self.trained = parameters
        self.optimiser = Adam(parameters, self.options.lr, self._eps)

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
        means = [torch.stack(values).mean().double() for values in history.values()]
        if not means:
            return {}
        totals = world.sum(torch.stack(means)) / world.size
        return dict(zip(history, totals.tolist(), strict=True))

    def _update_once(self, measure_gap: bool = False) -> dict[str, Tensor]:
        return self._step(*self.gradients(measure_gap))

    def gradients(self, measure_gap: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Compute the gradients of this process's part of a loss on freshly drawn experience.

        Here they are those of `loss`, by autograd.

        Args:
            measure_gap: see `loss`.

        Returns:
            Metrics of the loss, and the tensors it was computed from.
        """
        return self._differentiate(*self.loss(measure_gap))

    def _differentiate(
        self, loss: Tensor, metrics: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What `gradients` returns; the arguments are what `loss` returns."""
        require_finite("loss/encoder", loss, batch)
        self.optimiser.zero_grad()
        (loss / world.size).backward()
        return metrics, batch

    def _step(self, metrics: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """One step down the gradients; the arguments are what `gradients` returns."""
        world.start_sum(p.grad for p in self.trained if p.grad is not None)()
        norm = clip_grad_norm(self.trained, self.max_norm, self.backend)
        require_finite("grad_norm/encoder", norm, batch)
        self.optimiser.step()
        return metrics | {"grad_norm/encoder": norm}
