"""The oracle: MAPPO whose actors and critics are given the task's features."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mg2l.algorithms.base import CriticLatent, TaskInference
from mg2l.experience.problem import ProblemSpec
from mg2l.experience.rollout import Rollout


class Oracle(TaskInference):
    """The upper bound of task inference: all agents and critics know the task."""

    latent_source = "features"
    knows_task = True
    features: Tensor

    def __init__(self, spec: ProblemSpec) -> None:
        super().__init__(spec)
        features = spec.tasks.features
        self.register_buffer("features", torch.as_tensor(features).float(), persistent=False)
        self.actor_latent_dim = self.critic_latent_dim = features.shape[1]

    def actor_latent(self, tasks: np.ndarray, steps: int) -> Tensor:
        latent = self.features[torch.as_tensor(tasks, device=self.features.device)]
        return latent[None, :, None].expand(-1, -1, self.agents, -1)

    def critic_latent(self, tasks: np.ndarray, rollout: Rollout) -> CriticLatent:
        return CriticLatent(self.features[torch.as_tensor(tasks, device=self.features.device)])
