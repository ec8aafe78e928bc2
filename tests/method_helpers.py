"""Tiny runs, and an environment whose every number is known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mg2l.algorithms.base import CriticLatent
from mg2l.algorithms.mg2l.algorithm import MG2L
from mg2l.config import files as loading
from mg2l.config.sections import Config
from mg2l.core.schema import bounded
from mg2l.envs import registry
from mg2l.envs.base import EnvConfig, FloatArray, Info, StepResult, TaskSet, VectorEnv
from mg2l.experience.rollout import Rollout
from mg2l.training.batch import Batch
from mg2l.training.learner import Learner

TINY = {
    "gpu_id": -1,
    "n_iters": 2,
    "max_ep_len": 10,
    "n_rollout_threads": 4,
    "n_ae_rollout_threads": 3,
    "n_init_rollouts": 2,
    "n_init_updates": 2,
    "sample_ae_interval": 1,
    "ae_updates_per_iter": 2,
    "ae_batch_size": 10,
    "ae_buffer_size": 100,
    "context_dim": 8,
    "hidden_sizes_mlp": [16],
    "algo_hidden_size": 16,
    "ppo_epoch": 2,
    "num_mini_batch": 1,
    "save_model": False,
    "log_tensorboard": False,
}


def outputs(head: Any, hidden: Tensor) -> Tensor:
    """What a head takes of features, see `Head.linear`."""
    given: Tensor = hidden if head.linear is None else head.linear(hidden)
    return given


def overrides(values: dict[str, Any]) -> list[str]:
    """Values as words of a command line, ``key=value``."""
    written = {k: json.dumps(v) if isinstance(v, (bool, list)) else v for k, v in values.items()}
    return [f"{key}={value}" for key, value in written.items()]


def tiny_words(**values: Any) -> list[str]:
    """``TINY`` with other values as words of a command line; None leaves a key out."""
    wanted = {**TINY, **values}
    return overrides({key: value for key, value in wanted.items() if value is not None})


def tiny_config(algo: str = "mg2l", env: str = "mpe-spread", **values: Any) -> Config:
    """A config of a few milliseconds per iteration."""
    return loading.load_config("default", algo, env, {**TINY, **values})


def tiny_learner(algo: str = "mg2l", env: str = "mpe-spread", **values: Any) -> Learner:
    """A learner whose tasks have been explored."""
    learner = Learner(tiny_config(algo, env, **values), torch.device("cpu"))
    learner.prepare()
    return learner


def inference_of(learner: Learner) -> MG2L:
    assert isinstance(learner.inference, MG2L)
    return learner.inference


@dataclass
class KnownConfig(EnvConfig):
    """The environment of ``KnownEnv``."""

    max_ep_len: int = bounded(10, ge=1)
    """Steps."""

    discrete: bool = False
    """Three actions instead of two numbers."""

    masked: bool = False
    """Action ``(clock + agent) % 3`` is forbidden, in every sub-environment."""

    mortal: bool = False
    """Agent 1 dies with its third step in every episode."""

    ends_at: int = bounded(0, ge=0)
    """Sub-environment ``n`` terminates with its step number ``ends_at + n``; 0 never does."""


class KnownEnv(VectorEnv):
    """Observations say where they are from: ``(env, agent, clock, episode)``, all over 10.

    Rewards are drawn; everything that happened is in ``log``.
    """

    def __init__(self, config: KnownConfig, num_envs: int, seed: int) -> None:
        self.config, self.num_envs, self.num_agents = config, num_envs, config.n_agents
        self.max_ep_len = config.max_ep_len
        self.rng = np.random.default_rng(seed)
        agents = range(self.num_agents)
        self.observation_spaces = tuple(Box(-np.inf, np.inf, (4,)) for _ in agents)
        action = Discrete(3) if config.discrete else Box(-0.5, 0.5, (2,))
        self.action_spaces = (action,) * self.num_agents
        features = np.eye(3, dtype=np.float32)
        self.tasks = TaskSet([{}] * 3, features, ["a", "b", "held out"], 2)
        self.task_ids = np.zeros(num_envs, np.int64)
        self.clock = np.zeros(num_envs, np.int64)
        self.episode = np.zeros(num_envs, np.int64)
        self.log: list[dict[str, NDArray[Any]]] = []

    def _observe(self) -> FloatArray:
        obs: FloatArray = np.empty((self.num_envs, self.num_agents, 4), np.float32)
        obs[..., 0] = np.arange(self.num_envs)[:, None]
        obs[..., 1] = np.arange(self.num_agents)
        obs[..., 2] = self.clock[:, None]
        obs[..., 3] = self.episode[:, None]
        obs /= 10
        return obs

    def _dead(self) -> NDArray[np.bool_]:
        dead = np.zeros((self.num_envs, self.num_agents), bool)
        if self.config.mortal:
            dead[:, 1] = self.clock >= 3
        return dead

    def _info(self) -> Info:
        info: Info = {}
        if self.config.masked:
            allowed = np.ones((self.num_envs, self.num_agents, 3), bool)
            forbidden = (self.clock[:, None] + np.arange(self.num_agents)) % 3
            np.put_along_axis(allowed, forbidden[..., None], False, axis=2)
            info["action_mask"] = allowed
        if self.config.mortal:
            info["active"] = ~self._dead()
        return info

    def reset(
        self, seed: int | Sequence[int] | None = None, task_ids: ArrayLike | None = None
    ) -> tuple[FloatArray, Info]:
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        if task_ids is not None:
            self.task_ids = np.array(task_ids, np.int64)
        self.clock[:] = 0
        self.episode += 1
        self.log = []
        return self._observe(), self._info()

    def step(self, actions: ArrayLike) -> StepResult:
        before, info = self._observe(), self._info()
        if self.config.masked:
            allowed = np.take_along_axis(info["action_mask"], np.asarray(actions)[..., None], 2)
            if not allowed.all():
                raise ValueError("a forbidden action")
        self.clock += 1
        rewards = self.rng.normal(size=(self.num_envs, self.num_agents)).astype(np.float32)
        terminated = self._dead()
        if self.config.ends_at:
            over = self.clock == self.config.ends_at + np.arange(self.num_envs)
            terminated |= over[:, None]
        truncated = ~terminated & (self.clock >= self.max_ep_len)[:, None]
        final_obs = self._observe()
        over = (terminated | truncated).all(1)
        self.clock[over] = 0
        self.episode[over] += 1
        self.log.append(
            {
                "obs": before,
                "actions": np.array(actions),
                "rewards": rewards,
                "terminated": terminated,
                "truncated": truncated,
                "final_obs": final_obs,
                "over": np.asarray(over),
                **info,
            }
        )
        return (
            self._observe(),
            rewards,
            terminated,
            truncated,
            {"final_obs": final_obs} | (self._info()),
        )

    def logged(self, name: str) -> torch.Tensor:
        """``[T, N, ...]`` of everything since the last ``reset``."""
        return torch.as_tensor(np.stack([row[name] for row in self.log]))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise NotImplementedError

    def render(self, index: int = 0) -> NDArray[np.uint8]:
        raise NotImplementedError


def known_learner(algo: str = "mappo", **values: Any) -> Learner:
    """A learner in ``KnownEnv``, which is registered for the length of a test only."""
    registry.register("known", KnownConfig, KnownEnv)
    config = loading.load_config(algo=algo, env="known", overrides={**TINY, **values})
    learner = Learner(config, torch.device("cpu"))
    learner.prepare()
    return learner


def env_of(learner: Learner) -> KnownEnv:
    assert isinstance(learner.env, KnownEnv)
    return learner.env


KINDS: dict[str, dict[str, Any]] = {
    "continuous": {},
    "discrete": {"discrete": True},
    "masked": {"discrete": True, "masked": True},
    "mortal": {"mortal": True},
    "recurrent": {"use_recurrent_policy": True, "data_chunk_length": 5},
    "naive": {"use_naive_recurrent_policy": True, "discrete": True, "masked": True},
    "early": {"ends_at": 4},
    "early-recurrent": {"ends_at": 4, "use_recurrent_policy": True, "data_chunk_length": 2},
}


def collect(
    learner: Learner, steps: int | None = None, seed: int = 0
) -> tuple[Rollout, CriticLatent]:
    """A rollout, the task of each environment, and the latent of the critics."""
    tasks = np.random.default_rng(seed).integers(learner.tasks, size=learner.env.num_envs)
    steps = steps or learner.config.env.max_ep_len
    latent = learner.inference.actor_latent(tasks, steps)
    rollout = learner.collector.collect(steps, tasks, latent)
    return rollout, learner.inference.critic_latent(tasks, rollout)


def prepared(learner: Learner, steps: int | None = None) -> tuple[Batch, CriticLatent]:
    """A rollout as PPO takes it, and the latent of the critics."""
    rollout, critic_latent = collect(learner, steps)
    with torch.no_grad():
        return learner.ppo.prepare(rollout, critic_latent()), critic_latent
