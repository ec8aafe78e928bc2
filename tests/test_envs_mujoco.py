"""Robots: the original's trajectories, partitions and observations of others, tasks, training."""

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import yaml
from gymnasium_robotics import mamujoco_v1

from mg2l.config.files import CONFIGS, load_config
from mg2l.core.schema import ConfigError
from mg2l.envs import registry
from mg2l.envs.mujoco import config as keys
from mg2l.envs.mujoco import opengl
from mg2l.envs.mujoco.robots import ANT, CHEETAH, HOPPER, WALKER
from mg2l.envs.mujoco.simulator import Simulator, load_model
from mg2l.envs.replay import main, replay

FAMILIES = [name for name in registry.names() if name.startswith("mujoco-")]
GOLDEN = CONFIGS.resolve().parent / "tests" / "golden"


def build(name, num_envs=4, seed=0, **values):
    return registry.make(registry.config_class(name)(**values), num_envs, seed)


# The original.


@pytest.mark.parametrize(
    ("file", "steps"),
    [("cheetah_dir_2x3", 20), ("cheetah_dir_6x1", 20), ("hopper_3x1", 7)],
)
def test_replays_the_original(file, steps):
    """The hopper touches the ground in step 8; from there on MuJoCo's contacts have changed."""
    assert main([str(GOLDEN / f"{file}.npz"), "--steps", str(steps), "--tol", "1e-6"]) == 0


def test_native_inertias_differ_from_the_original(monkeypatch):
    _, exact = replay(GOLDEN / "cheetah_dir_2x3.npz", 20)
    monkeypatch.setattr("mg2l.envs.mujoco.simulator.V2", {"half_cheetah.xml": {}})
    _, native = replay(GOLDEN / "cheetah_dir_2x3.npz", 20)
    assert native["qpos"] > 1e4 * exact["qpos"]


@pytest.mark.parametrize("name", ["mujoco-walker-param", "mujoco-ant-dir"])
def test_v2_is_refused_where_nobody_has_recorded_it(name):
    with pytest.raises(ValueError, match=r"physics=v2 is known for .*half_cheetah.*hopper"):
        build(name, physics="v2")


# MaMuJoCo as gymnasium_robotics has it.


def theirs(scenario, conf, obsk):
    return mamujoco_v1.parallel_env(
        scenario=scenario, agent_conf=conf, agent_obsk=obsk, global_categories=()
    )


@pytest.mark.parametrize(
    ("name", "scenario", "conf", "obsk"),
    [
        ("mujoco-cheetah-dir", "HalfCheetah", "2x3", 0),
        ("mujoco-cheetah-dir", "HalfCheetah", "2x3", 1),
        ("mujoco-cheetah-dir", "HalfCheetah", "6x1", 2),
        ("mujoco-hopper-param", "Hopper", "3x1", 0),
        ("mujoco-hopper-param", "Hopper", "3x1", 1),
        ("mujoco-walker-param", "Walker2d", "2x3", 1),
    ],
)
def test_agents_see_what_they_see_elsewhere(name, scenario, conf, obsk, tmp_path, monkeypatch):
    """Each agent sees the numbers that gymnasium_robotics shows the agent with its joints."""
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its log there when others load what is deprecated
    other = theirs(scenario, conf, obsk)
    other.reset(seed=0)
    data = other.unwrapped.single_agent_env.unwrapped.data
    values = {"log_scale_limit": 0.0} if "param" in name else {}
    agents = len(other.possible_agents)
    env = build(name, 1, agent_conf=conf, agent_obsk=obsk, n_agents=agents, **values)
    obs = env.set_state(data.qpos[None].copy(), data.qvel[None].copy(), np.array([0]))[0]
    shown = other.unwrapped._get_obs()
    parts = [[node.label for node in part] for part in other.unwrapped.agent_action_partitions]
    for agent, part in enumerate(env.config.parts):
        (same,) = (a for a, labels in enumerate(parts) if set(labels) == set(part))
        numbers = np.sort(shown[other.possible_agents[same]])
        np.testing.assert_allclose(np.sort(obs[agent][: len(numbers)]), numbers, rtol=1e-6)
        assert not obs[agent][len(numbers) :].any()


