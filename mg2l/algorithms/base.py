"""What actors and critics are conditioned on besides observations: nothing, unless a subclass says.

Each algorithm is one subclass of `TaskInference`; the loop, the networks and PPO are the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mg2l.config.sections import Config
from mg2l.experience.problem import ProblemSpec
from mg2l.experience.rollout import LatentStream, Rollout


class TaskInference(nn.Module):
    """Base of all algorithms: nothing is known of the task, nothing is learned of it.

    Args:
        spec: the run and the sizes of its environment.
    """

    actor_latent_dim: int = 0
    """Width of an actor's latent."""

    critic_latent_dim: int = 0
    """Width of a critic's latent."""

    explores: bool = False
    """Whether it learns from exploration rollouts."""

    optimiser: torch.optim.Optimizer | None = None
    """Trains the inference networks, if there are any."""

    def __init__(self, spec: ProblemSpec) -> None:
        super().__init__()
        self.agents = spec.agents

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

    # Experience.

    def add_rollout(self, rollout: Rollout, tasks: np.ndarray) -> None:
        """Store a rollout that the policies are trained on; called before `critic_latent`."""

    def sample_prior(self, num_envs: int) -> Tensor | None:
        """Latents of the actors in an exploration rollout: ``[1, N, A, D]``, held throughout."""
        return None

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
