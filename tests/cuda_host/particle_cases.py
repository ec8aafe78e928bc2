"""Inputs for the launchers of the particle worlds, and what the scenarios make of them in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from cuda_host.cases import Array
from mg2l.envs.particle import physics
from mg2l.envs.particle.bounty import Bounty, BountyConfig
from mg2l.envs.particle.goals import Goals, GoalsConfig
from mg2l.envs.particle.hunting import Hunting, HuntingConfig
from mg2l.envs.particle.spread import Spread, SpreadConfig
from mg2l.envs.particle.weights import Weights, WeightsConfig
from mg2l.envs.particle.world import ParticleScenario, World

SCENARIOS: dict[str, Any] = {
    "spread": lambda: Spread(SpreadConfig(n_agents=3, n_landmarks=4, n_tasks=3)),
    "hunting": lambda: Hunting(HuntingConfig(n_agents=3, n_prey=2, max_ep_len=30)),
    "goals": lambda: Goals(GoalsConfig(n_agents=2, n_tasks=3, n_test_tasks=1, n_ood_tasks=1)),
    "goals-joint": lambda: Goals(
        GoalsConfig(n_agents=2, n_tasks=3, n_test_tasks=1, n_ood_tasks=1, pay="joint")
    ),
    "weights": lambda: Weights(WeightsConfig(n_agents=2, n_tasks=3, n_test_tasks=1, n_ood_tasks=1)),
    "bounty": lambda: Bounty(BountyConfig(n_agents=2, n_tasks=3, n_test_tasks=1, n_ood_tasks=1)),
}


def begin(scenario: ParticleScenario, worlds: int, rng: np.random.Generator) -> World:
    """Worlds at the start of an episode, of every task in turn."""
    bodies, agents = len(scenario.bodies), scenario.n_agents
    draws = rng.random((worlds, scenario.n_draws))
    position = np.empty((worlds, bodies, 2))
    landmarks = np.empty((worlds, scenario.n_landmarks, 2))
    scenario.place(draws, position, landmarks)
    tasks = scenario.tasks.features
    return World(
        position=position,
        velocity=np.zeros_like(position),
        landmarks=landmarks,
        task=tasks[np.arange(worlds) % len(tasks)].astype(np.float64),
        clock=np.zeros(worlds, np.int64),
        draws=draws,
        agents=position[:, :agents],
        scripted=position[:, agents:],
    )


def step(scenario: ParticleScenario, world: World, actions: Array) -> tuple[Array, Array]:
    """Observations and rewards of a step by the scenario's definition, in place."""
    bodies = scenario.bodies
    physics.step(
        world.position, world.velocity, actions, scenario.scripted_actions(world),
        bodies.acceleration, bodies.size, bodies.max_speed, bodies.collides,
    )  # fmt: skip
    world.clock[:] += 1
    rewards = np.empty(actions.shape[:2], np.float32)
    rewards[:] = scenario.reward(world)
    observations = np.empty((*actions.shape[:2], scenario.obs_dim), np.float32)
    scenario.observe(world, observations)
    return observations, rewards


def arguments(scenario: ParticleScenario, world: World, actions: Array) -> dict[str, Any]:
    """Arguments of a launcher: the arrays of ``world``, and new ones for results."""
    bodies, shape = scenario.bodies, actions.shape[:2]
    return {
        "worlds": len(world.clock),
        "kind": scenario.compiled(),
        "agents": scenario.n_agents,
        "bodies": len(bodies),
        "objects": scenario.n_landmarks,
        "task_width": world.task.shape[1],
        "draw_count": world.draws.shape[1],
        "width": scenario.obs_dim,
        "advance": True,
        "actions": actions,
        "landmarks": world.landmarks,
        "task": world.task,
        "draws": world.draws,
        "acceleration": bodies.acceleration,
        "size": bodies.size,
        "max_speed": bodies.max_speed,
        "collides": bodies.collides,
        "position": world.position,
        "velocity": world.velocity,
        "clock": world.clock,
        "force": np.empty_like(world.position),
        "observations": np.empty((*shape, scenario.obs_dim), np.float32),
        "rewards": np.empty(shape, np.float32),
    }
