"""RL^2: a recurrent policy that remembers what it did and what that paid, across episodes.

Duan, Schulman, Chen, Bartlett, Sutskever, Abbeel, *RL^2: Fast Reinforcement Learning via Slow
Reinforcement Learning*, 2016, arXiv:1611.02779, for several agents.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mg2l.algorithms.base import TaskForCritic, TaskInference
from mg2l.config.sections import Config
from mg2l.core.schema import ConfigError
from mg2l.experience.problem import Setting
from mg2l.experience.rollout import Rollout
from mg2l.experience.transitions import Transitions
from mg2l.nn.moments import RunningMoments


class RL2(TaskInference):
    """Beside its observation, an actor reads its previous action, reward and end of an episode.

    Rewards come standardised by the running moments of those of earlier rollouts. What it makes of
    all that is in the state of its GRU (``use_recurrent_policy``), which lasts for all episodes of
    a task (``recurrent_reset: task``, ``episodes_per_task``). There is no loss but PPO's.

    Decentralised: an agent remembers what happened to itself alone. The critic reads everybody's.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.transitions, self.device = Transitions(setting), setting.device
        self.rewards = RunningMoments(1)
        self.actor_width = setting.action + 2
        self.critic_width = self.agents * self.actor_width

    @classmethod
    def check_config(cls, config: Config) -> None:
        if not (config.policy.use_recurrent_policy or config.policy.use_naive_recurrent_policy):
            raise ConfigError("rl2 needs use_recurrent_policy=true, got false")

    def tell_actors(self, tasks: np.ndarray, steps: int) -> LastStep:
        return LastStep(self, len(tasks))

    def remember(self, rollout: Rollout, tasks: np.ndarray) -> None:
        active = None if rollout.active is None else rollout.active.flatten()
        self.rewards.update(rollout.rewards.reshape(-1, 1), active)

    def tell_critic(self, tasks: np.ndarray, rollout: Rollout) -> TaskForCritic:
        return TaskForCritic.as_actors(rollout)


class LastStep:
    """Previous action, reward and end of an episode of N environments' agents; a `Listener`.

    All of them are zero at the first step.
    """

    def __init__(self, inference: RL2, environments: int) -> None:
        self.transitions, self.rewards = inference.transitions, inference.rewards
        shape = (environments, inference.agents, inference.actor_width)
        self.last = torch.zeros(shape, device=inference.device)

    def tell(self) -> Tensor:
        return self.last

    def see(
        self,
        observations: Tensor,
        actions: Tensor,
        rewards: Tensor,
        final_observations: Tensor,
        over: Tensor,
    ) -> None:
        ended = over[:, None, None].expand(*rewards.shape, 1).to(rewards.dtype)
        paid = self.rewards.standardise(rewards.unsqueeze(-1))
        self.last = torch.cat([self.transitions.actions(actions), paid, ended], -1)
