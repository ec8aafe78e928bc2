"""``mpe-goals`` and ``mpe-goals-joint``: each agent has a hidden goal."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mg2l.envs.base import FloatArray
from mg2l.envs.continuous import OOD, ContinuousConfig, continuous_tasks
from mg2l.envs.particle.world import (
    Bodies,
    Doubles,
    ParticleScenario,
    World,
    write_offsets,
    write_positions,
)

RADII = (0.4, 0.9)  # of goals [length]
SECTOR, BEYOND = (0.0, 1.5 * np.pi), (1.6 * np.pi, 1.9 * np.pi)  # where they lie [rad]


@dataclass
class GoalsConfig(ContinuousConfig):
    """A hidden goal for each agent."""

    pay: Literal["own", "joint"] = "own"
    """Who is paid for an agent's distance: itself, and agents see each other; or all of them the
    mean, and they do not. With ``joint`` an agent alone cannot infer what it was paid for; the
    team's joint experience can."""


class Goals(ParticleScenario):
    """Each agent is paid for being close to a hidden goal of its own.

    Action space: ``Box(-1, 1, (2,))`` per agent, the acceleration along x and y in units of
    5 length / s^2.

    Observation space: own position and velocity; with ``pay: own`` the offset to each other agent.
    Unbounded, in length units and length / s.

    Reward: minus the distance to the own goal [length]; with ``pay: joint`` the mean over agents.

    Start: agents uniform in [-0.8, 0.8]^2 at rest. They have radius 0.05, no top speed, and pass
    through each other.

    End: truncated after ``max_ep_len`` steps; never terminated.

    Tasks: features are the goals' positions, agent by agent. Goals of training and test tasks lie
    between 0.4 and 0.9 from the centre in three quarters of the circle, those of ``ood`` tasks in
    the last quarter.
    """

    def __init__(self, config: GoalsConfig) -> None:
        self.config = config
        self.n_agents = agents = config.n_agents
        self.joint = self.shared_reward = config.pay == "joint"
        self.bodies = Bodies.uniform(agents, acceleration=5.0, size=0.05)
        self.obs_dim = 4 + (0 if self.joint else 2 * (agents - 1))
        self.n_draws = 2 * agents
        inside = functools.partial(_goals, agents=agents, sector=SECTOR)
        rng = np.random.default_rng([config.task_seed, OOD])
        beyond = _goals(rng, config.n_ood_tasks, agents, BEYOND)
        self.tasks = continuous_tasks(config, "goals", inside, beyond)

    def compiled(self) -> int | None:
        """See ``ParticleScenario.compiled``."""
        if type(self) is not Goals:
            return None
        return 3 if self.joint else 2

    def place(self, draws: Doubles, position: Doubles, landmarks: Doubles) -> None:
        """See ``ParticleScenario.place``."""
        position[:] = 1.6 * draws.reshape(position.shape) - 0.8

    def observe(self, world: World, obs: FloatArray) -> None:
        """See ``ParticleScenario.observe``."""
        write_positions(obs, 0, world.agents)
        obs[:, :, 2:4] = world.velocity
        if not self.joint:
            write_offsets(obs, 4, world.agents, world.agents, skip_self=True)

    def reward(self, world: World) -> Doubles:
        """See ``ParticleScenario.reward``."""
        offsets = world.agents - self.goals(world.task)
        own: Doubles = -np.sqrt(np.square(offsets).sum(-1))
        return own.mean(1, keepdims=True) if self.joint else own

    def goals(self, task: Doubles) -> Doubles:
        """``[*, A, 2]`` of tasks' features."""
        return task.reshape(*task.shape[:-1], self.n_agents, 2)

    def hidden(self, task: Doubles) -> tuple[Doubles, NDArray[np.uint8]]:
        """See ``ParticleScenario.hidden``: each agent's goal, in the agent's colour."""
        return self.goals(task), self.colors(task)[0]


def _goals(
    rng: np.random.Generator, count: int, agents: int, sector: tuple[float, float]
) -> Doubles:
    low, high = np.transpose([RADII, sector])
    radius, angle = np.moveaxis(rng.uniform(low, high, (count, agents, 2)), -1, 0)
    goals = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)
    return goals.reshape(count, 2 * agents)
