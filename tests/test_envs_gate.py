"""Families in which inference is worth something: parts of the tasks, and the gate."""

import json
import re
from typing import Any

import numpy as np
import pytest

from mg2l.config.files import load_config
from mg2l.config.sections import Config
from mg2l.core.schema import ConfigError
from mg2l.envs import TaskSet, benchmark, gate, registry
from mg2l.envs.continuous import one_positive
from mg2l.envs.magent.config import GatherConfig
from mg2l.envs.mujoco.config import AntDirConfig, CheetahMotorConfig, CheetahVelConfig
from mg2l.envs.particle.bounty import BountyConfig
from mg2l.envs.particle.goals import GoalsConfig
from mg2l.envs.particle.spread import SpreadConfig

SEPARATING = [
    *("mpe-goals", "mpe-goals-joint", "mpe-weights", "mpe-hunting-4", "mpe-spread-8"),
    *("mujoco-cheetah-vel-100", "mujoco-cheetah-motor", "mujoco-ant-dir-64"),
    *("rware-station", "lbf-types", "magent-gather-16"),
]
EPISODES = {"mujoco": 2, "rware": 1, "lbf": 1, "magent": 1}
"""Episodes of each task, where a suite's scripts or simulators are slow."""


@pytest.mark.parametrize("name", SEPARATING)
def test_knowing_the_task_is_worth_something_on_held_out_tasks(name):
    episodes = EPISODES.get(name.partition("-")[0], 8)
    found = gate.measure(name, load_config(env=name).env, episodes=episodes)
    assert found.informed["test"] > found.blind["test"] > found.random["test"] - 5
    assert found.passed
    assert found.informed["ood"] > found.blind["ood"]


def test_a_gate_that_a_compromise_passes_is_reported():
    """The paper's own spread: a team that covers all landmarks does nearly as well."""
    found = gate.measure("mpe-spread", load_config(env="mpe-spread").env, episodes=8)
    assert not found.passed


def test_a_gate_that_one_speed_passes_is_reported():
    """Between standing still and 3 m/s, half of the way is always 1.5 m/s away at most."""
    found = gate.measure("speeds", CheetahVelConfig(), episodes=1)
    assert found.informed["test"] == 0.0
    assert not found.passed


def test_scripted_goals_are_reached():
    """Informed: what is left is the way there, about a second and a half."""
    found = gate.measure("goals", GoalsConfig(), episodes=2)
    assert -6 < found.informed["test"] < -2
    again = gate.measure("goals", GoalsConfig(), episodes=2)
    assert found == again


def test_all_tasks_but_training_ones_are_played(monkeypatch):
    copies, make = [], registry.make

    def record(config, count, seed):
        copies.append(count)
        return make(config, count, seed)

    monkeypatch.setattr(registry, "make", record)
    gate.measure("goals", GoalsConfig(n_tasks=30, n_test_tasks=26, n_ood_tasks=3), episodes=2)
    assert max(copies) == 2 * (gate.TASKS + 26 + 3)


def test_families_without_scripted_teams_say_so():
    with pytest.raises(
        ConfigError, match=r"no scripted teams; these have: lbf-types, magent-gather, mpe"
    ):
        gate.measure("rware-layout", registry.config_class("rware-layout")())


def test_the_command_fails_where_a_family_does_not_separate(capsys):
    assert benchmark.main(["--gate", "mpe-goals", "mpe-spread"]) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 5
    assert re.fullmatch(r"mpe-spread: separation 0\.\d\d on test tasks, expected .* 0\.5\n", err)


