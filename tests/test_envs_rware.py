"""The warehouses: equal to the package, layouts, pictures, training."""

import dataclasses
import importlib.util
import math

import numpy as np
import pytest
import yaml
from method_helpers import TINY

import mg2l.train as train
from mg2l import cli
from mg2l.config.files import CONFIGS, load_config
from mg2l.core.schema import ConfigError
from mg2l.envs import registry
from mg2l.envs.rware.layouts import TEST, TRAIN, LayoutConfig, layout_tasks, parse
from mg2l.envs.rware.package import PackageLayoutEnv, PackageStationEnv
from mg2l.envs.rware.simulator import Warehouses
from mg2l.envs.rware.stations import StationConfig, station_tasks
from mg2l.envs.rware.warehouse import LayoutEnv, StationEnv
from mg2l.training.metrics import read_metrics

N, LENGTH = 6, 60
RNG = np.random.default_rng(0)


def build(num_envs=N, seed=0, **values) -> LayoutEnv:
    return LayoutEnv(LayoutConfig(**values), num_envs, seed)


def wander(env, rng):
    """Actions that move about and now and then load; some sub-environments always press forward."""
    actions = rng.choice(5, size=(env.num_envs, env.num_agents), p=[0.1, 0.4, 0.15, 0.15, 0.2])
    actions[: env.num_envs // 3] = np.where(actions[: env.num_envs // 3] == 4, 4, 1)
    return actions


ODD = ["xxxxx/.....\n.g.../xxxxx\n.xxxx/..g..", "x.g/xxx/x.x/xxx/xxx"]


@pytest.mark.parametrize(
    ("sensor_range", "reward_type", "n_agents", "difficulty", "layouts"),
    [
        (1, "individual", 6, "-easy", []),
        (2, "global", 6, "-easy", []),
        (2, "two_stage", 12, "", []),  # crowded: queues, rings, and contests for a cell
        (4, "two_stage", 8, "-hard", ODD),
    ],
)
def test_equals_the_package(sensor_range, reward_type, n_agents, difficulty, layouts):
    """Episodes of the package's own warehouses in all layouts, with the same random numbers."""
    config = LayoutConfig(
        sensor_range=sensor_range, reward_type=reward_type, n_agents=n_agents, layouts=layouts,
        difficulty=difficulty, max_ep_len=LENGTH,
    )  # fmt: skip
    count = len(layout_tasks(config))
    ours, theirs = (kind(config, count, 4) for kind in (LayoutEnv, PackageLayoutEnv))
    ids = np.arange(count)
    np.testing.assert_array_equal(ours.reset(task_ids=ids)[0], theirs.reset(task_ids=ids)[0])
    rng, paid = np.random.default_rng(sensor_range), 0.0
    for _ in range(4 * LENGTH):
        actions = wander(ours, rng)
        found, known = ours.step(actions), theirs.step(actions)
        for part, expected in zip(found[:4], known[:4], strict=True):
            np.testing.assert_array_equal(part, expected)
        np.testing.assert_array_equal(found[4]["final_obs"], known[4]["final_obs"])
        paid += float(found[1].sum())
    assert paid > 0
    state, their_state = ours.state_dict(), theirs.state_dict()
    for name in ("robots", "delivered", "shelves", "requests"):
        np.testing.assert_array_equal(state[name], their_state[name])
    # A checkpoint of one resumes in the other.
    theirs.load_state_dict(state)
    actions = wander(ours, rng)
    np.testing.assert_array_equal(ours.step(actions)[0], theirs.step(actions)[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: w.begin(1, 0, [0], [0], [1], RNG), r"env must be in \[0, 1\), got 1"),
        (lambda w: w.begin(0, 1, [0], [0], [1], RNG), r"layout must be in \[0, 1\), got 1"),
        (lambda w: w.begin(0, 0, [9], [0], [1], RNG), r"cells must be in \[0, 6\), got 9"),
        (lambda w: w.begin(0, 0, [0], [4], [1], RNG), r"directions must be in \[0, 4\), got 4"),
        (lambda w: w.begin(0, 0, [0], [0], [0], RNG), r"requests must be in \[1, 3\), got 0"),
        (
            lambda w: w.begin(0, 0, [0, 1], [0], [1], RNG),
            r"cells must have shape \(1,\), got \(2,\)",
        ),
        (lambda w: w.step([[5]]), r"actions must be in \[0, 5\), got 5"),
        (lambda w: w.step([[0], [0]]), r"must have shape \(1, 1\)"),
        (lambda w: w.restore(0, 0, [[2, 2, 0, 0, 0]], [[0, 0]] * 2, [1], RNG), "robots do not fit"),
        (lambda w: w.restore(0, 0, [[0, 0, 0, 3, 0]], [[0, 0]] * 2, [1], RNG), "robots"),
        (
            lambda w: w.restore(0, 0, [[0, 0, 0, 0, 0]], [[2, 2]] * 2, [1], RNG),
            "shelves do not fit",
        ),
    ],
)
def test_the_simulator_refuses_what_does_not_fit(call, message):
    layout = parse("xx. / ..g")
    warehouses = Warehouses([layout], [[1.0]], 1, 1, 1, 1, "global")
    with pytest.raises((ValueError, IndexError), match=message):
        call(warehouses)
    with pytest.raises(ValueError, match="pay must have one number per goal, 1, got 2"):
        Warehouses([layout], [[1.0, 2.0]], 1, 1, 1, 1, "global")
    with pytest.raises(ValueError, match="pay must have one row per layout"):
        Warehouses([layout], [], 1, 1, 1, 1, "global")
    with pytest.raises(ValueError, match=r"reward must be one of .*, got 'team'"):
        Warehouses([layout], [[1.0]], 1, 1, 1, 1, "team")
    with pytest.raises(ValueError, match="more than 2 shelves, all requests, and 1 cells, got 2"):
        Warehouses([layout], [[1.0]], 1, 1, 1, 2, "global")


