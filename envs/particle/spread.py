"""``mpe-spread``: cover the target landmarks, without knowing which they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mg2l.core.schema import bounded
from mg2l.envs.base import EnvConfig, FloatArray, TaskSet
from mg2l.envs.particle.targets import target_tasks
from mg2l.envs.particle.world import (
    Bodies,
    Doubles,
    ParticleScenario,
    World,
    distances,
    write_offsets,
    write_positions,
)


@dataclass
class SpreadConfig(EnvConfig):
    """Agents that cover hidden target landmarks."""

    n_landmarks: int = bounded(3, ge=1, le=1000)
    """Landmarks; as many of them as there are agents are targets in a training task."""

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            _tasks(self)
        except ValueError as error:
            raise ValueError(
                f"n_agents={self.n_agents} and n_landmarks={self.n_landmarks}: {error}"
            ) from None


def _tasks(config: SpreadConfig) -> TaskSet:
    targets = min(config.n_agents, config.n_landmarks)
    return target_tasks(
        config.n_landmarks, targets, config.n_tasks, config.task_seed, what="landmark"
    )


class Spread(ParticleScenario):
    """Agents share the pay for covering every target landmark; which ones are targets is the task.

    Action space: ``Box(-1, 1, (2,))`` per agent, the acceleration along x and y in units of
    5 length / s^2.

    Observation space: ``2 + 2 L + 2 (A - 1)`` numbers per agent, unbounded, in length units:
    own position; offset to each of the ``L`` landmarks; offset to each other agent. The task is
    hidden.

    Reward: the same for all agents, ``- A * sum over targets of the distance to the nearest
    agent`` (every agent earns the sum, and the earnings are pooled).

    Start: agents uniform in [-1, 1]^2 at rest, landmarks uniform in [-0.9, 0.9]^2. Agents have
    radius 0.15, no top speed, and pass through each other.

    End: truncated after ``max_ep_len`` steps; never terminated.

    Tasks: features are the multi-hot set of targets. Training tasks have ``min(A, L)`` targets,
    and so have test tasks; sets of other sizes lie beyond the distribution (where all sets of
    ``min(A, L)`` are trained on, they are the test tasks).
    """

    shared_reward = True

    def __init__(self, config: SpreadConfig) -> None:
        self.n_agents = config.n_agents
        self.n_landmarks = config.n_landmarks
        self.bodies = Bodies.uniform(config.n_agents, acceleration=5.0, size=0.15)
        self.obs_dim = 2 + 2 * config.n_landmarks + 2 * (config.n_agents - 1)
        self.n_draws = 2 * (config.n_agents + config.n_landmarks)
        self.tasks = _tasks(config).with_validation(config)

    def compiled(self) -> int | None:
        """See ``ParticleScenario.compiled``."""
        return 0 if type(self) is Spread else None

    def place(self, draws: Doubles, position: Doubles, landmarks: Doubles) -> None:
        """See ``ParticleScenario.place``."""
        split = 2 * self.n_agents
        position[:] = 2.0 * draws[:, :split].reshape(position.shape) - 1.0
        landmarks[:] = 1.8 * draws[:, split:].reshape(landmarks.shape) - 0.9

    def observe(self, world: World, obs: FloatArray) -> None:
        """See ``ParticleScenario.observe``."""
        write_positions(obs, 0, world.agents)
        write_offsets(obs, 2, world.agents, world.landmarks)
        write_offsets(obs, 2 + 2 * self.n_landmarks, world.agents, world.agents, skip_self=True)

    def reward(self, world: World) -> Doubles:
        """See ``ParticleScenario.reward``."""
        nearest: Doubles = distances(world.agents, world.landmarks).min(axis=0)  # [L, N]
        nearest *= world.task.T
        shared: Doubles = nearest.sum(axis=0) * -self.n_agents
        return shared[:, None]

    def colors(self, task: Doubles) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """See ``ParticleScenario.colors``: targets are red."""
        bodies, landmarks = super().colors(task)
        landmarks[task > 0] = (220, 60, 60)
        return bodies, landmarks
