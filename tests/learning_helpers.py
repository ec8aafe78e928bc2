"""An environment of two tasks in which inference has something to find, and learners in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from method_helpers import TINY, KnownConfig, KnownEnv

from mg2l.config import files as loading
from mg2l.envs import registry
from mg2l.envs.base import StepResult
from mg2l.training.learner import Learner


class PaidEnv(KnownEnv):
    """Task 0 pays 1 and task 1 pays -1 at every step; nothing else differs between them."""

    def step(self, actions: Any) -> StepResult:
        observations, rewards, terminated, truncated, info = super().step(actions)
        rewards[:] = np.where(self.task_ids == 0, 1.0, -1.0)[:, None]
        return observations, rewards, terminated, truncated, info


class GuessEnv(PaidEnv):
    """Pays what agents do, times 1 in task 0 and -1 in task 1: a reward identifies it."""

    def step(self, actions: Any) -> StepResult:
        observations, rewards, terminated, truncated, info = super().step(actions)
        rewards *= np.asarray(actions)[..., 0].clip(-0.5, 0.5)
        return observations, rewards, terminated, truncated, info


def paid_learner(algo: str, env: type[PaidEnv] = PaidEnv, **values: Any) -> Learner:
    """A learner in ``PaidEnv`` with an algorithm's own file, before its first iteration."""
    registry.register("paid", KnownConfig, env)
    sizes = {"n_rollout_threads": 8, "rollout_threads_divisor": 1, "n_ae_rollout_threads": 4}
    config = loading.load_config(algo=algo, env="paid", overrides={**TINY, **sizes, **values})
    return Learner(config, torch.device("cpu"))


def iterate(learner: Learner) -> dict[str, Any]:
    """One iteration without exploration; its metrics."""
    tasks = learner.draw_tasks()
    rollout = learner.collect(tasks)
    return learner.update_policy(rollout, tasks) | learner.update_inference()


MEMORY: dict[str, Any] = {
    "env": GuessEnv, "actor_lr": 5e-3, "critic_lr": 5e-3, "ppo_epoch": 5, "n_rollout_threads": 32,
    "trial_gamma": 0.5, "entropy_coef": 0.0,
}  # fmt: skip
"""Values of a learner that is checked by `check_memory`."""


def check_memory(learner: Learner) -> None:
    """Without memory nothing can be earned; with it, each episode but its very first step can."""
    returns = []
    for _ in range(40):
        tasks = learner.draw_tasks()
        rollout = learner.collect(tasks)
        learner.update_policy(rollout, tasks)
        returns.append(float(rollout.rewards.mean()))
    assert abs(returns[0]) < 0.1
    assert np.mean(returns[-5:]) > 0.25  # 0.5 is all that can be
