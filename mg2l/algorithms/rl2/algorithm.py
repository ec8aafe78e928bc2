"""RL^2: a recurrent policy that remembers its actions and rewards across episodes.

Duan, Schulman, Chen, Bartlett, Sutskever, Abbeel, *RL^2: Fast Reinforcement Learning via Slow
Reinforcement Learning*, 2016, arXiv:1611.02779, for several agents.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mg2l.algorithms.base import CriticLatent, TaskInference
from mg2l.algorithms.rl2.config import RL2Config
from mg2l.config.algorithms import AlgorithmConfig
from mg2l.experience.problem import ProblemSpec
from mg2l.experience.rollout import Rollout, Step
from mg2l.nn.moments import RunningMoments


class RL2(TaskInference):
    """Beside its observation, an actor reads its previous action, reward and end of an episode.

    Rewards are standardised by the running moments of earlier rollouts. Its memory is the state of
    its GRU, which lasts for all episodes of a task (``recurrent_reset: task``,
    ``episodes_per_task``). There is no loss but PPO's, back through whole trials
    (``use_naive_recurrent_policy``), in which an episode is credited with what the next ones pay
    (``trial_gamma``).

    Decentralised: an agent remembers its own steps only. The critic reads those of all agents.
    """

    config_class: type[AlgorithmConfig] = RL2Config
    latent_source = "last_step"

    def __init__(self, spec: ProblemSpec) -> None:
        super().__init__(spec)
        self.rewards = RunningMoments(1)
        self.actor_latent_dim = spec.action + 2
        self.critic_latent_dim = self.agents * self.actor_latent_dim

    @classmethod
    def upgrade(cls, networks: dict[str, Tensor], written: int) -> dict[str, Tensor]:
        """Format 1 has no moments of rewards, which were read in their own units, and still are."""
        if written > 1:
            return networks
        frozen = {"count": 1e18, "mean": 0.0, "deviation": 1e18}  # which no reward changes any more
        moments = {name: torch.tensor([x], dtype=torch.float64) for name, x in frozen.items()}
        return {**networks, **{f"rewards.{name}": x for name, x in moments.items()}}

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

    def arguments(self) -> dict[str, Any]:
        return {}

    def update(self, step: Step) -> None:
        done = step.done[:, None, None].expand(*step.rewards.shape, 1).to(step.rewards.dtype)
        rewards = self.rewards.standardise(step.rewards.unsqueeze(-1))
        self.last = torch.cat([self.transitions.actions(step.actions), rewards, done], -1)