def test_stations_equal_the_package():
    """Who lifts, puts down and delivers where is seen from the package's own warehouses."""
    config = StationConfig(n_agents=4, n_tasks=4, n_test_tasks=1, n_ood_tasks=1, max_ep_len=LENGTH)
    count = len(station_tasks(config))
    ours, theirs = (kind(config, count, 4) for kind in (StationEnv, PackageStationEnv))
    ids = np.arange(count)
    np.testing.assert_array_equal(ours.reset(task_ids=ids)[0], theirs.reset(task_ids=ids)[0])
    rng, paid = np.random.default_rng(0), []
    for _ in range(2 * LENGTH):
        actions = wander(ours, rng)
        found, known = ours.step(actions), theirs.step(actions)
        np.testing.assert_array_equal(found[0], known[0])
        np.testing.assert_allclose(found[1], known[1], atol=1e-6)
        paid.append(found[1])
    assert (np.stack(paid) > 0.25).any()  # a station that pays
    assert (np.stack(paid) < -0.25).any()  # and one that costs
    for ours_part, their_part in zip(ours.state(), theirs.state(), strict=True):
        np.testing.assert_array_equal(ours_part, their_part)


def test_tasks_of_stations():
    """One of four pays, each as often as any other; beyond, two do."""
    tasks = station_tasks(StationConfig())
    assert {name: len(ids) for name, ids in tasks.parts.items()} == {
        "train": 24, "test": 8, "ood": 8,
    }  # fmt: skip
    pays = tasks.features > 0
    assert pays[tasks.train_ids].sum(0).tolist() == [6] * 4
    assert pays[tasks.test_ids].sum(0).tolist() == [2] * 4
    assert set(pays[tasks.ood_ids].sum(1)) == {2}
    np.testing.assert_array_equal(tasks.features, station_tasks(StationConfig()).features)
    assert not np.array_equal(tasks.features, station_tasks(StationConfig(task_seed=1)).features)


def test_lifting_again_and_again_pays_nothing():
    env = StationEnv(StationConfig(n_agents=1), 1)
    env.reset()
    state = env.state_dict()
    shelf = state["requests"][0, 0]
    state["robots"][0, 0] = [*state["shelves"][0, shelf - 1], 0, 0]
    env.load_state_dict(state)
    paid = [float(env.step([[4]])[1][0, 0]) for _ in range(4)]
    assert paid == [0.25, -0.25, 0.25, -0.25]


def test_tasks():
    tasks = layout_tasks(LayoutConfig())
    assert tasks.n_train == 5
    assert len(tasks.test_ids) >= 3
    assert list(tasks.names) == [*TRAIN, *TEST]
    shelves = [params["layout"].count("x") for params in tasks.params]
    assert min(shelves) > 8  # enough for the easiest difficulty
    few = layout_tasks(LayoutConfig(n_tasks=3, task_seed=1))
    assert few.n_train == 3
    assert sorted(few.names) == sorted(tasks.names)
    assert list(few.names) != list(tasks.names)


def test_layouts_of_ones_own():
    config = LayoutConfig(n_agents=1, layouts=["xx.\n..g", TEST["middle"]], test_layouts=["Gxxx"])
    tasks = layout_tasks(config)
    assert [params["layout"] for params in tasks.params] == [
        "xx.\n..g", TEST["middle"].replace("/", "\n"), "gxxx",
    ]  # fmt: skip
    # A training layout is no test layout.
    ours = layout_tasks(LayoutConfig(layouts=[TEST["middle"]]))
    assert len(ours.test_ids) == len(TEST) - 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layouts": ["xx/g"]}, "rows of a layout must have one length"),
        ({"layouts": ["xx/g#"]}, "x, g and . only, got '#'"),
        ({"layouts": ["xx/.."]}, "must have a goal"),
        ({"layouts": ["g...xx"], "n_agents": 2}, "has 2 shelves"),
        ({"layouts": ["xxg"], "n_agents": 4, "difficulty": "-hard"}, "has 2 shelves"),
        ({"layouts": [TRAIN["upper half"]] * 2}, "must all differ"),
        ({"test_layouts": [TRAIN["upper half"]]}, "must all differ"),
        ({"n_tasks": 6}, "n_tasks must be at most 5, got 6"),
        ({"n_agents": 101, "difficulty": "-hard"}, "shelves"),
        ({"difficulty": "easy"}, "difficulty must be one of -easy, , -hard"),
    ],
)
def test_refusals(values, message):
    with pytest.raises(ValueError, match=message):
        LayoutConfig(**values)


