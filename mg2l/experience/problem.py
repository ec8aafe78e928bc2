"""Specification of the problem that an algorithm is built for."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mg2l.config.sections import Config
from mg2l.envs.actions import ActionLayout
from mg2l.envs.base import TaskSet
from mg2l.nn.vision import Vision
from mg2l.ops.backend import Backend


@dataclass(frozen=True)
class ProblemSpec:
    """The run, the sizes of its environment, and where random numbers come from."""

    config: Config
    tasks: TaskSet
    agents: int
    observation: int
    """Width of the widest observation."""

    actions: ActionLayout
    """Layout of the agents' actions; choices enter a transition one-hot."""

    noise: torch.Generator
    """Source of representations' noise, on the device."""

    draws: torch.Generator
    """Source of contexts and minibatches, on the device."""

    backend: Backend
    """Operators to compute with."""

    vision: Vision | None = None
    """Where the image lies in an observation, with ``obs: cnn``."""

    @property
    def device(self) -> torch.device:
        return self.noise.device

    @property
    def action(self) -> int:
        """Width of an action within a transition."""
        return self.actions.width

    @property
    def transition(self) -> int:
        """F: width of a transition ``(o, a, r, o')``."""
        return 2 * self.observation + self.action + 1
