"""``mpe-hunting``: catch the target prey, without knowing which it is."""

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
    write_distances,
    write_offsets,
    write_positions,
)

SIGHT = 1.414  # bodies from this distance on are not seen


@dataclass
class HuntingConfig(EnvConfig):
    """Predators that hunt a hidden target among look-alike prey."""

    n_agents: int = bounded(3, ge=1, le=1000)
    """Predators."""

    n_prey: int = bounded(2, ge=1, le=1000)
    """Prey; one of them is the target of a training task."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _tasks(self)  # refuses invalid numbers of tasks


def _tasks(config: HuntingConfig) -> TaskSet:
    return target_tasks(config.n_prey, 1, config.n_tasks, config.task_seed, what="prey")


class Hunting(ParticleScenario):
    """Predators hunt the target prey, which flees; the decoys wander.

    Action space: ``Box(-1, 1, (2,))`` per predator, the acceleration along x and y in units of
    3 length / s^2.

    Observation space: ``2 + 3 (A + P - 1)`` numbers per predator, unbounded, in length units:
    own position; offset to every other body (predators, then the ``P`` prey); distance to the
    same bodies. Both are 0 for a body at a distance of 1.414 or more. The task is hidden.

    Reward: of predator ``i``, ``-0.1 * sum over predators of the distance to the nearest target
    + 10`` if ``i`` itself touches a target.

    Start: all bodies uniform in [-1, 1]^2 at rest. Predators have radius 0.1 and top speed
    1.0 length / s, prey 0.05 and 1.2; all collide. A target accelerates straight away from the
    nearest predator; a decoy draws an action uniform in [-1, 1]^2 at every step.

    End: truncated after ``max_ep_len`` steps; never terminated.

    Tasks: features are the multi-hot set of targets. Training tasks have one target, and so have
    test tasks; sets of several targets lie beyond the distribution (where each prey is trained on,
    they are the test tasks).
    """

    def __init__(self, config: HuntingConfig) -> None:
        self.n_agents = config.n_agents
        self.n_prey = config.n_prey
        predators = Bodies.uniform(config.n_agents, 3.0, size=0.1, max_speed=1.0, collides=True)
        prey = Bodies.uniform(config.n_prey, 3.0, size=0.05, max_speed=1.2, collides=True)
        self.bodies = predators + prey
        self.obs_dim = 2 + 3 * (len(self.bodies) - 1)
        self.max_ep_len = config.max_ep_len
        self._split = 2 * len(self.bodies)  # draws: start positions, then the decoys' actions
        self.n_draws = self._split + 2 * config.n_prey * config.max_ep_len
        self.tasks = _tasks(config).with_validation(config)

    def compiled(self) -> int | None:
        """See ``ParticleScenario.compiled``."""
        return 1 if type(self) is Hunting else None

    def place(self, draws: Doubles, position: Doubles, landmarks: Doubles) -> None:
        """See ``ParticleScenario.place``."""
        position[:] = 2.0 * draws[:, : self._split].reshape(position.shape) - 1.0

    def observe(self, world: World, obs: FloatArray) -> None:
        """See ``ParticleScenario.observe``."""
        others = len(self.bodies) - 1
        write_positions(obs, 0, world.agents)
        write_offsets(obs, 2, world.agents, world.position, skip_self=True, radius=SIGHT)
        write_distances(
            obs, 2 + 2 * others, world.agents, world.position, skip_self=True, radius=SIGHT
        )

    def reward(self, world: World) -> Doubles:
        """See ``ParticleScenario.reward``."""
        distance = distances(world.agents, world.scripted)  # [A, P, N]
        nearest: Doubles = np.where(world.task.T > 0, distance, np.inf).min(axis=1)  # [A, N]
        touches = nearest < self.bodies.size[0] + self.bodies.size[-1]
        team = -0.1 * nearest.sum(axis=0)
        paid: Doubles = np.where(touches, team + 10.0, team)  # [A, N]
        return np.transpose(paid)

    def scripted_actions(self, world: World) -> Doubles:
        """See ``ParticleScenario.scripted_actions``: targets flee, decoys wander."""
        envs = np.arange(len(world.clock))
        wander = world.draws[:, self._split :].reshape(-1, self.max_ep_len, self.n_prey, 2)
        actions = 2.0 * wander[envs, world.clock] - 1.0
        hunter = distances(world.scripted, world.agents).argmin(axis=1).T  # [N, P]
        away = world.scripted - world.agents[envs[:, None], hunter]
        length = np.sqrt(np.square(away).sum(axis=2, keepdims=True))
        away[length[:, :, 0] == 0] = (1.0, 0.0)  # in the very same place: any way will do
        np.divide(away, np.where(length == 0, 1.0, length), out=away)
        np.copyto(actions, away, where=world.task[:, :, None] > 0)
        return actions

    def colors(self, task: Doubles) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """See ``ParticleScenario.colors``: targets are red."""
        bodies, landmarks = super().colors(task)
        bodies[self.n_agents :][task > 0] = (220, 60, 60)
        return bodies, landmarks