def test_command(capsys):
    assert benchmark.main(["--gate", "--json", "mpe-goals"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["env"] == "mpe-goals"
    assert set(found["separation"]) == {"train", "test", "ood"}
    assert benchmark.main(["--gate", "mpe-goals"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["train", "test", "ood"]
    with pytest.raises(SystemExit):
        benchmark.main(["--gate", "magent-battle"])
    assert "no scripted teams" in capsys.readouterr().err


# Parts of the tasks.


def tasks(n_train, n_test):
    features = np.arange(6, dtype=np.float32)[:, None]
    return TaskSet([{}] * 6, features, [f"task {i}" for i in range(6)], n_train, n_test)


@pytest.mark.parametrize(
    ("n_train", "n_test", "parts"),
    [
        (2, None, {"train": [0, 1], "test": [2, 3, 4, 5]}),
        (2, 3, {"train": [0, 1], "test": [2, 3, 4], "ood": [5]}),
        (2, 0, {"train": [0, 1], "ood": [2, 3, 4, 5]}),
        (6, None, {"train": [0, 1, 2, 3, 4, 5]}),
    ],
)
def test_parts(n_train, n_test, parts):
    found = tasks(n_train, n_test).parts
    assert {name: ids.tolist() for name, ids in found.items()} == parts


@pytest.mark.parametrize("n_test", [-1, 5])
def test_parts_that_cannot_be(n_test):
    with pytest.raises(ValueError, match=rf"n_test must be in \[0, 4\], got {n_test}"):
        tasks(2, n_test)


def test_sets_of_targets_of_other_sizes_lie_beyond():
    config = SpreadConfig(n_landmarks=5, n_tasks=6)
    found = registry.make(config, 1).tasks
    sizes = {part: {int(found.features[i].sum()) for i in ids} for part, ids in found.parts.items()}
    assert sizes == {"train": {2}, "test": {2}, "ood": {1, 3, 4, 5}}
    # Where all pairs are trained on there is nothing else to test on.
    assert list(registry.make(SpreadConfig(), 1).tasks.parts) == ["train", "test"]


@pytest.mark.parametrize("name", ["mpe-goals", "mpe-weights", "mpe-bounty"])
def test_a_seed_makes_continuous_tasks(name):
    section: Any = registry.config_class(name)
    found, same, other = (
        registry.make(section(task_seed=seed), 1).tasks.features for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(found, same)
    assert not np.array_equal(found[:40], other[:40])
    few = registry.make(section(n_tasks=3, n_test_tasks=2, n_ood_tasks=0), 1).tasks
    assert {part: len(ids) for part, ids in few.parts.items()} == {"train": 3, "test": 2}
    many = registry.make(section(n_tasks=60, task_seed=3), 1).tasks
    np.testing.assert_array_equal(many.features[:40], found[:40])
    np.testing.assert_array_equal(many.features[60:], found[40:])  # test and ood


def test_goals_beyond_lie_in_the_sector_that_nobody_trains_on():
    found = registry.make(GoalsConfig(), 1).tasks
    angles = {
        part: np.arctan2(*found.features[ids].reshape(-1, 2).T[::-1]) % (2 * np.pi)
        for part, ids in found.parts.items()
    }
    assert angles["train"].max() < 1.5 * np.pi
    assert angles["test"].max() < 1.5 * np.pi
    assert angles["ood"].min() > 1.5 * np.pi


def test_speeds_beyond_are_faster_on_both_sides():
    config = CheetahVelConfig(
        n_tasks=9, n_test_tasks=4, n_ood_tasks=6, min_speed=-1.5, max_speed=1.5
    )
    found = registry.make(config, 1).tasks
    speeds = {part: found.features[ids, 0] for part, ids in found.parts.items()}
    assert np.abs(speeds["train"]).max() < 1.5
    assert np.abs(speeds["test"]).max() < 1.5
    assert ((np.abs(speeds["ood"]) > 1.5) & (np.abs(speeds["ood"]) < 2.5)).all()
    assert {-1.0, 1.0} == set(np.sign(speeds["ood"]))
    # Those of the family as it was are what they were.
    before = np.random.default_rng(0).uniform(0, 3.0, (40, 1)).astype(np.float32)
    np.testing.assert_array_equal(registry.make(CheetahVelConfig(), 1).tasks.features, before)


def test_directions_at_random_are_of_the_whole_circle():
    config = AntDirConfig(directions="random", n_tasks=16, n_test_tasks=4, n_ood_tasks=4)
    found = registry.make(config, 1).tasks
    angles = np.arctan2(*found.features[:16].T[::-1]) % (2 * np.pi)
    assert sorted((angles // (np.pi / 8)).astype(int)) == list(range(16))
    pay = np.linalg.norm(found.features, axis=1)
    np.testing.assert_allclose(pay[:20], 1, rtol=1e-6)
    np.testing.assert_allclose(pay[20:], [0.5, 2, 0.5, 2], rtol=1e-6)


def test_reversed_motors_turn_the_other_way():
    """What one task does with actions is what the one without reversed motors does with others."""
    env: Any = registry.make(CheetahMotorConfig(n_tasks=64, n_test_tasks=0, n_ood_tasks=3), 2)
    signs = env.tasks.features
    assert len({row.tobytes() for row in signs[:64]}) == 64
    assert set(np.abs(signs[:64]).ravel()) == {1.0}
    assert ((np.abs(signs[64:]) >= 0.5) & (np.abs(signs[64:]) <= 0.9)).all()
    plain = int(np.flatnonzero((signs[:64] == 1).all(1))[0])
    rng = np.random.default_rng(0)
    for other in (3, 17, 65):
        env.reset(seed=[5, 5], task_ids=[plain, other])
        for _ in range(20):
            torque = rng.uniform(-0.5, 0.5, 6)
            given = torque / signs[other]
            obs, reward, *_ = env.step(np.stack([torque, given]).reshape(2, 2, 3))
        np.testing.assert_allclose(obs[0], obs[1], rtol=1e-3, atol=1e-4)
        moved = reward[:, 0] + 0.1 * np.square([torque, given]).sum(1)
        np.testing.assert_allclose(moved[0], moved[1], rtol=1e-3, atol=1e-4)


def test_pay_of_food():
    """One bite eats a piece, and is paid what the task says of its kind."""
    config = GatherConfig(
        pay="random", bites=1, attack_penalty=0, n_agents=2, n_tasks=3, n_test_tasks=2,
        n_ood_tasks=2, map_size=12, food_per_kind=10, n_foods=2,
    )  # fmt: skip
    env: Any = registry.make(config, 5)
    parts = {part: env.tasks.features[ids] for part, ids in env.tasks.parts.items()}
    assert {part: len(pays) for part, pays in parts.items()} == {"train": 3, "test": 2, "ood": 2}
    assert ((parts["train"] > -2) & (parts["train"] < 5)).all()
    assert ((parts["ood"] < -2) | (parts["ood"] > 5)).all()
    task = np.array([0, 1, 2, 3, 5])
    env.reset(seed=0, task_ids=task)
    teams = registry.scripted(config)
    kinds = np.repeat(np.arange(2), 10)
    for _ in range(20):
        before = env.living[:, 2:].copy()
        reward = env.step(teams.blind["eat everything"](env))[1]
        eaten = before & ~env.living[:, 2:]
        paid = (eaten * env.tasks.features[task][:, kinds]).sum(1)
        np.testing.assert_allclose(reward.sum(1), paid - 0.02, atol=1e-4)
    with pytest.raises(ValueError, match="n_tasks tasks, which must be at least 1"):
        registry.make(GatherConfig(pay="random"), 1)
    with pytest.raises(ValueError, match=r"min_pay=6.0 must be at most max_pay=5.0"):
        GatherConfig(min_pay=6.0)


def test_one_positive():
    assert one_positive(7, 3).tolist() == [
        [1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1], [-1, 1, 1], [1, -1, 1], [1, 1, 1],
    ]  # fmt: skip


# What agents are paid and see.


def place(env, agents, others=()):
    """Put bodies of all sub-environments at rest."""
    shape = env.world.position.shape
    position = np.broadcast_to(np.array([*agents, *others], float), shape)
    env.reset()
    env.set_state(position, np.zeros(shape), env.world.landmarks, env.world.task)


@pytest.mark.parametrize("pay", ["own", "joint"])
def test_pay_of_goals(pay):
    env: Any = registry.make(GoalsConfig(pay=pay), 3)
    place(env, [(0.5, 0.0), (0.0, -0.5)])
    goals = env.world.task.reshape(3, 2, 2)
    reward = env.step(np.zeros((3, 2, 2)))[1]
    own = -np.linalg.norm(env.world.agents - goals, axis=-1)
    expected = own if pay == "own" else own.mean(1, keepdims=True).repeat(2, 1)
    np.testing.assert_allclose(reward, expected, rtol=1e-6)
    assert env.observation_spaces[0].shape == ((6,) if pay == "own" else (4,))


def test_pay_of_prey():
    """A predator earns a prey's pay by how close it is, and the team shares the mean."""
    env: Any = registry.make(BountyConfig(n_agents=3, n_prey=2), 2)
    place(env, [(0.0, 0.0), (0.9, 0.9), (0.0, 0.1)], [(0.0, 0.05), (0.9, 0.8)])
    task = env.world.task
    reward = env.step(np.zeros((2, 3, 2)))[1]
    ways = env.world.agents[:, :, None] - env.world.scripted[:, None]
    near = np.exp(-np.linalg.norm(ways, axis=-1) / 0.5)  # [N, A, P]
    expected = (near.mean(1) * task).sum(1)
    np.testing.assert_allclose(reward, expected[:, None].repeat(3, 1), rtol=1e-6)


def test_pictures_show_what_is_hidden():
    env = registry.make(GoalsConfig(), 2)
    env.reset(seed=[1, 1], task_ids=[0, 1])
    assert (env.render(0) != env.render(1)).any()


def test_all_presets_are_whole_configs():
    for name in SEPARATING:
        assert isinstance(load_config(env=name), Config)
