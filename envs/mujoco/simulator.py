"""Copies of a robot in MuJoCo, stepped together on threads, each with a model of its own."""

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
        ValueError: ``physics`` is v2 and nobody has recorded the robot's inertias.
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
    """``N`` copies of a model.

    Attributes:
        model: as it was loaded; copies differ from it in what `scale` has scaled.
        qpos, qvel: ``[N, nq]`` and ``[N, nv]``, live.
    """

    def __init__(self, config: RobotConfig, copies: int) -> None:
        self.model = load_model(config)
        threads = config.sim_threads or len(os.sched_getaffinity(0))
        self._batch = mujoco.batch.Batch(self.model, copies, min(threads, copies))
        self._state = {name: self._batch.bind(name) for name in _STATE}
        self.qpos: Doubles = self._state["qpos"]
        self.qvel: Doubles = self._state["qvel"]
        self._ctrl: Doubles = self._state["ctrl"]
        self._nominal: dict[str, Doubles] = {}
        self._scaled: dict[str, Doubles] = {}
        self._skip = config.robot.frame_skip
        self.seconds = self._skip * self.model.opt.timestep  # of a step
        self._renderer: Any = None

    def scale(self, copies: NDArray[np.int64], exponents: Doubles, limit: float) -> None:
        """Scale body and ground of copies: always what was loaded, never what is scaled already.

        Args:
            copies: ``[n]``.
            exponents: ``[n, 4]`` in ``[-1, 1]``, of ``FIELDS``.
            limit: what they are multiplied by.
        """
        if not self._nominal:
            self._nominal = {name: getattr(self.model, name).copy() for name in FIELDS}
            self._scaled = {name: self._batch.expand(name) for name in FIELDS}
        for (name, base), exponent in zip(FIELDS.items(), exponents.T, strict=True):
            nominal = self._nominal[name]
            factor = (base ** (limit * exponent)).reshape(-1, *[1] * nominal.ndim)
            self._scaled[name][copies] = nominal * factor
        self._batch.set_const(copies)

    def begin(self, copies: NDArray[np.int64], qpos: Doubles, qvel: Doubles) -> None:
        """Put copies into a state ``[n, nq]``, ``[n, nv]`` at time 0."""
        self._batch.reset(copies, stage=mujoco.mjtStage.mjSTAGE_NONE.value)
        self.qpos[copies] = qpos
        self.qvel[copies] = qvel
        self._batch.forward(copies)

    def step(self, controls: Doubles) -> None:
        """Step every copy under ``controls [N, nu]``."""
        self._ctrl[:] = controls
        self._batch.step(nstep=self._skip)

    def state(self) -> dict[str, Doubles]:
        """What a continuation bit for bit needs."""
        return {name: np.array(values) for name, values in self._state.items()}

    def load(self, state: dict[str, NDArray[Any]]) -> None:
        """Take up what `state` gave."""
        for name, values in self._state.items():
            values[:] = state[name]

    def render(self, copy: int) -> NDArray[np.uint8]:
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
        data.qpos[:], data.qvel[:] = self.qpos[copy], self.qvel[copy]
        mujoco.mj_forward(self.model, data)
        self._renderer.update_scene(data, camera=0 if self.model.ncam else -1)
        picture: NDArray[np.uint8] = self._renderer.render().copy()
        return picture

    def close(self) -> None:
        """Free what pictures need."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
