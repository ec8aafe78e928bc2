"""The oracle: MAPPO whose actors and critics are given the task's features."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mg2l.algorithms.base import TaskForCritic, TaskInference
from mg2l.experience.problem import Setting
from mg2l.experience.rollout import Rollout


class Oracle(TaskInference):
    """What inference can reach at best: everybody knows the task."""

    features: Tensor

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        features = setting.tasks.features
        self.register_buffer("features", torch.as_tensor(features).float(), persistent=False)
        self.actor_width = self.critic_width = features.shape[1]

    def tell_actors(self, tasks: np.ndarray, steps: int) -> Tensor:
        told = self.features[torch.as_tensor(tasks, device=self.features.device)]
        return told[None, :, None].expand(-1, -1, self.agents, -1)

    def tell_critic(self, tasks: np.ndarray, rollout: Rollout) -> TaskForCritic:
        return TaskForCritic(self.features[torch.as_tensor(tasks, device=self.features.device)])
