"""A custom task family: agents that must keep a hidden distance from each other.

``python examples/custom_scenario.py`` registers the family and plays it with a hand-written rule
that knows the task, and with one that does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mg2l.core.schema import bounded
from mg2l.envs import EnvConfig, TaskSet, registry
from mg2l.envs.base import FloatArray
from mg2l.envs.particle import Bodies, ParticleScenario, World, factory
from mg2l.envs.particle.world import Doubles, distances, write_offsets, write_positions


@dataclass
class SpacingConfig(EnvConfig):
    """Agents that keep a hidden distance from each other."""

    n_agents: int = bounded(3, ge=2)
    """Agents."""

    n_tasks: int = bounded(4, ge=1)
    """Distances to train on; those half way between them are for testing."""


class Spacing(ParticleScenario):
    """Every pair of agents earns minus the error of its distance; the distance is the task."""

    def __init__(self, config: SpacingConfig) -> None:
        self.n_agents = config.n_agents
        self.bodies = Bodies.uniform(config.n_agents, acceleration=4.0, size=0.08, collides=True)
        self.obs_dim = 2 + 2 * (config.n_agents - 1)
        self.n_draws = 2 * config.n_agents
        train = np.linspace(0.2, 1.0, config.n_tasks)
        wanted = np.concatenate([train, (train[1:] + train[:-1]) / 2])
        self.tasks = TaskSet(
            params=[{"distance": float(distance)} for distance in wanted],
            features=wanted[:, None].astype(np.float32),
            names=[f"distance {distance:.3f}" for distance in wanted],
            n_train=len(train),
        )

    def place(self, draws: Doubles, position: Doubles, landmarks: Doubles) -> None:
        """Uniform in the inner square."""
        position[:] = 2.0 * draws.reshape(position.shape) - 1.0

    def observe(self, world: World, obs: FloatArray) -> None:
        """Own position, offsets to the others."""
        write_positions(obs, 0, world.agents)
        write_offsets(obs, 2, world.agents, world.agents, skip_self=True)

    def reward(self, world: World) -> Doubles:
        """Mean error of an agent's distances to the others, below 0."""
        error = np.abs(distances(world.agents, world.agents) - world.task[:, 0])  # [A, A, N]
        error[np.arange(self.n_agents), np.arange(self.n_agents)] = 0.0
        mean: Doubles = error.sum(axis=1) / (1 - self.n_agents)
        return np.transpose(mean)


def play(wanted: FloatArray | float, episodes: int = 64) -> float:
    """Return of a rule that steers every agent towards the distance ``wanted``."""
    env = registry.make(SpacingConfig(), num_envs=episodes, seed=0)
    obs, _ = env.reset()
    total = 0.0
    for _ in range(env.max_ep_len):
        offset = obs[..., 2:].reshape(episodes, env.num_agents, -1, 2)
        length = np.linalg.norm(offset, axis=-1, keepdims=True)
        pull = (offset / length) * (length - wanted)
        obs, rewards, *_ = env.step(pull.sum(axis=2))
        total += float(rewards.mean())
    return total


registry.register("spacing", SpacingConfig, factory(Spacing))

if __name__ == "__main__":
    env = registry.make("spacing", num_envs=64)
    distance = env.tasks.features[env.task_ids].reshape(-1, 1, 1, 1)
    print(f"return when the task is known: {play(distance):.1f}")
    print(f"return at the mean task:   {play(float(distance.mean())):.1f}")