def test_actions_move_the_joints_they_are_for():
    robots: list[tuple[str, Any, dict[str, Any]]] = [
        ("mujoco-cheetah-dir", CHEETAH, {"agent_conf": "6x1", "n_agents": 6}),
        ("mujoco-hopper-param", HOPPER, {}),
        ("mujoco-walker-param", WALKER, {}),
        ("mujoco-ant-dir", ANT, {}),
    ]
    for name, robot, values in robots:
        env = build(name, 1, **values)
        assert env.config.robot is robot
        model = env.simulator.model
        for agent, part in enumerate(env.config.parts):
            for i, joint in enumerate(part):
                env.reset(seed=0)
                actions = np.zeros((1, env.num_agents, len(part)))
                actions[0, agent, i] = 1.0
                env.step(actions)
                (driven,) = np.flatnonzero(env.simulator.controls[0])
                assert model.joint(int(model.actuator_trnid[driven, 0])).name == joint


# Tasks.


def test_scales_do_not_compound():
    """Tasks scale what was loaded, however often they are set."""
    config = keys.HopperParamConfig()
    env = build("mujoco-hopper-param", 3)
    model = load_model(config)
    exponents = env.tasks.features.astype(np.float64)
    for ids in ([0, 1, 2], [3, 3, 4], [0, 1, 2], [5, 1, 60]):
        env.reset(task_ids=ids)
        for env_id, task in enumerate(ids):
            own = env.simulator.batch.get_model(env_id)
            for (name, base), exponent in zip(keys.FIELDS.items(), exponents[task], strict=True):
                factor = base ** (config.log_scale_limit * exponent)
                np.testing.assert_allclose(getattr(own, name), factor * getattr(model, name))


def test_a_scaled_body_moves_as_one_loaded_with_those_numbers():
    env = build("mujoco-walker-param", 2)
    env.reset(seed=1, task_ids=[7, 60])
    import mujoco

    qpos, qvel = env.simulator.qpos[1].copy(), env.simulator.qvel[1].copy()
    model = load_model(env.config)
    for (name, base), exponent in zip(keys.FIELDS.items(), env.tasks.features[60], strict=True):
        getattr(model, name)[:] *= base ** (3.0 * float(exponent))
    mujoco.mj_setConst(model, mujoco.MjData(model))
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = qpos, qvel
    mujoco.mj_forward(model, data)
    rng = np.random.default_rng(0)
    for _ in range(5):
        actions = rng.uniform(-1, 1, (2, 2, 3))
        env.advance(actions)
        data.ctrl[env.motors] = actions[1].ravel()
        mujoco.mj_step(model, data, 4)
        np.testing.assert_allclose(env.simulator.qpos[1], data.qpos, rtol=0, atol=1e-12)


def test_rewards_of_the_families():
    effort, velocity = np.array([2.0, 2.0]), np.array([[3.0, 1.0], [-1.0, 2.0]])
    cases = {
        "mujoco-cheetah-dir": ([[1.0], [-1.0]], [2.8, 0.8]),
        "mujoco-cheetah-vel": ([[2.0], [0.5]], [-1.1, -1.6]),
        "mujoco-cheetah-motor": ([[1.0] * 6] * 2, [2.8, -1.2]),
        "mujoco-hopper-param": ([[0] * 4] * 2, [3.998, -0.002]),
        "mujoco-walker-param": ([[0] * 4] * 2, [3.998, -0.002]),
        "mujoco-ant-dir": ([[1, 0], [0, 1]], [3.0, 2.0]),
    }
    assert sorted(cases) == FAMILIES
    for name, (task, pay) in cases.items():
        env = build(name, 2)
        found = env.pay(velocity[:, : env.horizontal], effort, np.array(task, float))
        np.testing.assert_allclose(found, pay)


def test_velocity_is_paid():
    """Reward of a step from the distance it made."""
    env = build("mujoco-cheetah-dir", 2)
    env.reset(seed=0, task_ids=[0, 1])
    before = env.simulator.qpos[:, 0].copy()
    actions = np.random.default_rng(0).uniform(-1, 1, (2, 2, 3))
    _, rewards, *_ = env.step(actions)
    speed = (env.simulator.qpos[:, 0] - before) / 0.05
    effort = 0.1 * np.square(actions).sum((1, 2))
    np.testing.assert_allclose(rewards[:, 0], [-speed[0] - effort[0], speed[1] - effort[1]], 1e-5)
    np.testing.assert_array_equal(rewards[:, 0], rewards[:, 1])


@pytest.mark.parametrize("name", ["mujoco-hopper-param", "mujoco-walker-param", "mujoco-ant-dir"])
def test_fallen_robots_are_reset(name):
    env = build(name, 3)
    env.reset(seed=0)
    standing = env.simulator.qpos[0].copy()
    height = 2 if "ant" in name else 1
    env.simulator.qpos[1, height] = 3.0 if "ant" in name else 0.5
    zeros = np.zeros((3, env.num_agents, *env.action_spaces[0].shape))
    obs, rewards, terminated, truncated, info = env.step(zeros)
    assert terminated.all(1).tolist() == [False, True, False]
    assert not truncated.any()
    assert np.isfinite(rewards).all()
    assert abs(env.simulator.qpos[1, height] - standing[height]) < 0.3
    assert not np.array_equal(obs[1], info["final_obs"][1])


