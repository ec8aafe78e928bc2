"""The particle world: physics, episodes, seeding and tasks, whatever the scenario.

The physics step and the geometry are C++ (``csrc/particle``, or its definition in ``physics``
where nothing is compiled); scenarios are NumPy over all sub-environments. Some scenarios are C++
as well (``csrc/particle/scenarios.h``), which is also their kernel for CUDA (`tensors`); what they
compute is defined by their NumPy methods.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import ArrayLike, NDArray

from mg2l.envs.base import EnvConfig, FloatArray, Info, StepResult, Streams, TaskSet, VectorEnv
from mg2l.envs.compiled import LIBRARY
from mg2l.envs.particle.draw import draw_world
from mg2l.envs.particle.physics import write_positions

if LIBRARY is not None or TYPE_CHECKING:
    from mg2l.envs.particle.simulator import (
        CompiledScenario,
        distances,
        step,
        write_distances,
        write_offsets,
    )
else:
    from mg2l.envs.particle.physics import distances, step, write_distances, write_offsets

__all__ = [
    "Bodies",
    "ParticleEnv",
    "ParticleScenario",
    "World",
    "distances",
    "factory",
    "write_distances",
    "write_offsets",
    "write_positions",
]

Doubles = NDArray[np.float64]
ConfigT = TypeVar("ConfigT", bound=EnvConfig)


@dataclass(frozen=True)
class Bodies:
    """Properties of the moving bodies, agents first; one entry per body, mass 1."""

    acceleration: Doubles
    """``[B]`` acceleration of an action of length 1 [length / s^2]."""

    size: Doubles
    """``[B]`` radius [length]."""

    max_speed: Doubles
    """``[B]`` [length / s]; infinity is no limit."""

    collides: NDArray[np.bool_]
    """``[B]`` whether it touches other bodies that collide (walls push every body)."""

    @classmethod
    def uniform(
        cls,
        count: int,
        acceleration: float,
        size: float,
        max_speed: float = np.inf,
        collides: bool = False,
    ) -> Bodies:
        """``count`` equal bodies."""
        return cls(
            np.full(count, acceleration, np.float64),
            np.full(count, size, np.float64),
            np.full(count, max_speed, np.float64),
            np.full(count, collides),
        )

    def __add__(self, other: Bodies) -> Bodies:
        """These bodies and then the others."""
        return Bodies(
            np.concatenate([self.acceleration, other.acceleration]),
            np.concatenate([self.size, other.size]),
            np.concatenate([self.max_speed, other.max_speed]),
            np.concatenate([self.collides, other.collides]),
        )

    def __len__(self) -> int:
        return len(self.size)


@dataclass(frozen=True)
class World:
    """State of all sub-environments, as a scenario sees it; read only, except in ``place``.

    The arrays stay the same, and their values are changed in place.
    """

    position: Doubles
    """``[N, B, 2]`` positions, agents first."""

    velocity: Doubles
    """``[N, B, 2]`` velocities."""

    landmarks: Doubles
    """``[N, L, 2]`` positions of things that do not move."""

    task: Doubles
    """``[N, task_dim]`` features of each sub-environment's task."""

    clock: NDArray[np.int64]
    """``[N]`` steps since the episode began."""

    draws: Doubles
    """``[N, n_draws]`` the episode's random numbers, uniform in [0, 1)."""

    agents: Doubles
    """``[N, A, 2]`` positions of the agents, a view."""

    scripted: Doubles
    """``[N, B - A, 2]`` positions of the scripted bodies, a view."""


