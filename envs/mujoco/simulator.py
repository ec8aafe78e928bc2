"""Many robots in MuJoCo, stepped together on threads, each with a model of its own."""

from __future__ import annotations

import os
from typing import Any

import mujoco
import mujoco.batch
import numpy as np
from numpy.typing import NDArray

from mg2l.core.schema import ConfigError
from mg2l.envs.mujoco import opengl
from mg2l.envs.mujoco.config import FIELDS, RobotConfig
from mg2l.envs.mujoco.inertias import V2
from mg2l.envs.mujoco.robots import ASSETS

Doubles = NDArray[np.float64]

_STATE = ("time", "qpos", "qvel", "qacc_warmstart", "ctrl")


def load_model(config: RobotConfig) -> Any:
    """The robot's ``mujoco.MjModel``, with the inertias that ``physics`` asks for.

    Raises:
        ValueError: ``physics`` is v2, and the robot's inertias were not recorded.
    """
    before = mujoco.get_mju_user_warning()
    # What is deprecated in gymnasium's files; MuJoCo would write it into the working directory.
    mujoco.set_mju_user_warning(lambda text: None)
    try:
        model = mujoco.MjModel.from_xml_path(str(ASSETS / config.robot.xml))
    finally:
        mujoco.set_mju_user_warning(before)
    if config.physics == "v2":
        known = V2.get(config.robot.xml)
        if known is None:
            raise ValueError(
                f"physics=v2 is known for {sorted(V2)} only, got {config.robot.xml}; "
                "use physics=native"
            )
        for name, values in known.items():
            getattr(model, name)[:] = values
        mujoco.mj_setConst(model, mujoco.MjData(model))
    return model


class Simulator:
    """``N`` instances of a model.

    Attributes:
        model: as it was loaded; instances differ from it in what `scale` has scaled.
        qpos, qvel: ``[N, nq]`` and ``[N, nv]``, views of the simulator's state.
        controls: ``[N, nu]``, likewise.
        batch: MuJoCo's instances.
    """

    def __init__(self, config: RobotConfig, num_envs: int) -> None:
        self.model = load_model(config)
        threads = config.sim_threads or len(os.sched_getaffinity(0))
        self.batch = mujoco.batch.Batch(self.model, num_envs, min(threads, num_envs))
        self._state = {name: self.batch.bind(name) for name in _STATE}
        self.qpos: Doubles = self._state["qpos"]
        self.qvel: Doubles = self._state["qvel"]
        self.controls: Doubles = self._state["ctrl"]
        self._nominal: dict[str, Doubles] = {}
        self._scaled: dict[str, Doubles] = {}
        self._skip = config.robot.frame_skip
        self.seconds = self._skip * self.model.opt.timestep  # of a step
        self._renderer: Any = None

    def scale(self, env_ids: NDArray[np.int64], exponents: Doubles, limit: float) -> None:
        """Scale body and ground of sub-environments, always from the values as loaded.

        Args:
            env_ids: ``[n]``.
            exponents: ``[n, 4]`` in ``[-1, 1]``, of ``FIELDS``.
            limit: factor of the exponents.
        """
        if not self._nominal:
            self._nominal = {name: getattr(self.model, name).copy() for name in FIELDS}
            self._scaled = {name: self.batch.expand(name) for name in FIELDS}
        for (name, base), exponent in zip(FIELDS.items(), exponents.T, strict=True):
            nominal = self._nominal[name]
            factor = (base ** (limit * exponent)).reshape(-1, *[1] * nominal.ndim)
            self._scaled[name][env_ids] = nominal * factor
        self.batch.set_const(env_ids)

    def begin(self, env_ids: NDArray[np.int64], qpos: Doubles, qvel: Doubles) -> None:
        """Put sub-environments into a state ``[n, nq]``, ``[n, nv]`` at time 0."""
        self.batch.reset(env_ids, stage=mujoco.mjtStage.mjSTAGE_NONE.value)
        self.qpos[env_ids] = qpos
        self.qvel[env_ids] = qvel
        self.batch.forward(env_ids)

    def step(self, controls: Doubles) -> None:
        """Step every sub-environment under ``controls [N, nu]``."""
        self.controls[:] = controls
        self.batch.step(nstep=self._skip)

    def state(self) -> dict[str, Doubles]:
        """The state needed to continue bit for bit."""
        return {name: np.array(values) for name, values in self._state.items()}

    def load(self, state: dict[str, NDArray[Any]]) -> None:
        """Restore what `state` returned."""
        for name, values in self._state.items():
            values[:] = state[name]

    def render(self, index: int) -> NDArray[np.uint8]:
        """Picture ``[240, 320, 3]``, from the model's own camera where it has one.

        Raises:
            ConfigError: there is no OpenGL; one line that says what to install.
        """
        if self._renderer is None:
            try:
                self._renderer = mujoco.Renderer(self.model, 240, 320)
            except Exception as error:  # MuJoCo and PyOpenGL raise anything where a part is missing
                raise ConfigError(opengl.missing()) from error
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                self._renderer.scene.flags[flag] = 0  # most of the time of a picture
        data = mujoco.MjData(self.model)
        data.qpos[:], data.qvel[:] = self.qpos[index], self.qvel[index]
        mujoco.mj_forward(self.model, data)
        self._renderer.update_scene(data, camera=0 if self.model.ncam else -1)
        picture: NDArray[np.uint8] = self._renderer.render().copy()
        return picture

    def close(self) -> None:
        """Free what pictures need."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
