"""An environment of two tasks in which inference has something to find, and learners in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from method_helpers import TINY, KnownConfig, KnownEnv

from mg2l.config import files as loading
from mg2l.envs import registry
from mg2l.envs.base import StepResult
from mg2l.training.learner import Learner


class PaidEnv(KnownEnv):
    """Task 0 pays 1 and task 1 pays -1 at every step; nothing else tells them apart."""

    def step(self, actions: Any) -> StepResult:
        observations, rewards, terminated, truncated, info = super().step(actions)
        rewards[:] = np.where(self.task_ids == 0, 1.0, -1.0)[:, None]
        return observations, rewards, terminated, truncated, info


def paid_learner(patch: pytest.MonkeyPatch, algo: str, **values: Any) -> Learner:
    """A learner in ``PaidEnv`` with an algorithm's own file, before its first iteration."""
    patch.setitem(registry._families, "paid", registry._Family(KnownConfig, PaidEnv))
    sizes = {"n_rollout_threads": 8, "rollout_threads_divisor": 1, "n_ae_rollout_threads": 4}
    config = loading.load_config(algo=algo, env="paid", overrides={**TINY, **sizes, **values})
    return Learner(config, torch.device("cpu"))


def iterate(learner: Learner) -> dict[str, Any]:
    """One iteration without exploration; its metrics."""
    tasks = learner.draw_tasks()
    rollout = learner.collect(tasks)
    return learner.update_policy(rollout, tasks) | learner.update_inference()
