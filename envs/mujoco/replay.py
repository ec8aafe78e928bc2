"""Replays recorded trajectories of robots (see ``mg2l.envs.replay``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mg2l.envs import registry
from mg2l.envs.mujoco.config import RobotConfig
from mg2l.envs.recording import deviation, fetch

Array = NDArray[np.float64]

_FAMILIES = {
    9: ("mujoco-cheetah-dir", {2: "2x3", 6: "6x1"}),
    6: ("mujoco-hopper-param", {3: "3x1"}),
}


def replays(recording: Mapping[str, Array]) -> bool:
    """Whether the arrays are a recording of a robot."""
    return "initial_qpos" in recording or "initial_qvel" in recording


def replay(recording: Mapping[str, Array], steps: int | None) -> tuple[str, dict[str, float]]:
    """Step our robots, with the inertias of MuJoCo 2.1, under the recorded actions.

    ``E`` episodes of ``S`` steps, ``A`` agents. The half cheetah has 9 positions, the hopper 6.

    Args:
        recording: ``task [E]``, ``initial_qpos [E, nq]``, ``initial_qvel [E, nv]``,
            ``action [E, S, A, joints]``. Compared where recorded: ``initial_obs [E, A, obs]``,
            ``obs [E, S, A, obs]``, ``reward [E, S, A]``, ``done [E, S, A]``, ``qpos``, ``qvel``.
        steps: replay the first ``steps`` of each episode only; ``None`` is all.

    Returns:
        A description, and the largest absolute deviation of each array compared.

    Raises:
        ValueError: an array is missing or has a shape that does not fit the others.
        ConfigError: mujoco is not installed.
    """
    action = fetch(recording, "action", (None, None, None, None))
    episodes, recorded, agents, joints = action.shape
    qpos = fetch(recording, "initial_qpos", (episodes, None))
    if qpos.shape[1] not in _FAMILIES:
        raise ValueError(f"initial_qpos has {qpos.shape[1]} positions, known are {[*_FAMILIES]}")
    name, partitions = _FAMILIES[qpos.shape[1]]
    if agents not in partitions:
        raise ValueError(f"action has {agents} agents, {name} has {[*partitions]}")
    qvel = fetch(recording, "initial_qvel", (episodes, qpos.shape[1]))
    task = fetch(recording, "task", (episodes,)).astype(np.int64)
    count = recorded if steps is None else min(steps, recorded)
    if not (episodes and count):
        raise ValueError(f"nothing to replay: action {action.shape}")
    values: dict[str, Any] = {
        "max_ep_len": count + 1,
        "n_agents": agents,
        "agent_conf": partitions[agents],
        "physics": "v2",
    }
    if "param" in name:
        values["log_scale_limit"] = 0.0
    config = registry.config_class(name)(**values)
    assert isinstance(config, RobotConfig)
    if {len(part) for part in config.parts} != {joints}:
        raise ValueError(f"action has {joints} joints per agent, {name} {len(config.parts[0])}")
    env = registry.make(config, episodes)
    from mg2l.envs.mujoco.env import RobotEnv

    assert isinstance(env, RobotEnv)
    width = env.observation_width
    shapes = {
        "initial_obs": (episodes, agents, width),
        "obs": (episodes, recorded, agents, width),
        "reward": (episodes, recorded, agents),
        "done": (episodes, recorded, agents),
        "qpos": (episodes, recorded, qpos.shape[1]),
        "qvel": (episodes, recorded, qpos.shape[1]),
    }
    expected = {n: fetch(recording, n, shape) for n, shape in shapes.items() if n in recording}
    if not expected:
        raise ValueError(f"nothing to compare with; it needs one of {sorted(shapes)}")
    first = env.set_state(qpos, qvel, task)
    found = {n: 0.0 for n in shapes if n in expected}
    if "initial_obs" in expected:
        found["initial_obs"] = deviation(first, expected["initial_obs"])
    for t in range(count):
        obs, rewards, terminated = env.advance(action[:, t])
        reached: dict[str, NDArray[np.floating]] = {
            "obs": obs,
            "reward": rewards,
            "done": terminated.astype(np.float64),
            "qpos": env.simulator.qpos,
            "qvel": env.simulator.qvel,
        }
        for n, ours in reached.items():
            if n in expected:
                found[n] = float(np.maximum(found[n], deviation(ours, expected[n][:, t])))
    what = f"{name} ({partitions[agents]}, physics v2): {episodes} episodes x {count} steps"
    return what, found
