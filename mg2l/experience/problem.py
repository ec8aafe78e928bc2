"""What an algorithm is built from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces

from mg2l.config.sections import Config
from mg2l.envs.base import TaskSet
from mg2l.nn.vision import Vision
from mg2l.ops.path import Path


@dataclass(frozen=True)
class ProblemSpec:
    """The run, the sizes of its environment, and where random numbers come from."""

    config: Config
    tasks: TaskSet
    agents: int
    observation: int
    """Width of an observation."""

    action_space: spaces.Space[Any]
    """Of every agent; discrete actions enter a transition one-hot."""

    noise: torch.Generator
    """Source of representations' noise, on the device."""

    draws: torch.Generator
    """Source of contexts, on the CPU."""

    path: Path
    """Operators to compute with."""

    vision: Vision | None = None
    """Where the image lies in an observation, with ``obs: cnn``."""

    @property
    def device(self) -> torch.device:
        return self.noise.device

    @property
    def action(self) -> int:
        """Width of an action within a transition."""
        space = self.action_space
        if isinstance(space, spaces.Discrete):
            return int(space.n)
        assert space.shape is not None
        return space.shape[0]

    @property
    def transition(self) -> int:
        """F: width of a transition ``(o, a, r, o')``."""
        return 2 * self.observation + self.action + 1