class ParticleScenario(ABC):
    """Definition of a family of particle tasks; methods work on all sub-environments at once.

    All randomness of an episode comes from ``n_draws`` uniform numbers, which the world draws from
    the sub-environment's stream when the episode begins: a scenario has no random state.
    """

    n_agents: int
    """Bodies that are controlled; the others are scripted."""

    bodies: Bodies
    """Agents, then scripted bodies."""

    n_landmarks: int = 0
    """Things in the world that neither move nor collide."""

    obs_dim: int
    """Length of an agent's observation."""

    n_draws: int
    """Random numbers that an episode consumes."""

    tasks: TaskSet

    shared_reward: bool = False
    """Whether all agents get the same reward."""

    def compiled(self) -> int | None:
        """Number of this very scenario in ``csrc/particle/scenarios.h``; None if it is in NumPy."""
        return None

    @abstractmethod
    def place(self, draws: Doubles, position: Doubles, landmarks: Doubles) -> None:
        """Begin ``M`` episodes from the random numbers ``draws [M, n_draws]``.

        Fill ``position [M, B, 2]`` and ``landmarks [M, L, 2]``; velocities begin at 0.
        """

    @abstractmethod
    def observe(self, world: World, obs: FloatArray) -> None:
        """Fill every number of ``obs [N, A, obs_dim]``."""

    @abstractmethod
    def reward(self, world: World) -> Doubles:
        """Rewards ``[N, A]``, or ``[N, 1]`` where all agents share one, of the state reached."""

    def scripted_actions(self, world: World) -> Doubles:
        """Actions ``[N, B - A, 2]`` of the scripted bodies; by default they drift."""
        return np.zeros((len(world.clock), len(self.bodies) - self.n_agents, 2))

    def colors(self, task: Doubles) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Colours ``[B, 3]`` and ``[L, 3]`` of bodies and landmarks under this task.

        By default agents are blue, the first, to green, the last, and everything else is grey.
        """
        bodies = np.full((len(self.bodies), 3), (160, 160, 160), np.uint8)
        bodies[: self.n_agents] = np.linspace((60, 90, 220), (30, 170, 90), self.n_agents)
        return bodies, np.full((self.n_landmarks, 3), (60, 60, 60), np.uint8)

    def hidden(self, task: Doubles) -> tuple[Doubles, NDArray[np.uint8]]:
        """Centres ``[M, 2]`` and colours ``[M, 3]`` of places that only pictures show."""
        return np.zeros((0, 2)), np.zeros((0, 3), np.uint8)


class ParticleEnv(VectorEnv):
    """``N`` particle worlds under one scenario (see ``VectorEnv`` for the contract).

    The world is the square ``|x|, |y| < 1.2``; its walls push a body softly from
    ``1.0 - size`` on. A step is 0.1 s: an action in ``Box(-1, 1, (2,))`` times the body's
    acceleration, contact and wall forces change the velocity (of which a quarter is lost at every
    step), then the velocity changes the position. Episodes never terminate; they are truncated
    after ``max_ep_len`` steps.
    """

    vectorised = True

    def __init__(
        self, scenario: ParticleScenario, num_envs: int, max_ep_len: int, seed: int = 0
    ) -> None:
        self.scenario = scenario
        self.tasks, self.shared_reward = scenario.tasks, scenario.shared_reward
        self.num_envs = num_envs
        self.num_agents = scenario.n_agents
        self.max_ep_len = max_ep_len
        box = Box(-np.inf, np.inf, (scenario.obs_dim,), np.float32)
        self.observation_spaces = (box,) * self.num_agents
        self.action_spaces = (Box(-1.0, 1.0, (2,), np.float32),) * self.num_agents
        self.task_ids = np.arange(num_envs) % self.tasks.n_train
        self._streams = Streams(num_envs, seed)
        self._started = False
        position = np.zeros((num_envs, len(scenario.bodies), 2))
        self.world = World(
            position=position,
            velocity=np.zeros_like(position),
            landmarks=np.zeros((num_envs, scenario.n_landmarks, 2)),
            task=self.tasks.features[self.task_ids].astype(np.float64),
            clock=np.zeros(num_envs, np.int64),
            draws=np.zeros((num_envs, scenario.n_draws)),
            agents=position[:, : self.num_agents],
            scripted=position[:, self.num_agents :],
        )
        kind = scenario.compiled()
        self.compiled = None if kind is None or LIBRARY is None else self._compile(kind)

    def reset(
        self, seed: int | Sequence[int] | None = None, task_ids: ArrayLike | None = None
    ) -> tuple[FloatArray, Info]:
        """See ``VectorEnv.reset``."""
        if task_ids is not None:
            self._set_tasks(task_ids)
        if seed is not None:
            self._streams.seed(seed)
        self._started = True
        self._begin(np.arange(self.num_envs))
        return self._observe(), {}

    def step(self, actions: ArrayLike) -> StepResult:
        """See ``VectorEnv.step``."""
        return self.advance(actions)

    def advance(self, actions: ArrayLike, scripted: ArrayLike | None = None) -> StepResult:
        """Step, with the actions ``[N, B - A, 2]`` of the scripted bodies given from outside."""
        world, bodies = self.world, self.scenario.bodies
        actions = np.asarray(actions)
        if actions.shape != world.agents.shape:
            raise ValueError(f"actions must have shape {world.agents.shape}, got {actions.shape}")
        if not self._started:
            raise RuntimeError("call reset() before the first step")
        if scripted is None and self.compiled is not None:
            obs, rewards = self.compiled.step(actions)
        else:
            if scripted is None:
                scripted = self.scenario.scripted_actions(world)
            step(
                world.position, world.velocity, actions, np.asarray(scripted),
                bodies.acceleration, bodies.size, bodies.max_speed, bodies.collides,
            )  # fmt: skip
            world.clock[:] += 1
            rewards = np.empty((self.num_envs, self.num_agents), np.float32)
            rewards[:] = self.scenario.reward(world)
            obs = self._observe()
        final_obs = obs
        terminated = np.zeros((self.num_envs, self.num_agents), np.bool_)
        truncated = np.zeros((self.num_envs, self.num_agents), np.bool_)
        over = world.clock >= self.max_ep_len
        if over.any():
            truncated[over] = True
            self._begin(np.flatnonzero(over))
            obs = self._observe()
        return obs, rewards, terminated, truncated, {"final_obs": final_obs}

    def set_state(
        self,
        position: ArrayLike,
        velocity: ArrayLike,
        landmarks: ArrayLike,
        task: ArrayLike,
    ) -> FloatArray:
        """Put all sub-environments into a given state at the start of an episode.

        Args:
            position: ``[N, B, 2]``, agents first.
            velocity: ``[N, B, 2]``.
            landmarks: ``[N, L, 2]``.
            task: ``[N, task_dim]`` task features; ``task_ids`` stay as they are and count again
                from the next episode on.

        Returns:
            ``obs`` ``[N, A, obs]``.

        Raises:
            ValueError: an array has the wrong shape.
        """
        world = self.world
        given = {"position": position, "velocity": velocity, "landmarks": landmarks, "task": task}
        for name, value in given.items():
            target = getattr(world, name)
            if np.shape(value) != target.shape:
                raise ValueError(f"{name} must have shape {target.shape}, got {np.shape(value)}")
        for name, value in given.items():
            getattr(world, name)[:] = value
        world.clock[:] = 0
        self._started = True
        return self._observe()

    def state_dict(self) -> dict[str, Any]:
        """See ``VectorEnv.state_dict``."""
        state: dict[str, Any] = {name: getattr(self.world, name).copy() for name in _STATE}
        return {
            **state,
            "task_ids": self.task_ids.copy(),
            "streams": self._streams.state(),
            "started": self._started,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See ``VectorEnv.load_state_dict``."""
        expected = {*_STATE, "task_ids", "streams", "started"}
        if set(state) != expected:
            raise ValueError(f"state must have the keys {sorted(expected)}, got {sorted(state)}")
        for name in _STATE:
            target, value = getattr(self.world, name), np.asarray(state[name])
            if value.shape != target.shape:
                raise ValueError(f"{name} must have shape {target.shape}, got {value.shape}")
        self._streams.load(state["streams"])
        self._set_tasks(state["task_ids"])
        for name in _STATE:
            getattr(self.world, name)[:] = np.asarray(state[name])
        self._started = bool(state["started"])

    def render(self, index: int = 0) -> NDArray[np.uint8]:
        """See ``VectorEnv.render``."""
        self._check_index(index)
        world = self.world
        body_colors, landmark_colors = self.scenario.colors(world.task[index])
        places, place_colors = self.scenario.hidden(world.task[index])
        return draw_world(
            np.concatenate([places, places, world.landmarks[index], world.position[index]]),
            np.concatenate([
                np.full(len(places), 0.11), np.full(len(places), 0.08),  # rings
                np.full(self.scenario.n_landmarks, 0.05), self.scenario.bodies.size,
            ]),
            np.concatenate([
                place_colors, np.full_like(place_colors, 255), landmark_colors, body_colors
            ]),
        )  # fmt: skip

    def _set_tasks(self, task_ids: ArrayLike) -> None:
        super()._set_tasks(task_ids)
        self.world.task[:] = self.tasks.features[self.task_ids]

    def _begin(self, env_ids: NDArray[np.int64]) -> None:
        world, generators = self.world, self._streams.generators
        draws = np.empty((len(env_ids), world.draws.shape[1]))
        for row, env_id in zip(draws, env_ids, strict=True):
            generators[env_id].random(out=row)
        position = np.empty((len(env_ids), *world.position.shape[1:]))
        landmarks = np.empty((len(env_ids), *world.landmarks.shape[1:]))
        self.scenario.place(draws, position, landmarks)
        world.draws[env_ids] = draws
        world.position[env_ids] = position
        world.landmarks[env_ids] = landmarks
        world.velocity[env_ids] = 0
        world.clock[env_ids] = 0
        world.task[env_ids] = self.tasks.features[self.task_ids[env_ids]]

    def _observe(self) -> FloatArray:
        if self.compiled is not None:
            return self.compiled.observe()
        obs = np.empty((self.num_envs, self.num_agents, self.scenario.obs_dim), np.float32)
        self.scenario.observe(self.world, obs)
        return obs

    def _compile(self, kind: int) -> CompiledScenario:
        world, bodies = self.world, self.scenario.bodies
        return CompiledScenario(
            kind, self.num_agents, world.position, world.velocity, world.clock, world.landmarks,
            world.task, world.draws, bodies.acceleration, bodies.size, bodies.max_speed,
            bodies.collides,
        )  # fmt: skip

    def to(self, device: Any) -> VectorEnv:
        """See ``VectorEnv.to``."""
        if self.scenario.compiled() is None:
            return self
        from mg2l.envs.particle import tensors

        return tensors.moved(self, device)


_STATE = ("position", "velocity", "landmarks", "task", "clock", "draws")


def factory(
    scenario: Callable[[ConfigT], ParticleScenario],
) -> Callable[[ConfigT, int, int], ParticleEnv]:
    """The factory of this scenario's environments, for ``registry.register``."""

    def build(config: ConfigT, num_envs: int, seed: int) -> ParticleEnv:
        return ParticleEnv(scenario(config), num_envs, config.max_ep_len, seed)

    return build
