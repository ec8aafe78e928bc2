"""``mpe-bounty``: look-alike prey with hidden rewards or costs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mg2l.core.schema import bounded
from mg2l.envs.base import FloatArray
from mg2l.envs.continuous import ContinuousConfig, continuous_tasks, one_positive, signed
from mg2l.envs.particle.weights import signed_colors
from mg2l.envs.particle.world import (
    Bodies,
    Doubles,
    ParticleScenario,
    World,
    distances,
    write_offsets,
    write_positions,
)

REACH = 0.5  # distance at which a prey pays exp(-1) of its pay [length]


@dataclass
class BountyConfig(ContinuousConfig):
    """Prey of hidden pay."""

    max_ep_len: int = bounded(100, ge=1, le=1_000_000)
    """Steps after which an episode is truncated."""

    n_agents: int = bounded(3, ge=1, le=1000)
    """Predators."""

    n_prey: int = bounded(4, ge=2, le=1000)
    """Prey, each with a pay of its own."""


class Bounty(ParticleScenario):
    """The team is paid, or pays, for predators being close to prey.

    Action space: ``Box(-1, 1, (2,))`` per predator, the acceleration along x and y in units of
    5 length / s^2.

    Observation space: own position and velocity; offset to each prey. Unbounded, in length units
    and length / s. Predators do not see each other: one alone cannot infer whose distances it was
    paid for, the team's joint experience can.

    Reward: the same for all, the mean over predators of the sum over prey of their pay times
    ``exp(-d / 0.5)``, with ``d`` the distance between predator and prey [length].

    Start: all bodies uniform in [-1, 1]^2 at rest. Predators have radius 0.1 and top speed
    1.0 length / s, prey 0.05 and 0.5; nothing collides. Each prey draws an action uniform in
    [-1, 1]^2 for every 10 steps, and accelerates by 3 length / s^2.

    End: truncated after ``max_ep_len`` steps; never terminated.

    Tasks: features are the prey's pay. That of training and test tasks is uniform in [-1, 1], that
    of ``ood`` tasks -1 but for one prey of 1 (two, where there are more tasks than prey).
    """

    HEADING = 10
    """Steps for which a prey keeps its course."""

    shared_reward = True

    def __init__(self, config: BountyConfig) -> None:
        self.n_agents, self.n_prey = config.n_agents, config.n_prey
        predators = Bodies.uniform(config.n_agents, 5.0, size=0.1, max_speed=1.0)
        self.bodies = predators + Bodies.uniform(config.n_prey, 3.0, size=0.05, max_speed=0.5)
        self.obs_dim = 4 + 2 * config.n_prey
        self._split = 2 * len(self.bodies)  # draws: start positions, then the prey's courses
        courses = -(-config.max_ep_len // self.HEADING)
        self.n_draws = self._split + 2 * config.n_prey * courses
        beyond = one_positive(config.n_ood_tasks, config.n_prey)
        self.tasks = continuous_tasks(config, "pay", signed(config.n_prey), beyond)

    def compiled(self) -> int | None:
        """See ``ParticleScenario.compiled``."""
        return 5 if type(self) is Bounty else None

    def place(self, draws: Doubles, position: Doubles, landmarks: Doubles) -> None:
        """See ``ParticleScenario.place``."""
        position[:] = 2.0 * draws[:, : self._split].reshape(position.shape) - 1.0

    def observe(self, world: World, obs: FloatArray) -> None:
        """See ``ParticleScenario.observe``."""
        write_positions(obs, 0, world.agents)
        obs[:, :, 2:4] = world.velocity[:, : self.n_agents]
        write_offsets(obs, 4, world.agents, world.scripted)

    def reward(self, world: World) -> Doubles:
        """See ``ParticleScenario.reward``."""
        near = np.exp(-distances(world.agents, world.scripted) / REACH)  # [A, P, N]
        paid: Doubles = (near * world.task.T).sum(1).mean(0)
        return paid[:, None]

    def scripted_actions(self, world: World) -> Doubles:
        """See ``ParticleScenario.scripted_actions``."""
        courses = world.draws[:, self._split :].reshape(len(world.clock), -1, self.n_prey, 2)
        now: Doubles = courses[np.arange(len(world.clock)), world.clock // self.HEADING]
        return 2.0 * now - 1.0

    def colors(self, task: Doubles) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """See ``ParticleScenario.colors``: prey from blue (-1) over grey to red (1)."""
        bodies, landmarks = super().colors(task)
        bodies[self.n_agents :] = signed_colors(task)
        return bodies, landmarks
