"""Keys of the robots' families and their tasks."""

from __future__ import annotations

from dataclasses import dataclass
from math import pi
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from mg2l.core.schema import bounded
from mg2l.envs.base import EnvConfig, TaskSet
from mg2l.envs.mujoco.robots import ANT, CHEETAH, HOPPER, WALKER, Robot

FIELDS = {"body_mass": 1.5, "dof_damping": 1.3, "geom_friction": 1.5, "body_inertia": 1.5}
"""Parameters scaled in the families ``*-param``, and bases of the scales (Rakelly et al., 2019)."""

MOTOR_SIGNS = 2**6
"""Sets of reversed motors of the half cheetah."""

WEAK_MOTORS = (0.5, 0.9)
"""Gains between which motors of tasks beyond the distribution lie."""


@dataclass
class RobotConfig(EnvConfig):
    """Keys of every robot."""

    robot: ClassVar[Robot]

    max_ep_len: int = bounded(200, ge=1, le=1_000_000)
    """Steps after which an episode is truncated."""

    agent_conf: str = ""
    """How joints are divided: agents x joints, or each agent's number of joints, as 2+1."""

    agent_obsk: int = bounded(0, ge=0, le=100)
    """How many edges away an agent sees other joints; 0: its own only."""

    root_state: bool = False
    """Also show every agent height, orientation and velocity of the torso."""

    physics: Literal["native", "v2"] = "native"
    """The simulator as it is, or with the inertias that MuJoCo 2.1 gave its capsules, on which the
    paper's experiments ran."""

    sim_threads: int = bounded(0, ge=0, le=1024)
    """Threads of the simulator; 0: as many as there are processors. Results do not depend on it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        agents = len(self.parts)
        if self.n_agents != agents:
            raise ValueError(
                f"n_agents={self.n_agents} conflicts with agent_conf={self.agent_conf!r}, which "
                f"has {agents} agents"
            )

    @property
    def parts(self) -> tuple[tuple[str, ...], ...]:
        """Joints of each agent."""
        return self.robot.parts(self.agent_conf)


@dataclass
class CheetahDirConfig(RobotConfig):
    """A half cheetah that must find out in which direction it is paid to run."""

    robot: ClassVar[Robot] = CHEETAH

    agent_conf: str = "2x3"
    """How joints are divided: 2x3, 6x1, or each agent's number of joints, as 4+2."""


@dataclass
class CheetahVelConfig(RobotConfig):
    """A half cheetah that must find out how fast it is to run."""

    robot: ClassVar[Robot] = CHEETAH

    agent_conf: str = "2x3"
    """How joints are divided: 2x3, 6x1, or each agent's number of joints, as 4+2."""

    n_tasks: int = bounded(30, ge=1, le=100_000)
    """Speeds to train on."""

    n_test_tasks: int = bounded(10, ge=1, le=100_000)
    """Speeds to test on."""

    n_ood_tasks: int = bounded(0, ge=0, le=100_000)
    """Speeds beyond the distribution, by up to a third of its width."""

    min_speed: float = bounded(0.0, ge=-100, le=100)
    """Speeds are drawn uniformly from this to ``max_speed`` [m/s]; negative ones are backwards."""

    max_speed: float = bounded(3.0, gt=0, le=100)
    """The highest speed to train on [m/s]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_speed >= self.max_speed:
            raise ValueError(f"min_speed={self.min_speed} must be below max_speed={self.max_speed}")


@dataclass
class CheetahMotorConfig(RobotConfig):
    """A half cheetah some of whose motors turn the wrong way round."""

    robot: ClassVar[Robot] = CHEETAH

    agent_conf: str = "2x3"
    """How joints are divided: 2x3 or 6x1."""

    n_tasks: int = bounded(48, ge=1, le=64)
    """Sets of reversed motors to train on."""

    n_test_tasks: int = bounded(16, ge=0, le=63)
    """Other sets, to test on."""

    n_ood_tasks: int = bounded(8, ge=0, le=100_000)
    """Sets beyond the distribution, whose motors are weaker, too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_tasks + self.n_test_tasks > MOTOR_SIGNS:
            raise ValueError(
                f"n_tasks={self.n_tasks} and n_test_tasks={self.n_test_tasks} are more than the "
                f"{MOTOR_SIGNS} sets of reversed motors that there are"
            )


@dataclass
class ParamConfig(RobotConfig):
    """A robot whose body and ground differ from task to task."""

    n_tasks: int = bounded(50, ge=1, le=100_000)
    """Bodies to train on."""

    n_test_tasks: int = bounded(20, ge=1, le=100_000)
    """Bodies to test on."""

    log_scale_limit: float = bounded(3.0, ge=0, le=20)
    """Mass, friction and inertia are scaled by 1.5 to the power of a number drawn uniformly
    between minus this and this, damping by 1.3 likewise."""


@dataclass
class HopperParamConfig(ParamConfig):
    """A hopper whose masses, inertias, damping and friction differ from task to task."""

    robot: ClassVar[Robot] = HOPPER

    n_agents: int = bounded(3, ge=1, le=1000)
    """Agents of the team, as many as ``agent_conf`` has."""

    agent_conf: str = "3x1"
    """How joints are divided: 3x1, or each agent's number of joints, as 2+1."""


@dataclass
class WalkerParamConfig(ParamConfig):
    """A walker whose masses, inertias, damping and friction differ from task to task."""

    robot: ClassVar[Robot] = WALKER

    agent_conf: str = "2x3"
    """How joints are divided: 2x3, 6x1, or each agent's number of joints, as 4+2."""


