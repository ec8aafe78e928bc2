"""What actors and critics are told of the task: nothing, or the task itself.

Each algorithm is one subclass of `TaskInference`; the loop, the networks and PPO are the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mg2l.config.sections import Config
from mg2l.experience.problem import Setting
from mg2l.experience.rollout import Listener, Rollout


class TaskInference(nn.Module):
    """Base of all algorithms: nothing is known of the task, nothing is learned of it.

    Args:
        setting: the run and the sizes of its environment.
    """

    actor_width: int = 0
    """Width of what an actor is told."""

    critic_width: int = 0
    """Width of what a critic is told."""

    explores: bool = False
    """Whether it learns from exploration rollouts."""

    optimiser: torch.optim.Optimizer | None = None
    """Trains the inference networks, if there are any."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.agents = setting.agents

    @classmethod
    def check_config(cls, config: Config) -> None:
        """Judge what this algorithm is to run with, before anything is built.

        Raises:
            ConfigError: values with which it cannot; the message names their keys.
        """

    def tell_actors(self, tasks: np.ndarray, steps: int) -> Tensor | Listener | None:
        """What each actor is told at each step of a rollout.

        Args:
            tasks: ``[N]`` task of each environment.
            steps: T.

        Returns:
            ``[T, N, A, D]``, or ``[1, N, A, D]`` for the same at every step, or None for nothing,
            or who says it step by step from what happens.
        """
        return None

    def remember(self, rollout: Rollout, tasks: np.ndarray) -> None:
        """Take in a rollout that the policies are trained on, before `tell_critic`."""

    def tell_critic(self, tasks: np.ndarray, rollout: Rollout) -> TaskForCritic:
        """What the critic is told of the tasks ``[N]`` of a rollout's environments."""
        return TaskForCritic(None)

    def trained_by_critic(self) -> list[nn.Parameter]:
        """Parameters that the value loss trains too."""
        return []

    def explore(self, environments: int) -> Tensor | None:
        """What actors are told in an exploration rollout: ``[1, N, A, D]``, held throughout."""
        return None

    def observe(self, rollout: Rollout, tasks: np.ndarray) -> dict[str, float]:
        """Take in an exploration rollout in environments with tasks ``[N]``; returns metrics."""
        return {}

    def ready(self) -> bool:
        """Whether every training task has been explored."""
        return True

    def prepare(self) -> None:
        """Train on the first exploration rollouts, before any policy acts on what is inferred."""

    def update(self) -> dict[str, Any]:
        """Train on the replay; returns metrics."""
        return {}

    def buffers_state(self) -> dict[str, Any]:
        """What is neither a parameter nor an optimiser's and yet needed to resume."""
        return {}

    def load_buffers_state(self, state: dict[str, Any]) -> None:
        """Restore `buffers_state`."""


class TaskForCritic:
    """What the critic is told while one rollout is trained on.

    Args:
        told: ``[N, D]``, or ``[T + 1, N, D]`` for something else at every step, or None.
    """

    def __init__(self, told: Tensor | None) -> None:
        self._told = told

    @classmethod
    def as_actors(cls, rollout: Rollout) -> TaskForCritic:
        """At every step all that the actors were told, and after the last step the same again."""
        assert rollout.task is not None
        told = rollout.task.flatten(2)
        return cls(torch.cat([told, told[-1:]]))

    def __call__(self) -> Tensor | None:
        """``told``, with the graph to the networks that made it where these are trained."""
        return self._told

    def penalty(self) -> Tensor | None:
        """What is minimised together with the value loss, of what was told last; or None."""
        return None