def test_tasks_and_their_refusals():
    assert build("mujoco-cheetah-dir").tasks.names[:2] == ["backwards", "forwards"]
    assert len(build("mujoco-hopper-param").tasks) == 70
    ant = build("mujoco-ant-dir").tasks
    np.testing.assert_allclose(np.linalg.norm(ant.features, axis=1), 1, rtol=1e-6)
    assert (build("mujoco-cheetah-vel", task_seed=1).tasks.features[:, 0] >= 0).all()
    refused: list[tuple[str, dict[str, Any], str]] = [
        ("mujoco-cheetah-dir", {"n_tasks": 3}, "n_tasks must be 2"),
        ("mujoco-cheetah-dir", {"agent_conf": "3x2"}, r"agent_conf must be one of .*2x3.*6x1"),
        ("mujoco-cheetah-dir", {"agent_conf": "6x1"}, "n_agents=2 conflicts with agent_conf"),
        ("mujoco-ant-dir", {"n_test_tasks": 9}, "conflicts with n_tasks=8"),
    ]
    for name, values, message in refused:
        with pytest.raises(ValueError, match=message):
            build(name, **values)


# Running.


def test_results_do_not_depend_on_threads():
    actions = np.random.default_rng(0).uniform(-1, 1, (10, 5, 3, 1))
    runs = []
    for threads in (1, 3):
        env = build("mujoco-hopper-param", 5, sim_threads=threads)
        env.reset(seed=3)
        runs.append([env.step(a)[:2] for a in actions])
    for first, second in zip(*runs, strict=True):
        np.testing.assert_array_equal(first[0], second[0])
        np.testing.assert_array_equal(first[1], second[1])


def test_pictures():
    env = build("mujoco-ant-dir", 2)
    env.reset(seed=0)
    first, second = env.render(0), env.render(1)
    assert first.shape == (240, 320, 3)
    assert first.std() > 10
    assert not np.array_equal(first, second)
    env.close()


def test_without_opengl_all_but_pictures_works(tmp_path):
    """As on a machine without its libraries, where importing MuJoCo with it would fail."""
    script = """
from mg2l.envs import registry
env = registry.make("mujoco-ant-dir", 2)
env.reset(seed=0)
env.step([[[0.0, 0.0]] * 4] * 2)
try:
    env.render(0)
except ValueError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "MUJOCO_GL": "disable"},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert "no OpenGL to draw with (MUJOCO_GL=disable)" in line
    assert line.endswith("apt-get install libegl1 libopengl0 libgl1-mesa-dri")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("here", "chosen"),
    [
        ({"libEGL.so.1", "libGL.so.1"}, "egl"),
        ({"libEGL.so.1", "libOpenGL.so.0", "libOSMesa.so.8"}, "egl"),
        ({"libEGL.so.1"}, "disable"),
        ({"libEGL.so.1", "libOSMesa.so.8"}, "osmesa"),
        (set(), "disable"),
    ],
)
def test_choice_of_opengl(here, chosen, monkeypatch):
    def load(name):
        if name not in here:
            raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", load)
    monkeypatch.setenv("MUJOCO_GL", "")
    opengl.choose()
    assert os.environ["MUJOCO_GL"] == chosen
    for name in ("egl", "osmesa", "glfw"):
        monkeypatch.setenv("MUJOCO_GL", name)
        if name in ("glfw", chosen):
            opengl.choose()
        elif not here:
            with pytest.raises(ConfigError, match=rf"\(MUJOCO_GL={name}\); install it with: apt"):
                opengl.choose()
        assert os.environ["MUJOCO_GL"] == name


def test_nothing_is_written_into_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Simulator(keys.CheetahDirConfig(), 2).step(np.zeros((2, 6)))
    assert not list(tmp_path.iterdir())


def test_without_the_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'package mujoco; .*pip install .*\[mujoco\]"$'):
        build("mujoco-cheetah-dir")


@pytest.mark.parametrize("name", FAMILIES)
def test_config_file(name):
    config: Any = load_config(env=name).env
    assert type(config) is registry.config_class(name)
    shipped = yaml.safe_load((CONFIGS / f"env/{name}.yaml").read_text())
    assert shipped["agent_conf"] == getattr(config, "agent_conf")  # noqa: B009
