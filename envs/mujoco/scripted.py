"""Hand-written teams of the robots' families, and what constant behaviour would earn."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mg2l.envs.gate import Bounds, ScriptedTeams

Doubles = NDArray[np.float64]

GAIT_FREQUENCY = 0.21
"""Frequency of the half cheetah's gait [1/step]."""

GAIT = np.array([
    [0.126, -0.063, 0.052, -0.808, -0.164, -0.285],
    [0.845, 1.357, 1.316, 0.212, 1.027, 0.909],
    [4.565, 7.847, -0.095, 6.025, 2.406, 2.217],
])  # fmt: skip
"""Its torques are ``offset + amplitude sin(2 pi frequency t + phase)``: rows, one column a motor of
the agents in order. Found by the cross-entropy method; runs at about 3 m/s."""


def motors() -> ScriptedTeams:
    """A gait for the motors as they are, or as if none were reversed."""

    def gait(env: Any) -> Doubles:
        offset, amplitude, phase = GAIT
        turn = 2 * np.pi * GAIT_FREQUENCY * env.clock[:, None]
        torques: Doubles = np.clip(offset + amplitude * np.sin(turn + phase), -1, 1)
        return torques

    def shaped(env: Any, flat: Doubles) -> Doubles:
        actions: Doubles = np.clip(flat, -1, 1).reshape(env.num_envs, env.num_agents, -1)
        return actions

    return ScriptedTeams(
        informed=lambda env: shaped(env, gait(env) / env.tasks.features[env.task_ids]),
        blind={
            "no motor reversed": lambda env: shaped(env, gait(env)),
            "stand still": lambda env: shaped(env, np.zeros((env.num_envs, 6))),
        },
    )


def speeds() -> Bounds:
    """Run at the task's speed, or always at the same one."""
    fixed = {
        f"always {speed:.2f} m/s": lambda task, speed=speed: np.full((len(task), 1), speed)
        for speed in np.linspace(-3, 3, 25)
    }
    return Bounds(informed=lambda task: task, blind=fixed)


def directions() -> Bounds:
    """Run at 1 m/s in the task's direction, or always in the same one, or not at all."""

    def along(task: Doubles) -> Doubles:
        unit: Doubles = task / np.linalg.norm(task, axis=1, keepdims=True)
        return unit

    fixed = {
        f"always {angle} degrees": lambda task, angle=angle: np.tile(
            [np.cos(np.radians(angle)), np.sin(np.radians(angle))], (len(task), 1)
        )
        for angle in range(0, 360, 30)
    }
    still = {"stand still": lambda task: np.zeros((len(task), 2))}
    return Bounds(informed=along, blind={**fixed, **still})
