"""Level-based foraging: equal to the package, types of food, pictures, training."""

import importlib.util
import math

import numpy as np
import pytest
from method_helpers import TINY

import mg2l.train as train
from mg2l import cli
from mg2l.core.schema import ConfigError
from mg2l.envs import registry
from mg2l.envs.lbf.config import ForagingConfig, type_tasks
from mg2l.envs.lbf.foraging import ForagingEnv
from mg2l.envs.lbf.package import PackageForagingEnv
from mg2l.envs.lbf.simulator import Foraging
from mg2l.training.metrics import read_metrics

LENGTH = 40


def wander(env, rng):
    """Actions that move about and load half of the time: foods are eaten, alone and together."""
    shape = (env.num_envs, env.num_agents)
    return rng.choice(6, shape, p=[0.05, 0.15, 0.15, 0.15, 0.15, 0.35])


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"sight": 2, "n_foods": 6, "max_level": 3},
        {"n_agents": 2, "cooperative": True, "penalty": 0.1, "field_size": 5, "n_foods": 1},
        {"n_agents": 6, "field_size": 5, "n_foods": 9, "n_types": 3, "sight": 1, "penalty": 0.5},
        {"n_agents": 1, "max_level": 1, "field_size": 12, "n_foods": 12},
    ],
)
def test_equals_the_package(values):
    """Episodes of the package's own sub-environments, with the same random numbers."""
    config = ForagingConfig(max_ep_len=LENGTH, n_tasks=3, n_test_tasks=1, n_ood_tasks=2, **values)
    ours, theirs = (kind(config, 6, 4) for kind in (ForagingEnv, PackageForagingEnv))
    ids = np.arange(6)
    np.testing.assert_array_equal(ours.reset(task_ids=ids)[0], theirs.reset(task_ids=ids)[0])
    rng, paid, ended = np.random.default_rng(1), 0.0, 0
    for step in range(3 * LENGTH):
        actions = wander(ours, rng)
        found, known = ours.step(actions), theirs.step(actions)
        for part, expected in zip(found[:4], known[:4], strict=True):
            np.testing.assert_array_equal(part, expected)
        np.testing.assert_array_equal(found[4]["final_obs"], known[4]["final_obs"])
        paid += float(np.abs(found[1]).sum())
        ended += int(found[2].all(1).sum())
        if step == 2 * LENGTH + 7:  # a checkpoint of one resumes in the other
            state, their_state = ours.state_dict(), theirs.state_dict()
            for name in ("players", "levels", "types", "spawned", "streams"):
                np.testing.assert_array_equal(state[name], their_state[name])
            theirs.load_state_dict(state)
            ours.load_state_dict(their_state)
    assert paid > 0
    assert ended or config.n_foods > 1


def place(env, players, foods):
    """Put players (row, column, level) and foods {(row, column): (level, type)} down."""
    env.reset()
    state = env.state_dict()
    state["levels"][:], state["types"][:] = 0, 0
    state["players"][:] = players
    for cell, (level, kind) in foods.items():
        state["levels"][0][cell], state["types"][0][cell] = level, kind
    state["spawned"][:] = sum(level for level, _ in foods.values())
    env.load_state_dict(state)


def test_pay_is_the_types_and_shared_by_level():
    env = ForagingEnv(ForagingConfig(n_agents=3, penalty=0.5), 1)
    pay = env.tasks.features[env.task_ids[0]]
    place(env, [(2, 1, 1), (1, 2, 2), (5, 5, 1)], {(2, 2): (3, 1), (5, 6): (2, 0), (4, 2): (1, 3)})
    rewards = env.step([[5, 5, 5]])[1][0]
    np.testing.assert_allclose(rewards, [pay[1], 2 * pay[1], -0.5], rtol=1e-6)
    levels = env.state()[1][0]
    assert levels[2, 2] == 0
    assert levels[5, 6] == 2  # too heavy for one


def test_an_episode_ends_with_the_last_food():
    env = ForagingEnv(ForagingConfig(n_agents=1), 1)
    place(env, [(3, 2, 2)], {(3, 3): (2, 0)})
    obs, _, terminated, truncated, info = env.step([[5]])
    assert terminated.all()
    assert not truncated.any()
    assert (info["final_obs"][0, 0, :12].reshape(4, 3) == (-1, -1, 0)).all()
    assert (obs[0, 0, :12].reshape(4, 3)[:, 2] > 0).any()  # of the next episode


