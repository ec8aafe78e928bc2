"""Foreign environments in worker processes: interfaces, crashes, saved state, plugins."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import adapted_envs
import numpy as np
import pytest
from adapted_envs import TEST, TRAIN
from gymnasium.spaces import Box, Discrete
from hostile_helpers import install_plugins
from method_helpers import TINY, overrides

import mg2l.train as train
from mg2l import cli
from mg2l.core.schema import ConfigError
from mg2l.envs import adapters, registry
from mg2l.envs.adapters import workers
from mg2l.envs.base import EnvError
from mg2l.envs.command import env_config
from mg2l.training.metrics import read_metrics

EXAMPLES = Path(__file__).parents[1] / "examples"


def build(make, num_envs=4, seed=0, **keys):
    config = adapters.AdapterConfig(**{"n_workers": 2, "max_ep_len": 50, **keys})
    tasks = adapters.task_set(TRAIN, TEST, config)
    return adapters.AdaptedEnv("adapted", make, tasks, config, num_envs, seed)


def test_walkers_are_padded_and_scaled():
    env = build(adapted_envs.make_walkers)
    assert [space.shape for space in env.observation_spaces] == [(2,), (3,)]
    assert env.action_spaces == (Box(-1, 1, (1,), np.float32),) * 2
    obs, _ = env.reset(seed=0)
    assert (obs[:, 0, 2] == 0).all()
    np.testing.assert_array_equal(obs[:, 0, 0], obs[:, 1, 1])
    # 1 is the upper bound: 2 for one agent, 4 for the other.
    after = env.step(np.ones((4, 2, 1)))[0]
    moved = (after - obs)[:, :, 0]
    np.testing.assert_allclose(moved[:, 0], 0.1, atol=0.05)
    np.testing.assert_allclose(moved[:, 1], 0.3, atol=0.05)
    env.close()


def test_the_environments_own_limit_truncates():
    env = build(adapted_envs.make_walkers, max_ep_len=99)
    env.reset(seed=0)
    for step in range(1, 51):
        obs, _, terminated, truncated, info = env.step(np.zeros((4, 2, 1)))
        assert not terminated.any()
        assert truncated.all() == truncated.any() == (step == 50)
    assert (info["final_obs"][:, 0, 1] == 50).all()
    assert (obs[:, 0, 1] == 0).all()
    env.close()


def test_agents_that_leave_and_masks():
    env = build(adapted_envs.make_mortals)
    assert env.action_spaces == (Discrete(3), Discrete(5))
    _, info = env.reset(seed=0)
    for step in range(1, 13):
        time = (step - 1) % 6
        mask = info["action_mask"]
        assert (mask[:, :, time % 3] == 0).all() or time >= 3
        assert not mask[:, 0, 3:].any() or time >= 3
        actions = np.array([[row.argmax() for row in rows] for rows in mask])
        obs, rewards, terminated, truncated, info = env.step(actions)
        time += 1
        assert (terminated[:, 0] == (time >= 3)).all()
        assert not terminated[:, 1].any()
        assert (truncated[:, 1] == (time == 6)).all()
        assert (rewards[:, 0] == (time <= 3)).all()
        assert (info["active"][:, 0] == (time < 3 or time == 6)).all()
        assert info["active"][:, 1].all()
        if 3 < time < 6:
            assert not obs[:, 0].any()
    env.close()


@pytest.mark.parametrize("make", [adapted_envs.make_old, adapted_envs.make_new])
def test_gym_interfaces(make):
    env = build(make)
    tasks = np.arange(4)
    first, _ = env.reset(seed=1, task_ids=tasks)
    assert first.shape == (4, 2, 4)
    np.testing.assert_array_equal(first, env.reset(seed=1)[0])
    for step in range(1, 5):
        _, rewards, terminated, truncated, _ = env.step(np.array([[0, 1]] * 4))
        old = make is adapted_envs.make_old
        np.testing.assert_array_equal(rewards, [[0, 1] if old else [2, 2]] * 4)
        by_time = np.array([old and TRAIN[0] != params for params in env.tasks.params])
        np.testing.assert_array_equal(truncated[:, 0], by_time & (step == 4))
        np.testing.assert_array_equal(terminated[:, 0], ~by_time & (step == 4))
    env.close()


def test_the_package_gym():
    env = build(adapted_envs.make_gym, n_workers=1)
    first, _ = env.reset(seed=3)
    assert len(np.unique(first)) == first.size
    results = [env.step(np.array([[0, 1]] * 4)) for _ in range(3)]
    np.testing.assert_array_equal(results[0][1], [[0, 1]] * 4)
    assert not results[1][3].any()
    assert results[2][3].all()
    np.testing.assert_array_equal(env.reset(seed=3)[0], first)
    env.close()


def test_agents_that_leave_without_a_word_or_never_come():
    env = build(adapted_envs.make_leavers, num_envs=1, n_workers=1)
    _, info = env.reset()
    assert info["active"].tolist() == [[True, True, False]]
    ended, active = [], []
    for _ in range(5):
        _, rewards, terminated, truncated, info = env.step(np.zeros((1, 3, 1)))
        assert not rewards[:, 2].any()
        assert not truncated.any()
        ended.append(terminated[0].tolist())
        active.append(info["active"][0].tolist())
    assert ended == [[0, 0, 0], [1, 0, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]]
    assert active == [[1, 1, 0], [0, 1, 0], [0, 1, 0], [1, 1, 0], [1, 1, 0]]
    env.close()


def test_gym_agents_that_end_one_after_the_other():
    env = build(adapted_envs.make_staggered, num_envs=1, n_workers=1)
    _, info = env.reset()
    assert info["action_mask"].tolist() == [[[False, True], [True, True]]]
    ended, paid = [], []
    for _ in range(5):
        _, rewards, terminated, _, info = env.step(np.ones((1, 2), int))
        ended.append(terminated[0].tolist())
        paid.append(rewards[0].tolist())
    assert ended == [[0, 0], [1, 0], [1, 0], [1, 1], [0, 0]]
    assert paid == [[1, 1], [1, 1], [0, 1], [0, 1], [1, 1]]
    env.close()


@pytest.mark.parametrize("make", [adapted_envs.make_walkers, adapted_envs.make_careless])
def test_sub_environments_do_not_depend_on_workers(make):
    """Nor does the randomness of those that draw from generators of the whole process."""
    one, three = (build(make, n_workers=n) for n in (1, 3))
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(one.reset(seed=3)[0], three.reset(seed=3)[0])
    for _ in range(60):
        actions = rng.uniform(-1, 1, (4, 2, 1))
        for a, b in zip(one.step(actions)[:4], three.step(actions)[:4], strict=True):
            np.testing.assert_array_equal(a, b)
    one.close()
    three.close()


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (adapted_envs.make_fragile, "ZeroDivisionError: the walker has tripped"),
        (adapted_envs.make_deadly, f"ended with status {-signal.SIGKILL}"),
    ],
)
def test_a_crash_is_said_and_the_run_continues(make, what, capfd):
    env = build(make)
    # Sub-environment 2 crashes, and takes sub-environment 3 with it.
    before, _ = env.reset(seed=0, task_ids=[0, 1, 2, 0])
    for step in range(1, 7):
        obs, rewards, terminated, truncated, info = env.step(np.zeros((4, 2, 1)))
        assert not terminated.any()
        crashed = step in (3, 6)
        assert (truncated == [[False] * 2] * 2 + [[crashed] * 2] * 2).all()
        if crashed:
            assert (rewards[2:] == 0).all()
            assert (rewards[:2] != 0).all()
            np.testing.assert_array_equal(info["final_obs"][2:], before[2:])
            assert (obs[2:, 0, 1] == 0).all()
            assert (obs[:2, 0, 1] == step).all()
        before = obs
    err = capfd.readouterr().err
    assert err.count("adapted, sub-environment 2, task 'goal=1': worker 1 crashed") == 2
    assert err.count(what) == 2
    env.close()


def test_a_worker_that_hangs_is_started_again(capfd):
    env = build(adapted_envs.make_sleeper, timeout=5)
    env.reset(
        seed=0, task_ids=[0, 1, 2, 0]
    )  # sub-environment 2 hangs, and takes sub-environment 3 with it
    victim, begin = env.workers.pids[1], time.monotonic()
    for step in range(1, 5):
        truncated = env.step(np.zeros((4, 2, 1)))[3]
        assert (truncated == [[False] * 2] * 2 + [[step == 3] * 2] * 2).all()
    assert 5 <= time.monotonic() - begin < 40
    with pytest.raises(ProcessLookupError):
        os.kill(victim, 0)
    err = capfd.readouterr().err
    assert "adapted, sub-environment 2, task 'goal=1': worker 1 crashed; it is restarted, " in err
    assert "\nit hung: no answer for 5 s (key timeout)" in err
    env.close()


def test_slow_sub_environments_do_not_add_up_to_a_hanging_worker():
    env = build(adapted_envs.make_slow, num_envs=10, n_workers=1)
    env.reset(seed=0)
    env.workers.timeout = 1.5
    assert not env.step(np.zeros((10, 2, 1)))[3].any()  # 2 s for all of them
    env.close()


def test_an_environment_that_cannot_be_made_in_time():
    with pytest.raises(EnvError, match="cannot be made\nit hung: no answer for 1 s"):
        build(adapted_envs.make_sleeping, timeout=1)


def test_closing_does_not_wait_for_a_worker_that_hangs(monkeypatch):
    monkeypatch.setattr(workers, "GRACE", 0.1)
    env = build(adapted_envs.make_sleeper, num_envs=1, n_workers=1)
    env.reset(task_ids=[2])
    for _ in range(2):
        env.step(np.zeros((1, 2, 1)))
    env.workers.pipe(0).send(("step",))
    begin = time.monotonic()
    env.close()
    assert time.monotonic() - begin < 10


def test_a_sub_environment_that_crashes_again_and_again_ends_the_run():
    env = build(adapted_envs.make_fragile, max_restarts=2)
    env.reset(seed=0, task_ids=[0, 1, 2, 0])
    for _ in range(8):
        env.step(np.zeros((4, 2, 1)))
    message = (
        r"sub-environment 2, task 'goal=1': worker 1 crashed, after 2 restarts of it "
        r"\(max_restarts\)\n[^$]*the walker has tripped"
    )
    with pytest.raises(EnvError, match=message):
        env.step(np.zeros((4, 2, 1)))
    env.close()


def test_a_worker_that_is_killed_between_steps():
    env = build(adapted_envs.make_walkers)
    env.reset(seed=0)
    env.step(np.zeros((4, 2, 1)))
    victim = env.workers.pids[0]
    os.kill(victim, signal.SIGKILL)
    truncated = env.step(np.zeros((4, 2, 1)))[3]
    assert truncated.tolist() == [[True] * 2] * 2 + [[False] * 2] * 2
    assert not env.step(np.zeros((4, 2, 1)))[3].any()
    assert victim not in env.workers.pids
    assert len(env.workers.pids) == 2
    env.close()


def test_a_crash_when_an_episode_begins_loses_no_other_episode():
    env, twin = build(adapted_envs.make_walkers), build(adapted_envs.make_walkers)
    for each in (env, twin):
        each.reset(seed=0)
        each._clock[1] = 30  # its episode ends before that of its neighbour
    env.max_ep_len = twin.max_ep_len = 40
    begin = env._begin

    def killed(episodes):
        os.kill(env.workers.pids[0], signal.SIGKILL)
        begin(episodes)

    env._begin = killed
    for _ in range(12):
        actions = np.full((4, 2, 1), 0.5)
        for a, b in zip(env.step(actions)[:4], twin.step(actions)[:4], strict=True):
            np.testing.assert_array_equal(a, b)
    env.close()
    twin.close()


def test_what_cannot_continue_is_an_error():
    env = build(adapted_envs.make_stillborn)
    with pytest.raises(EnvError, match=r"3 times without a step between\n[^$]*no place to stand"):
        env.reset()
    with pytest.raises(
        EnvError, match=r"adapted, task 'goal=0': the environment cannot be made: make"
    ):
        build(adapted_envs.make_nothing)
    with pytest.raises(ConfigError, match="n_agents must be 2 or 0 for adapted, got 3"):
        build(adapted_envs.make_walkers, n_agents=3)


def test_an_environment_without_pictures():
    env = build(adapted_envs.make_blind, num_envs=1, n_workers=1)
    env.reset()
    with pytest.raises(ConfigError, match=r"gave no picture: .* render_mode='rgb_array'"):
        env.render()
    env.close()


def test_workers_end_with_the_environment():
    env = build(adapted_envs.make_walkers)
    env.reset()
    (first, second) = env.workers.pids
    env.close()
    for pid in (first, second):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_workers_import_no_torch(tmp_path):
    code = (
        "import sys; sys.argv = ['x']\n"
        f"sys.path.insert(0, {str(Path(adapters.__file__).parent)!r})\n"
        "import worker; assert 'torch' not in sys.modules and 'mg2l' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_the_example_trains_on_an_unmodified_package(tmp_path, monkeypatch):
    example = EXAMPLES / "third_party.py"
    assert len(example.read_text().splitlines()) < 40
    values = {**TINY, "log_tensorboard": False, "main_save_path": tmp_path, "n_workers": 2}
    words = ["--algo=mg2l", f"--env={EXAMPLES / 'third_party.yaml'}"]
    assert train.run(*cli.parse([*words, *overrides(values)])) == 0
    (folder,) = tmp_path.glob("*/*/*")
    assert len(read_metrics(folder / "metrics.jsonl")) == 2
    for name in [name for name in sys.modules if name.startswith("mg2l_plugin_")]:
        del sys.modules[name]


def test_training_ends_with_the_traceback_and_one_line(tmp_path, monkeypatch, capsys):
    adapters.register("fragile", adapted_envs.make_fragile, [{"goal": 1}], [{"goal": 0}])
    values = {**TINY, "log_tensorboard": False, "main_save_path": tmp_path, "max_restarts": 0}
    env = tmp_path / "fragile.yaml"
    env.write_text("family: fragile\n")
    words = ["--algo=mg2l", f"--env={env}", *overrides(values)]
    monkeypatch.setattr("sys.argv", ["train", *words])
    with pytest.raises(SystemExit) as stopped:
        train.main()
    assert stopped.value.code == 1
    *details, line = capsys.readouterr().err.strip().splitlines()
    assert re.match(
        r"error: iteration 0: fragile, sub-environment \d, task 'goal=1': worker \d crashed, "
        r"after 0 restarts of it \(max_restarts\)$",
        line,
    )
    assert details[0].startswith("Traceback")
    assert details[-1] == "ZeroDivisionError: the walker has tripped"


PLUGIN = """
from mg2l.envs import adapters
import adapted_envs
def make(params):
    import sys
    assert "torch" not in sys.modules and "mg2l" not in sys.modules
    return adapted_envs.make_walkers(params)
adapters.register("plugged", make, adapted_envs.TRAIN, adapted_envs.TEST)
"""


def test_an_installed_package_adds_families(tmp_path, monkeypatch):
    install_plugins(monkeypatch, tmp_path, "envs", PLUGIN)
    assert "plugged" in registry.names()
    assert "broken" not in registry.names()
    env = registry.make("plugged", 2)
    assert env.num_agents == 2
    env.close()
    config, options = cli.parse(["--env=plugged", "max_ep_len=7"])
    assert (options.env, config.env.max_ep_len) == ("plugged", 7)
    assert env_config("plugged") == registry.config_class("plugged")()
    assert "--env=plugged" in cli.help_text(["--env=plugged"])
    with pytest.raises(ConfigError, match=r"unknown env 'pluged'.*did you mean 'plugged'"):
        cli.load_config(env="pluged")
    with pytest.raises(ConfigError, match=r"--env=broken: env 'broken' of the package plug "):
        cli.load_config(env="broken")
    with pytest.raises(ConfigError, match=r"'broken' of the package plug .* ModuleNotFoundError"):
        registry.config_class("broken")
    with pytest.raises(ConfigError, match="is not registered by idle_envs"):
        registry.config_class("idle")
