"""``mpe-weights``: landmarks attract or repel, by hidden weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mg2l.core.schema import bounded
from mg2l.envs.base import FloatArray
from mg2l.envs.continuous import ContinuousConfig, continuous_tasks, one_positive, signed
from mg2l.envs.particle.world import (
    Bodies,
    Doubles,
    ParticleScenario,
    World,
    distances,
    write_offsets,
    write_positions,
)

REACH = 0.3  # distance at which a landmark pays exp(-1/2) of its weight [length]


@dataclass
class WeightsConfig(ContinuousConfig):
    """Landmarks of hidden weights."""

    n_landmarks: int = bounded(4, ge=2, le=1000)
    """Landmarks."""


class Weights(ParticleScenario):
    """The team is paid the weights of the landmarks that it is close to.

    Action space: ``Box(-1, 1, (2,))`` per agent, the acceleration along x and y in units of
    5 length / s^2.

    Observation space: own position and velocity; offset to each landmark; offset to each other
    agent. Unbounded, in length units and length / s.

    Reward: the same for all agents, ``sum over landmarks of w * exp(-d^2 / (2 * 0.3^2))`` with
    ``d`` the distance of the nearest agent [length].

    Start: agents, at rest, and landmarks uniform in [-0.9, 0.9]^2. Agents have radius 0.05, no top
    speed, and pass through each other.

    End: truncated after ``max_ep_len`` steps; never terminated.

    Tasks: features are the weights. Those of training and test tasks are uniform in [-1, 1], those
    of ``ood`` tasks -1 but for one landmark of 1 (two, where there are more tasks than landmarks).
    """

    shared_reward = True

    def __init__(self, config: WeightsConfig) -> None:
        self.n_agents, self.n_landmarks = config.n_agents, config.n_landmarks
        self.bodies = Bodies.uniform(config.n_agents, acceleration=5.0, size=0.05)
        self.obs_dim = 4 + 2 * config.n_landmarks + 2 * (config.n_agents - 1)
        self.n_draws = 2 * (config.n_agents + config.n_landmarks)
        beyond = one_positive(config.n_ood_tasks, config.n_landmarks)
        self.tasks = continuous_tasks(config, "weights", signed(config.n_landmarks), beyond)

    def compiled(self) -> int | None:
        """See ``ParticleScenario.compiled``."""
        return 4 if type(self) is Weights else None

    def place(self, draws: Doubles, position: Doubles, landmarks: Doubles) -> None:
        """See ``ParticleScenario.place``."""
        split = 2 * self.n_agents
        position[:] = 1.8 * draws[:, :split].reshape(position.shape) - 0.9
        landmarks[:] = 1.8 * draws[:, split:].reshape(landmarks.shape) - 0.9

    def observe(self, world: World, obs: FloatArray) -> None:
        """See ``ParticleScenario.observe``."""
        write_positions(obs, 0, world.agents)
        obs[:, :, 2:4] = world.velocity
        write_offsets(obs, 4, world.agents, world.landmarks)
        write_offsets(obs, 4 + 2 * self.n_landmarks, world.agents, world.agents, skip_self=True)

    def reward(self, world: World) -> Doubles:
        """See ``ParticleScenario.reward``."""
        nearest = distances(world.agents, world.landmarks).min(0)  # [L, N]
        near = np.exp(-np.square(nearest) / (2 * REACH**2))
        paid: Doubles = (near * world.task.T).sum(0)
        return paid[:, None]

    def colors(self, task: Doubles) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """See ``ParticleScenario.colors``: landmarks from blue (-1) over grey to red (1)."""
        return super().colors(task)[0], signed_colors(task)


def signed_colors(values: Doubles) -> NDArray[np.uint8]:
    """Colours ``[V, 3]`` of values in [-1, 1]: blue, grey at 0, red."""
    ends = np.where(values[:, None] > 0, (220, 60, 60), (60, 90, 220))
    share = np.abs(values)[:, None]
    colors: NDArray[np.uint8] = np.rint(share * ends + (1 - share) * 190).astype(np.uint8)
    return colors
