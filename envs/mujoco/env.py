"""Robots as environments: what agents see, and what each family pays."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from mg2l.envs.base import BoolArray, FloatArray, TaskSet
from mg2l.envs.batched import BatchedEnv
from mg2l.envs.mujoco import config as keys
from mg2l.envs.mujoco.simulator import Doubles, Simulator


class RobotEnv(BatchedEnv):
    """``N`` robots of a kind whose joints are agents' (see ``VectorEnv`` for the contract).

    Action space: ``Box(-1, 1, (joints,))`` per agent, torques on its joints as fractions of the
    largest, in the order of ``agent_conf``'s joints (``robots.py``).

    Observation space: per agent of its own joints, in alphabetical order, angle [rad] and angular
    velocity [rad/s]; then of joints up to ``agent_obsk`` edges away their angles, nearest first;
    with ``root_state`` all positions of the torso but the horizontal ones, and its velocities.
    Zeros at the end, where other agents see more.

    Reward: shared by all agents, family by family.

    End: terminated for all agents when the robot has fallen, where the family says so; truncated
    after ``max_ep_len`` steps.
    """

    shared_reward = True

    horizontal: ClassVar[int] = 1
    """First coordinates of the torso, its position: never observed."""

    noise: ClassVar[float] = 0.1
    """Half-width of the uniform noise on initial positions."""

    normal_velocity: ClassVar[bool] = True
    """Noise on velocities is normal with standard deviation ``noise``, or uniform like that on
    positions."""

    def __init__(
        self, config: keys.RobotConfig, tasks: TaskSet, num_envs: int, seed: int = 0
    ) -> None:
        self.config = config
        tasks = tasks.with_validation(config)
        self.simulator = Simulator(config, num_envs)
        model, parts = self.simulator.model, config.parts
        motors = {int(model.actuator_trnid[i, 0]): i for i in range(model.nu)}
        joints = [model.joint(name).id for part in parts for name in part]
        self.motors = np.array([motors[joint] for joint in joints])
        self._seen = self._observed(config)
        # Positions, velocities and a zero, side by side.
        self._columns = np.zeros((num_envs, model.nq + model.nv + 1))
        widths = (self._seen < model.nq + model.nv).sum(1).tolist()
        observations = [Box(-np.inf, np.inf, (width,), np.float32) for width in widths]
        actions = [Box(-1.0, 1.0, (len(part),), np.float32) for part in parts]
        super().__init__(
            tasks, num_envs, len(parts), observations, actions, config.max_ep_len, seed
        )
        # Where the joints' actions lie among all, which are padded to the widest agent's.
        self._acting = np.flatnonzero(self.action_layout.own_numbers)
        self._task = tasks.features.astype(np.float64)  # [K, D]
        self._placed = np.full(num_envs, -1)  # task that a sub-environment's body is made for

    def _observed(self, config: keys.RobotConfig) -> NDArray[np.int64]:
        """``[A, obs]`` columns that each agent sees."""
        model = self.simulator.model
        zero = model.nq + model.nv
        rows = []
        for agent in range(len(config.parts)):
            row = []
            for ring, names in enumerate(
                config.robot.sees(config.agent_conf, agent, config.agent_obsk)
            ):
                for name in names:
                    joint = model.joint(name)
                    row.append(int(joint.qposadr[0]))
                    if ring == 0:
                        row.append(model.nq + int(joint.dofadr[0]))
            if config.root_state:
                first = model.nq - model.nu
                row += range(self.horizontal, first)
                row += range(model.nq, model.nq + model.nv - model.nu)
            rows.append(row)
        width = max(map(len, rows))
        return np.array([row + [zero] * (width - len(row)) for row in rows], np.int64)

    # What a family defines.

    @abstractmethod
    def pay(self, velocity: Doubles, effort: Doubles, task: Doubles) -> Doubles:
        """Reward ``[N]`` of a step.

        Args:
            velocity: ``[N, horizontal]`` of the torso, mean over the step [m/s].
            effort: ``[N]`` sum of the squares of all actions.
            task: ``[N, D]`` features.
        """

    def fallen(self, qpos: Doubles, qvel: Doubles) -> BoolArray | None:
        """``[N]`` which robots have fallen; None where that ends no episode."""
        return None

    def torques(self, actions: Doubles, task: Doubles) -> Doubles:
        """Torques ``[N, motors]`` of the motors, in order, for actions ``[N, motors]``."""
        return actions

    def embody(self, env_ids: NDArray[np.int64]) -> None:
        """Make the bodies of sub-environments those of their tasks, where tasks are bodies."""

    # Episodes.

    def _begin(self, env_ids: NDArray[np.int64]) -> None:
        changed = env_ids[self._placed[env_ids] != self.task_ids[env_ids]]
        if len(changed):
            self.embody(changed)
            self._placed[changed] = self.task_ids[changed]
        model = self.simulator.model
        qpos = np.repeat(model.qpos0[None], len(env_ids), 0)
        qvel = np.zeros((len(env_ids), model.nv))
        for row, env_id in enumerate(env_ids):
            generator = self._streams.generators[env_id]
            qpos[row] += generator.uniform(-self.noise, self.noise, model.nq)
            if self.normal_velocity:
                qvel[row] = self.noise * generator.standard_normal(model.nv)
            else:
                qvel[row] = generator.uniform(-self.noise, self.noise, model.nv)
        self.simulator.begin(env_ids, qpos, qvel)

    def _advance(self, actions: NDArray[Any]) -> tuple[FloatArray, BoolArray]:
        simulator = self.simulator
        before = simulator.qpos[:, : self.horizontal].copy()
        flat = actions.reshape(self.num_envs, -1).take(self._acting, 1)
        controls = np.empty_like(flat)
        controls[:, self.motors] = self.torques(flat, self._task[self.task_ids])
        simulator.step(controls)
        velocity = (simulator.qpos[:, : self.horizontal] - before) / simulator.seconds
        effort = np.einsum("na,na->n", flat, flat)
        pay = self.pay(velocity, effort, self._task[self.task_ids])
        rewards = np.repeat(pay.astype(np.float32)[:, None], self.num_agents, 1)
        fallen = self.fallen(simulator.qpos, simulator.qvel)
        terminated = np.zeros(rewards.shape, np.bool_)
        if fallen is not None:
            terminated |= fallen[:, None]
        return rewards, terminated

    def _observe(self) -> FloatArray:
        columns, positions = self._columns, self.simulator.model.nq
        columns[:, :positions] = self.simulator.qpos
        columns[:, positions:-1] = self.simulator.qvel
        observed: FloatArray = columns.take(self._seen, 1).astype(np.float32)
        return observed

    def set_state(self, qpos: Doubles, qvel: Doubles, task_ids: NDArray[np.int64]) -> FloatArray:
        """Put all sub-environments into a state at the start of an episode of their tasks.

        Args:
            qpos: ``[N, nq]``.
            qvel: ``[N, nv]``.
            task_ids: ``[N]``.

        Returns:
            ``obs`` ``[N, A, obs]``.

        Raises:
            ValueError: an array has the wrong shape, or a task does not exist.
        """
        model = self.simulator.model
        for name, value, width in (("qpos", qpos, model.nq), ("qvel", qvel, model.nv)):
            if value.shape != (self.num_envs, width):
                raise ValueError(
                    f"{name} must have shape {(self.num_envs, width)}, got {value.shape}"
                )
        self.reset(task_ids=task_ids)
        self.simulator.begin(np.arange(self.num_envs), qpos, qvel)
        return self._observe()

    def advance(self, actions: NDArray[Any]) -> tuple[FloatArray, FloatArray, BoolArray]:
        """Step without a reset where an episode ends: observations, rewards, terminated."""
        rewards, terminated = self._advance(np.clip(actions, -1.0, 1.0))
        return self._observe(), rewards, terminated

    # Saved state and pictures.

    def _simulation(self) -> dict[str, NDArray[Any]]:
        return dict(self.simulator.state())

    def _restore(self, state: dict[str, NDArray[Any]]) -> None:
        env_ids = np.arange(self.num_envs)
        self.embody(env_ids)
        self._placed[:] = self.task_ids
        self.simulator.load(state)

    def render(self, index: int = 0) -> NDArray[np.uint8]:
        """See ``VectorEnv.render``."""
        self._check_index(index)
        if not self._started:
            raise RuntimeError("call reset() before render()")
        return self.simulator.render(index)

    def close(self) -> None:
        """See ``VectorEnv.close``."""
        self.simulator.close()


class CheetahDirEnv(RobotEnv):
    """Action and observation space: see ``RobotEnv``.

    Reward: velocity forwards [m/s] times the task's pay, less 0.1 times the effort.

    Start: noise of 0.1 on positions and velocities.

    End: truncated after ``max_ep_len`` steps, never terminated.

    Tasks: pay per metre, -1 (run backwards) and 1 to train on, -0.5 and 0.5 to test on.
    """

    def __init__(self, config: keys.CheetahDirConfig, num_envs: int, seed: int = 0) -> None:
        super().__init__(config, keys.cheetah_dir_tasks(config), num_envs, seed)

    def pay(self, velocity: Doubles, effort: Doubles, task: Doubles) -> Doubles:
        """See ``RobotEnv.pay``."""
        return task[:, 0] * velocity[:, 0] - 0.1 * effort


class CheetahVelEnv(RobotEnv):
    """Action and observation space: see ``RobotEnv``.

    Reward: minus the distance to the task's speed [m/s], less 0.05 times the effort.

    Start: noise of 0.1 on positions and velocities.

    End: truncated after ``max_ep_len`` steps, never terminated.

    Tasks: speeds forwards from ``min_speed`` to ``max_speed``; ``n_ood_tasks`` lie beyond.
    """

    def __init__(self, config: keys.CheetahVelConfig, num_envs: int, seed: int = 0) -> None:
        super().__init__(config, keys.cheetah_vel_tasks(config), num_envs, seed)

    def pay(self, velocity: Doubles, effort: Doubles, task: Doubles) -> Doubles:
        """See ``RobotEnv.pay``."""
        return -np.abs(velocity[:, 0] - task[:, 0]) - 0.05 * effort


class CheetahMotorEnv(RobotEnv):
    """Action and observation space: see ``RobotEnv``.

    Reward: velocity forwards [m/s], less 0.1 times the effort.

    Start: noise of 0.1 on positions and velocities.

    End: truncated after ``max_ep_len`` steps, never terminated.

    Tasks: gains of the six motors, 1 or -1: each agent can infer its own from what its joints do.
    """

    def __init__(self, config: keys.CheetahMotorConfig, num_envs: int, seed: int = 0) -> None:
        super().__init__(config, keys.cheetah_motor_tasks(config), num_envs, seed)

    def pay(self, velocity: Doubles, effort: Doubles, task: Doubles) -> Doubles:
        """See ``RobotEnv.pay``."""
        return velocity[:, 0] - 0.1 * effort

    def torques(self, actions: Doubles, task: Doubles) -> Doubles:
        """See ``RobotEnv.torques``."""
        return actions * task


class ParamEnv(RobotEnv):
    """Action and observation space: see ``RobotEnv``.

    Reward: 1 for every step, plus velocity forwards [m/s], less 0.001 times the effort.

    Start: uniform noise of 0.005 on positions and velocities.

    Tasks: four scales, of all masses, dampings, frictions and inertias of the body.
    """

    noise = 0.005
    normal_velocity = False
    config: keys.ParamConfig

    def __init__(self, config: keys.ParamConfig, num_envs: int, seed: int = 0) -> None:
        super().__init__(config, keys.param_tasks(config), num_envs, seed)

    def pay(self, velocity: Doubles, effort: Doubles, task: Doubles) -> Doubles:
        """See ``RobotEnv.pay``."""
        return velocity[:, 0] + 1.0 - 1e-3 * effort

    def embody(self, env_ids: NDArray[np.int64]) -> None:
        """See ``RobotEnv.embody``."""
        exponents = self._task[self.task_ids[env_ids]]
        self.simulator.scale(env_ids, exponents, self.config.log_scale_limit)


class HopperParamEnv(ParamEnv):
    """``ParamEnv`` on one leg: spaces, reward, start and tasks are as there.

    End: terminated when fallen below 0.7 m, leaning by 0.2 rad, or any other number of its state
    is 100 or more.
    """

    def fallen(self, qpos: Doubles, qvel: Doubles) -> BoolArray:
        """See ``RobotEnv.fallen``."""
        rest = np.maximum(np.abs(qpos[:, 2:]).max(1), np.abs(qvel).max(1))
        stands = (qpos[:, 1] > 0.7) & (np.abs(qpos[:, 2]) < 0.2) & (rest < 100)
        fallen: BoolArray = ~stands
        return fallen


class WalkerParamEnv(ParamEnv):
    """``ParamEnv`` on two legs: spaces, reward, start and tasks are as there.

    End: terminated when not between 0.8 and 2 m high, or leaning by 1 rad.
    """

    def fallen(self, qpos: Doubles, qvel: Doubles) -> BoolArray:
        """See ``RobotEnv.fallen``."""
        stands = (qpos[:, 1] > 0.8) & (qpos[:, 1] < 2.0) & (np.abs(qpos[:, 2]) < 1.0)
        fallen: BoolArray = ~stands
        return fallen


class AntDirEnv(RobotEnv):
    """Action and observation space: see ``RobotEnv``.

    Reward: velocity [m/s] in the task's direction, plus ``survival``, less 0.5 times the effort.

    Start: noise of 0.1 on positions and velocities.

    End: terminated when not between 0.2 and 1 m high.

    Tasks: directions, evenly spaced to train on and halfway between those to test on, or random.
    """

    horizontal = 2
    config: keys.AntDirConfig

    def __init__(self, config: keys.AntDirConfig, num_envs: int, seed: int = 0) -> None:
        super().__init__(config, keys.ant_dir_tasks(config), num_envs, seed)

    def pay(self, velocity: Doubles, effort: Doubles, task: Doubles) -> Doubles:
        """See ``RobotEnv.pay``."""
        along: Doubles = np.einsum("nd,nd->n", velocity, task)
        return along + self.config.survival - 0.5 * effort

    def fallen(self, qpos: Doubles, qvel: Doubles) -> BoolArray:
        """See ``RobotEnv.fallen``."""
        stands = (qpos[:, 2] >= 0.2) & (qpos[:, 2] <= 1.0) & np.isfinite(qvel).all(1)
        fallen: BoolArray = ~stands
        return fallen
