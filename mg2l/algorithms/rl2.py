"""RL^2: a recurrent policy that remembers what it did and what that paid, across episodes.

Duan, Schulman, Chen, Bartlett, Sutskever, Abbeel, *RL^2: Fast Reinforcement Learning via Slow
Reinforcement Learning*, 2016, arXiv:1611.02779, for several agents.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mg2l.algorithms.base import CriticLatent, TaskInference
from mg2l.config.algorithms import register_algorithm
from mg2l.config.sections import Config
from mg2l.core.schema import ConfigError
from mg2l.experience.problem import ProblemSpec
from mg2l.experience.rollout import Rollout, Step
from mg2l.nn.moments import RunningMoments


class RL2(TaskInference):
    """Beside its observation, an actor reads its previous action, reward and end of an episode.

    Rewards come standardised by the running moments of those of earlier rollouts. What it makes of
    all that is in the state of its GRU (``use_recurrent_policy``), which lasts for all episodes of
    a task (``recurrent_reset: task``, ``episodes_per_task``). There is no loss but PPO's.

    Decentralised: an agent remembers its own steps alone. The critic reads those of all agents.
    """

    latent_source = "last_step"

    def __init__(self, spec: ProblemSpec) -> None:
        super().__init__(spec)
        self.rewards = RunningMoments(1)
        self.actor_latent_dim = spec.action + 2
        self.critic_latent_dim = self.agents * self.actor_latent_dim

    @classmethod
    def check_config(cls, config: Config) -> None:
        if not (config.policy.use_recurrent_policy or config.policy.use_naive_recurrent_policy):
            raise ConfigError("rl2 needs use_recurrent_policy=true, got false")

    def agent_manifest(self) -> dict[str, Any]:
        moments = {"reward_mean": float(self.rewards.mean), "reward_std": float(self.rewards.std)}
        return {"latent": moments}

    def actor_latent(self, tasks: np.ndarray, steps: int) -> LastStep:
        return LastStep(self, len(tasks))

    def add_rollout(self, rollout: Rollout, tasks: np.ndarray) -> None:
        active = None if rollout.active is None else rollout.active.flatten()
        self.rewards.update(rollout.rewards.reshape(-1, 1), active)

    def critic_latent(self, tasks: np.ndarray, rollout: Rollout) -> CriticLatent:
        return CriticLatent.same_as_actors(rollout)


class LastStep:
    """Previous action, reward and end of an episode of N environments' agents; a `LatentStream`.

    All of them are zero at the first step.
    """

    def __init__(self, inference: RL2, num_envs: int) -> None:
        self.transitions, self.rewards = inference.transitions, inference.rewards
        shape = (num_envs, inference.agents, inference.actor_latent_dim)
        self.last = torch.zeros(shape, device=inference.device)

    def current(self) -> Tensor:
        return self.last

    def update(self, step: Step) -> None:
        done = step.done[:, None, None].expand(*step.rewards.shape, 1).to(step.rewards.dtype)
        rewards = self.rewards.standardise(step.rewards.unsqueeze(-1))
        self.last = torch.cat([self.transitions.actions(step.actions), rewards, done], -1)


register_algorithm("rl2", RL2)
