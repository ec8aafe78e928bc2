"""Replays recorded trajectories of particle worlds (see ``mg2l.envs.replay``)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from mg2l.envs.particle.hunting import Hunting, HuntingConfig
from mg2l.envs.particle.spread import Spread, SpreadConfig
from mg2l.envs.particle.world import ParticleEnv, ParticleScenario
from mg2l.envs.recording import deviation as deviation_of
from mg2l.envs.recording import fetch

Array = NDArray[np.float64]

_MARKS = ("agent_pos0", "agent_vel0", "landmark_pos0", "target", "prey_action")


def replays(recording: Mapping[str, Array]) -> bool:
    """Whether the arrays are a recording of a particle world (two characteristic names or more)."""
    return sum(name in recording for name in _MARKS) >= 2


def replay(recording: Mapping[str, Array], steps: int | None) -> tuple[str, dict[str, float]]:
    """Step our worlds from the recorded state under the recorded actions.

    ``E`` episodes of ``S`` steps, ``A`` agents, ``B`` bodies, ``K`` landmarks or prey. Where there
    are more bodies than agents the file is of ``mpe-hunting``, else of ``mpe-spread``.

    Args:
        recording: ``action [E, S, A, 2]``, ``agent_pos0, agent_vel0 [E, B, 2]``,
            ``target [E, K]``; spread: ``landmark_pos0 [E, K, 2]``; hunting: ``prey_action
            [E, S, K, 2]``. Compared where recorded: ``initial_obs [E, A, obs]``,
            ``obs [E, S, A, obs]``, ``reward [E, S, A]``, ``agent_pos, agent_vel [E, S, B, 2]``.
        steps: replay the first ``steps`` of each episode only; ``None`` is all.

    Returns:
        A description, and the largest absolute deviation of each array compared (NaN where one
        of the two is NaN).

    Raises:
        ValueError: an array is missing or has a shape that does not fit the others.
    """
    action = fetch(recording, "action", (None, None, None, 2))
    episodes, recorded, agents, _ = action.shape
    position = fetch(recording, "agent_pos0", (episodes, None, 2))
    bodies = position.shape[1]
    velocity = fetch(recording, "agent_vel0", (episodes, bodies, 2))
    target = fetch(recording, "target", (episodes, None))
    objects = target.shape[1]
    count = recorded if steps is None else min(steps, recorded)
    if not (episodes and count and agents and objects):
        raise ValueError(f"nothing to replay: action {action.shape}, target {target.shape}")

    scenario: ParticleScenario
    if bodies > agents:
        family, objects_are = "mpe-hunting", "prey"
        if bodies - agents != objects:
            raise ValueError(
                f"target has {objects} prey, but agent_pos0 has {bodies} bodies for {agents} agents"
            )
        if not (target != 0).any(axis=1).all():
            raise ValueError("target marks no prey in an episode")
        scenario = Hunting(HuntingConfig(count + 1, n_agents=agents, n_prey=objects))
        landmarks = np.zeros((episodes, 0, 2))
        scripted = fetch(recording, "prey_action", (episodes, recorded, objects, 2))
    else:
        family, objects_are = "mpe-spread", "landmarks"
        if bodies != agents:
            raise ValueError(f"agent_pos0 has {bodies} bodies, but action has {agents} agents")
        config = SpreadConfig(count + 1, n_agents=agents, n_landmarks=objects, n_tasks=1)
        scenario = Spread(config)
        landmarks = fetch(recording, "landmark_pos0", (episodes, objects, 2))
        scripted = np.zeros((episodes, recorded, 0, 2))

    env = ParticleEnv(scenario, episodes, max_ep_len=count + 1)
    shapes = {
        "initial_obs": (episodes, agents, scenario.obs_dim),
        "obs": (episodes, recorded, agents, scenario.obs_dim),
        "reward": (episodes, recorded, agents),
        "agent_pos": (episodes, recorded, bodies, 2),
        "agent_vel": (episodes, recorded, bodies, 2),
    }
    expected = {
        name: fetch(recording, name, shape) for name, shape in shapes.items() if name in recording
    }
    if not expected:
        raise ValueError(f"nothing to compare with; it needs one of {sorted(shapes)}")

    first = env.set_state(position, velocity, landmarks, target != 0)
    deviation = {name: 0.0 for name in shapes if name in expected}
    if "initial_obs" in expected:
        deviation["initial_obs"] = deviation_of(first, expected["initial_obs"])
    for t in range(count):
        obs, rewards, *_ = env.advance(action[:, t], scripted[:, t])
        reached: dict[str, NDArray[np.floating]] = {
            "obs": obs,
            "reward": rewards,
            "agent_pos": env.world.position,
            "agent_vel": env.world.velocity,
        }
        for name, ours in reached.items():
            if name in expected:
                worst = deviation_of(ours, expected[name][:, t])
                deviation[name] = float(np.maximum(deviation[name], worst))  # NaN stays
    what = (
        f"{family}: {episodes} episodes x {count} steps, {agents} agents, {objects} {objects_are}"
    )
    return what, deviation