@dataclass
class AntDirConfig(RobotConfig):
    """An ant that must find out in which direction it is paid to run."""

    robot: ClassVar[Robot] = ANT

    n_agents: int = bounded(4, ge=1, le=1000)
    """Agents of the team, as many as ``agent_conf`` has."""

    agent_conf: str = "4x2"
    """How joints are divided: 2x4, 2x4d (diagonal legs), 4x2, 8x1, or each agent's number of
    joints, as 2+1+1+4."""

    root_state: bool = True
    """Also show every agent height, orientation and velocity of the torso."""

    directions: Literal["even", "random"] = "even"
    """Directions evenly spaced, or drawn at random, those of each part from equal sectors."""

    survival: float = bounded(1.0, ge=0, le=1e6)
    """Paid for each step on its feet; running is paid 1 per metre and second."""

    n_tasks: int = bounded(8, ge=1, le=100_000)
    """Directions to train on."""

    n_test_tasks: int = bounded(4, ge=1, le=100_000)
    """Directions to test on: evenly spaced ones lie halfway between those."""

    n_ood_tasks: int = bounded(0, ge=0, le=100_000)
    """With ``directions: random``, as many more beyond the distribution: running is paid half or
    twice as well."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_ood_tasks and self.directions == "even":
            raise ValueError(f"n_ood_tasks={self.n_ood_tasks} needs directions=random")
        if self.directions == "even" and self.n_test_tasks > self.n_tasks:
            raise ValueError(
                f"n_test_tasks={self.n_test_tasks} conflicts with n_tasks={self.n_tasks}: test "
                "directions lie between training directions"
            )


def cheetah_dir_tasks(config: CheetahDirConfig) -> TaskSet:
    """Pay per metre forwards: -1 and 1 to train on, -0.5 and 0.5 to test on; also the feature.

    Raises:
        ValueError: ``n_tasks`` is neither 0 nor 2.
    """
    if config.n_tasks not in (0, 2):
        raise ValueError(f"n_tasks must be 2, the directions there are, got {config.n_tasks}")
    names = ["backwards", "forwards", "backwards at half pay", "forwards at half pay"]
    return _tasks("direction", np.array([[-1.0], [1.0], [-0.5], [0.5]]), names, 2)


def cheetah_vel_tasks(config: CheetahVelConfig) -> TaskSet:
    """Speeds [m/s], drawn uniformly; beyond them faster ones, of those backwards as well."""
    total, low, high = config.n_tasks + config.n_test_tasks, config.min_speed, config.max_speed
    rng = np.random.default_rng(config.task_seed)
    speeds = rng.uniform(low, high, (total, 1))
    beyond = rng.uniform(0, (high - low) / 3, (config.n_ood_tasks, 1))
    below = (np.arange(config.n_ood_tasks) % 2 == 1)[:, None] & (low < 0)
    speeds = np.concatenate([speeds, np.where(below, low - beyond, high + beyond)])
    names = [f"{float(speed):.4f} m/s" for (speed,) in speeds]
    return _tasks("speed", speeds, names, config.n_tasks, config.n_test_tasks)


def cheetah_motor_tasks(config: CheetahMotorConfig) -> TaskSet:
    """Gains of the motors, in the order of the agents' actions: 1, or -1 where one is reversed."""
    rng = np.random.default_rng(config.task_seed)
    count = config.n_tasks + config.n_test_tasks
    bits = rng.permutation(MOTOR_SIGNS)[:count, None] >> np.arange(6) & 1
    signs = 1.0 - 2.0 * bits
    weak = rng.choice([-1.0, 1.0], (config.n_ood_tasks, 6))
    weak *= rng.uniform(*WEAK_MOTORS, weak.shape)
    names = ["".join("-+"[int(sign > 0)] for sign in row) for row in signs]
    names += [f"weak {i}" for i in range(config.n_ood_tasks)]
    gains = np.concatenate([signs, weak])
    return _tasks("gains", gains, names, config.n_tasks, config.n_test_tasks)


def ant_dir_tasks(config: AntDirConfig) -> TaskSet:
    """Directions: features are cosine and sine, times what running is paid."""
    count, held_out, beyond = config.n_tasks, config.n_test_tasks, config.n_ood_tasks
    if config.directions == "even":
        train = np.arange(count) / count
        test = (np.arange(held_out) * count // held_out + 0.5) / count
        turns = np.concatenate([train, test])
    else:
        rng = np.random.default_rng(config.task_seed)
        parts = [n for n in (count, held_out, beyond) if n]
        turns = np.concatenate([(rng.permutation(n) + rng.uniform(0, 1, n)) / n for n in parts])
    pay = np.ones(len(turns))
    pay[count + held_out :] = np.resize([0.5, 2.0], beyond)
    angles = 2 * pi * turns
    directions = pay[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    names = [f"{360 * turn:.4g} degrees" for turn in turns]
    if config.directions == "random":
        names = [
            f"{360 * turn:.2f} degrees" + (f" for {p:g}" if p != 1 else "")
            for turn, p in zip(turns, pay, strict=True)
        ]
    return _tasks("direction", directions, names, count, held_out)


def param_tasks(config: ParamConfig) -> TaskSet:
    """Scales of body and ground; features are the exponents over their limit, in ``[-1, 1]``."""
    total = config.n_tasks + config.n_test_tasks
    exponents = np.random.default_rng(config.task_seed).uniform(-1, 1, (total, len(FIELDS)))
    names = [f"body {i}" for i in range(total)]
    return _tasks("exponents", exponents, names, config.n_tasks)


def _tasks(
    what: str,
    values: NDArray[np.float64],
    names: list[str],
    n_train: int,
    n_test: int | None = None,
) -> TaskSet:
    return TaskSet(
        params=[{what: row.tolist()} for row in values],
        features=values.astype(np.float32),
        names=names,
        n_train=n_train,
        n_test=n_test,
    )
