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
"""What is scaled in the families ``*-param``, and the base of the scale (Rakelly et al., 2019)."""


@dataclass
class RobotConfig(EnvConfig):
    """Keys of every robot."""

    robot: ClassVar[Robot]

    max_ep_len: int = bounded(200, ge=1, le=1_000_000)
    """Steps after which an episode is truncated."""

    agent_conf: str = ""
    """How joints are shared out, agents x joints."""

    agent_obsk: int = bounded(0, ge=0, le=100)
    """How many edges far an agent sees other joints; 0: its own only."""

    root_state: bool = False
    """Also show every agent height, orientation and velocity of the torso."""

    physics: Literal["native", "v2"] = "native"
    """The simulator as it is, or with the inertias that MuJoCo 2.1 gave its capsules, on which the
    paper's experiments ran."""

    sim_threads: int = bounded(0, ge=0, le=1024)
    """Threads of the simulator; 0: as many as there are processors. Results do not depend on it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        known = self.robot.partitions
        if self.agent_conf not in known:
            raise ValueError(f"agent_conf must be one of {list(known)}, got {self.agent_conf!r}")
        agents = len(known[self.agent_conf])
        if self.n_agents != agents:
            raise ValueError(
                f"n_agents={self.n_agents} conflicts with agent_conf={self.agent_conf!r}, which "
                f"has {agents} agents"
            )

    @property
    def parts(self) -> tuple[tuple[str, ...], ...]:
        """Joints of each agent."""
        return self.robot.partitions[self.agent_conf]


@dataclass
class CheetahDirConfig(RobotConfig):
    """A half cheetah that must find out in which direction it is paid to run."""

    robot: ClassVar[Robot] = CHEETAH

    agent_conf: str = "2x3"
    """How joints are shared out: 2x3 or 6x1."""


@dataclass
class CheetahVelConfig(RobotConfig):
    """A half cheetah that must find out how fast it is to run."""

    robot: ClassVar[Robot] = CHEETAH

    agent_conf: str = "2x3"
    """How joints are shared out: 2x3 or 6x1."""

    n_tasks: int = bounded(30, ge=1, le=100_000)
    """Speeds to train on."""

    n_test_tasks: int = bounded(10, ge=1, le=100_000)
    """Speeds to test on."""

    max_speed: float = bounded(3.0, gt=0, le=100)
    """Speeds are drawn uniformly from 0 to this [m/s]."""


@dataclass
class ParamConfig(RobotConfig):
    """A robot whose body and ground are not always the same."""

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
    """How joints are shared out: 3x1."""


@dataclass
class WalkerParamConfig(ParamConfig):
    """A walker whose masses, inertias, damping and friction differ from task to task."""

    robot: ClassVar[Robot] = WALKER

    agent_conf: str = "2x3"
    """How joints are shared out: 2x3 or 6x1."""


@dataclass
class AntDirConfig(RobotConfig):
    """An ant that must find out in which direction it is paid to run."""

    robot: ClassVar[Robot] = ANT

    n_agents: int = bounded(4, ge=1, le=1000)
    """Agents of the team, as many as ``agent_conf`` has."""

    agent_conf: str = "4x2"
    """How joints are shared out: 2x4, 2x4d (diagonal legs), 4x2 or 8x1."""

    root_state: bool = True
    """Also show every agent height, orientation and velocity of the torso."""

    n_tasks: int = bounded(8, ge=1, le=100_000)
    """Directions to train on, evenly spaced."""

    n_test_tasks: int = bounded(4, ge=1, le=100_000)
    """Directions to test on, halfway between those."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_test_tasks > self.n_tasks:
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
    """Speeds [m/s], drawn uniformly."""
    total = config.n_tasks + config.n_test_tasks
    speeds = np.random.default_rng(config.task_seed).uniform(0, config.max_speed, (total, 1))
    names = [f"{float(speed):.4f} m/s" for (speed,) in speeds]
    return _tasks("speed", speeds, names, config.n_tasks)


def ant_dir_tasks(config: AntDirConfig) -> TaskSet:
    """Directions: features are cosine and sine."""
    count, held_out = config.n_tasks, config.n_test_tasks
    train = np.arange(count) / count
    test = (np.arange(held_out) * count // held_out + 0.5) / count
    turns = np.concatenate([train, test])
    angles = 2 * pi * turns
    directions = np.stack([np.cos(angles), np.sin(angles)], 1)
    names = [f"{360 * turn:.4g} degrees" for turn in turns]
    return _tasks("direction", directions, names, count)


def param_tasks(config: ParamConfig) -> TaskSet:
    """Scales of body and ground; features are the exponents over their limit, in ``[-1, 1]``."""
    total = config.n_tasks + config.n_test_tasks
    exponents = np.random.default_rng(config.task_seed).uniform(-1, 1, (total, len(FIELDS)))
    names = [f"body {i}" for i in range(total)]
    return _tasks("exponents", exponents, names, config.n_tasks)


def _tasks(what: str, values: NDArray[np.float64], names: list[str], n_train: int) -> TaskSet:
    return TaskSet(
        params=[{what: row.tolist()} for row in values],
        features=values.astype(np.float32),
        names=names,
        n_train=n_train,
    )