def test_types_are_seen_where_foods_are():
    env = ForagingEnv(ForagingConfig(n_agents=1, sight=2), 1)
    place(env, [(0, 0, 1)], {(1, 1): (1, 2), (2, 4): (2, 3), (2, 0): (3, 0)})
    obs = env.step([[0]])[0][0, 0]
    np.testing.assert_array_equal(obs[:12].reshape(4, 3)[:2], [(1, 1, 1), (2, 0, 3)])
    np.testing.assert_array_equal(obs[15:].reshape(4, 4).argmax(1)[:2], [2, 0])
    assert obs[15:].sum() == 2


def test_tasks():
    tasks = type_tasks(ForagingConfig())
    assert {part: len(ids) for part, ids in tasks.parts.items()} == {
        "train": 40, "test": 16, "ood": 8,
    }  # fmt: skip
    assert (np.abs(tasks.features[:56]) < 1).all()
    assert (tasks.features[tasks.ood_ids] > 0).sum(1).tolist() == [1] * 4 + [2] * 4


EMPTY = np.zeros((5, 5), np.int64)
FULL = np.pad(np.ones((4, 4), np.int64), ((1, 0), (1, 0)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: f.begin(1, np.random.default_rng()), r"env must be in \[0, 1\), got 1"),
        (lambda f: f.step([[6, 0]]), r"actions must be in \[0, 6\), got 6"),
        (lambda f: f.step([[0]]), r"actions must have shape \(1, 2\), got \(1, 1\)"),
        (lambda f: f.restore(0, [[5, 0, 1]] * 2, EMPTY, EMPTY, 1), "players must stand"),
        (lambda f: f.restore(0, [[0, 0, 1]] * 2, EMPTY + 1, EMPTY, 1), "players must stand"),
        (lambda f: f.restore(0, [[0, 0, 1]] * 2, EMPTY, EMPTY + 4, 1), r"kinds must be in \[0, 2"),
        (lambda f: f.restore(0, [[0, 0, 1]] * 2, FULL, EMPTY, 1), "at most 3 foods"),
        (lambda f: f.restore(0, [[0, 0, 1]] * 2, EMPTY, EMPTY, 0), "spawned must be at least 1"),
        (lambda f: Foraging(1, 2, 1, 1, 1, 1, 1, False, 0.0), r"size must be in \[3, 1000\]"),
        (
            lambda f: Foraging(1, 3, 5, 1, 1, 1, 1, False, 0.0),
            "players must be at most half",
        ),
        (lambda f: Foraging(0, 3, 1, 1, 1, 1, 1, False, 0.0), "envs must be at least 1, got 0"),
    ],
)
def test_the_simulator_refuses_what_does_not_fit(call, message):
    foraging = Foraging(1, 5, 2, 3, 2, 2, 5, False, 0.0)
    with pytest.raises((ValueError, IndexError), match=message):
        call(foraging)


def test_what_is_no_generator_is_refused():
    with pytest.raises(TypeError, match=r"generator must be a numpy\.random\.Generator, got None"):
        Foraging(1, 5, 2, 3, 2, 2, 5, False, 0.0).begin(0, None)  # type: ignore[arg-type]


def test_refusals():
    with pytest.raises(ValueError, match="n_agents must be at most 6, a quarter of the cells"):
        ForagingConfig(n_agents=7, field_size=5)


def test_picture_shows_what_pays():
    env = ForagingEnv(ForagingConfig(), 2)
    with pytest.raises(RuntimeError, match="reset"):
        env.render()
    env.reset(seed=[1, 1], task_ids=[0, 1])
    assert env.render().shape == (208, 208, 3)
    assert not np.array_equal(env.render(0), env.render(1))


def test_without_the_package(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda n: None if n == "lbforaging" else find(n)
    )
    with pytest.raises(ConfigError, match=r'needs the package lbforaging; .*install .*\[lbf\]"$'):
        registry.make(ForagingConfig(simulator="package"), 1)
    registry.make("lbf-types", 1).close()


def test_trains(tmp_path):
    values = {**TINY, "main_save_path": tmp_path, "hidden_sizes_mlp": "[16]", "save_model": "true"}
    words = [f"{key}={value}" for key, value in values.items()]
    arguments = ["--algo=mg2l", "--env=lbf-types", *words]
    assert train.run(*cli.parse([word.replace("=False", "=false") for word in arguments])) == 0
    (folder,) = tmp_path.glob("*/*/*")
    rows = read_metrics(folder / "metrics.jsonl")
    assert len(rows) == 2
    assert all(math.isfinite(row["loss/policy"]) for row in rows)
