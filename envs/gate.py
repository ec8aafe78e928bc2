"""How much a family can show: hand-written teams that know the task, and teams that do not.

A family separates where, on held-out tasks, an informed team and a blind one differ by at least
half of the distance between the informed one and random actions. No training is involved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mg2l.envs import registry
from mg2l.envs.base import EnvConfig
from mg2l.envs.random_actions import random_actions

Policy = Callable[[Any], NDArray[Any]]
"""Actions ``[N, A, ...]`` of an environment's agents in the state that it is in."""

TASKS = 24
"""Training tasks that are played at most; of other parts all are."""

SEPARATES = 0.5
"""Fraction of the informed-to-random range by which informed and blind must differ."""


@dataclass(frozen=True)
class ScriptedTeams:
    """Hand-written teams of a family."""

    informed: Policy
    """Reads the task."""

    blind: Mapping[str, Policy]
    """Rules that do not; the best one on training tasks counts."""


Motion = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Velocities ``[K, D]`` [m/s] of a robot in tasks with features ``[K, D]``."""


@dataclass(frozen=True)
class Bounds:
    """Where there is no script: the return of a robot that moved like this without effort.

    It is computed by the environment's ``pay``, the same for every step from the first one on.
    """

    informed: Motion
    """Reads the task."""

    blind: Mapping[str, Motion]
    """Motions that do not; the best one on training tasks counts."""


@dataclass(frozen=True)
class Gate:
    """Mean return of an episode by part of the tasks."""

    env: str
    random: dict[str, float]
    blind: dict[str, float]
    informed: dict[str, float]
    rule: str
    """Name of the blind rule."""

    @property
    def separation(self) -> dict[str, float]:
        """``(informed - blind) / (informed - random)`` by part."""
        return {
            part: (self.informed[part] - self.blind[part])
            / max(self.informed[part] - self.random[part], 1e-9)
            for part in self.informed
        }

    @property
    def decides(self) -> str:
        """The part that counts: ``test``, or ``train`` where no tasks are held out."""
        return "test" if "test" in self.informed else "train"

    @property
    def passed(self) -> bool:
        """Whether the family separates."""
        return self.separation[self.decides] >= SEPARATES


def measure(name: str, config: EnvConfig, episodes: int = 16, seed: int = 0) -> Gate:
    """Play the scripted teams of a family on up to `TASKS` training tasks, and on all others.

    Args:
        name: name of the result.
        config: config of the family.
        episodes: episodes of each task.
        seed: random seed of the episodes, the same for all teams.

    Raises:
        ConfigError: the family has no scripted teams.
    """
    teams: ScriptedTeams | Bounds = registry.scripted(config)
    env: Any = registry.make(config, 1, seed)
    played = dict(env.tasks.parts)
    played["train"] = played["train"][:TASKS]
    env.close()
    ids = np.repeat(np.concatenate(list(played.values())), episodes)

    def bound(motion: Motion) -> dict[str, float]:
        features = env.tasks.features.astype(np.float64)
        pay = env.pay(motion(features), np.zeros(len(features)), features)
        return {part: float(pay[ids].mean()) * env.max_ep_len for part, ids in played.items()}

    def returns(policy: Policy | None) -> dict[str, float]:
        env: Any = registry.make(config, len(ids), seed)
        try:
            rng = np.random.default_rng(seed)
            _, info = env.reset(seed, ids)
            gained, playing = np.zeros(len(ids)), np.ones(len(ids), bool)
            while playing.any():
                actions = random_actions(env, rng, info) if policy is None else policy(env)
                _, rewards, terminated, truncated, info = env.step(actions)
                gained += np.where(playing, rewards.mean(1), 0.0)
                playing &= ~(terminated | truncated).all(1)
        finally:
            env.close()
        ends = np.cumsum([len(part_ids) * episodes for part_ids in played.values()])
        parts = np.split(gained, ends[:-1])
        return {part: float(x.mean()) for part, x in zip(played, parts, strict=True)}

    value: Callable[[Any], dict[str, float]] = bound if isinstance(teams, Bounds) else returns
    blind = {rule: value(policy) for rule, policy in teams.blind.items()}
    rule = max(blind, key=lambda name: blind[name]["train"])
    return Gate(name, returns(None), blind[rule], value(teams.informed), rule)