def test_difficulty_is_how_many_shelves_are_requested():
    for difficulty, requests in (("-easy", 8), ("", 4), ("-hard", 2)):
        env = build(num_envs=1, difficulty=difficulty)
        env.reset()
        assert env.state_dict()["requests"].shape == (1, requests)
    assert LayoutConfig(n_agents=1, difficulty="-hard").requests == 1


def test_keys_of_the_original(tmp_path):
    """Its file, but for the three keys that named Python classes, loads as an env file."""
    layouts = [text.replace("/", "\n") for text in TRAIN.values()]
    original = {
        "difficulty": "", "sensor_range": 2, "max_ep_len": 100, "n_agents": 4, "n_tasks": 5,
        "ae_batch_size": 64, "ae_updates_per_iter": 20, "n_init_rollouts": 10,
        "ae_buffer_size": 2000, "ppo_epoch": 15, "n_rollout_threads": 32,
        "n_ae_rollout_threads": 4, "layouts": layouts,
    }  # fmt: skip
    path = tmp_path / "rware.yaml"
    path.write_text("family: rware-layout\n" + yaml.safe_dump(original))
    config = load_config(env=str(path)).env
    assert isinstance(config, LayoutConfig)
    ours = layout_tasks(load_config(env="rware-layout").env)  # type: ignore[arg-type]
    np.testing.assert_array_equal(layout_tasks(config).features, ours.features)
    shipped = yaml.safe_load((CONFIGS / "env/rware-layout.yaml").read_text())
    assert shipped.keys() - {"family"} <= original.keys()


def test_a_task_that_changes_gets_its_own_warehouse():
    config = LayoutConfig()
    for kind in (LayoutEnv, PackageLayoutEnv):
        env = kind(config, 2)
        env.reset(task_ids=[0, 1])
        env.reset(task_ids=[0, 2])
        shelves = (env.state_dict()["shelves"] > 0).any(-1).sum(1)
        counts = [(parse(TRAIN[name]) == "x").sum() for name in ("both columns", "left column")]
        assert shelves.tolist() == counts


def test_state_with_loaded_robots_continues_alike():
    env = build(seed=3, reward_type="two_stage", max_ep_len=1000)
    env.reset(task_ids=np.arange(N))
    rng = np.random.default_rng(0)
    for _ in range(150):
        env.step(wander(env, rng))
    state = env.state_dict()
    assert (state["robots"][..., 3] > 0).any()
    twin = build(seed=8, reward_type="two_stage", max_ep_len=1000)
    twin.load_state_dict(state)
    for _ in range(50):
        actions = wander(env, rng)
        for ours, theirs in zip(env.step(actions)[:4], twin.step(actions)[:4], strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_bad_actions():
    env = build()
    env.reset()
    with pytest.raises(ValueError, match=r"actions must be in \[0, 5\)"):
        env.step(np.full((N, 4), 5))
    with pytest.raises(ValueError, match="must be integers, got float64"):
        env.step(np.zeros((N, 4)))


def test_picture_shows_what_is_requested_and_carried():
    env = build(num_envs=1)
    with pytest.raises(RuntimeError, match="reset"):
        env.render()
    env.reset()
    picture = env.render()
    assert picture.shape == (260, 260, 3)
    state = env.state_dict()
    state["robots"][0, 0, 3] = 1
    env.load_state_dict(state)
    assert not np.array_equal(picture, env.render())


def test_without_the_package(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda n: None if n == "rware" else find(n))
    with pytest.raises(ConfigError, match=r'needs the package rware; .*pip install .*\[rware\]"$'):
        registry.make(LayoutConfig(simulator="package"), 1)
    registry.make("rware-layout", 1).close()


@pytest.mark.parametrize(
    ("algo", "name"),
    [
        ("mg2l", "rware-layout"), ("mappo", "rware-layout"), ("oracle", "rware-layout"),
        ("mg2l", "rware-station"),
    ],
)  # fmt: skip
def test_trains(algo, name, tmp_path):
    values = {**TINY, "main_save_path": tmp_path, "hidden_sizes_mlp": "[16]", "save_model": "true"}
    words = [f"{key}={value}" for key, value in values.items()]
    arguments = [f"--algo={algo}", f"--env={name}", *words]
    assert train.run(*cli.parse([word.replace("=False", "=false") for word in arguments])) == 0
    (folder,) = tmp_path.glob("*/*/*")
    rows = read_metrics(folder / "metrics.jsonl")
    assert len(rows) == 2
    assert all(math.isfinite(row["loss/policy"]) for row in rows)


def test_max_ep_len_truncates():
    env = build(max_ep_len=3)
    env.reset()
    flags = [env.step(np.zeros((N, 4), int))[2:4] for _ in range(6)]
    assert [bool(truncated.all()) for _, truncated in flags] == [False, False, True] * 2
    assert dataclasses.replace(env.config, max_ep_len=7).max_ep_len == 7
