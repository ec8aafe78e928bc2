"""Recorded trajectories of the original environments, through the API and the command line."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mg2l.envs.particle.hunting import Hunting, HuntingConfig
from mg2l.envs.particle.spread import Spread, SpreadConfig
from mg2l.envs.particle.world import ParticleEnv
from mg2l.envs.replay import main, replay

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(GOLDEN.glob("mpe_*.npz"))
ARRAYS = ["initial_obs", "obs", "reward", "agent_pos", "agent_vel"]


def load(path):
    with np.load(path) as file:
        return dict(file)


@pytest.fixture
def spread_file():
    return load(GOLDEN / "mpe_spread_2a3l.npz")


@pytest.fixture
def hunting_file():
    return load(GOLDEN / "mpe_hunting_3p2t.npz")


@pytest.fixture
def run(tmp_path, capsys):
    """Write arrays to a file with a name that says nothing, replay it."""

    def call(arrays, *options):
        path = tmp_path / "x.npz"
        np.savez(path, **arrays)
        status = main([str(path), *options])
        captured = capsys.readouterr()
        return status, captured.out.strip().splitlines(), captured.err.strip().splitlines()

    return call


def test_all_recordings_are_here():
    names = {path.name for path in FILES}
    assert {"mpe_hunting_3p2t.npz", "mpe_spread_2a3l.npz", "mpe_spread_3a4l.npz"} <= names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden(path):
    what, deviation = replay(path)
    assert "x 100 steps" in what
    assert list(deviation) == ARRAYS
    assert max(deviation.values()) < 1e-5
    assert max(deviation["agent_pos"], deviation["agent_vel"]) < 1e-12


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_command_line(path, tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "mg2l.envs.replay", str(path), "--tol", "1e-5"],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    last = result.stdout.strip().splitlines()[-1].split()
    assert last[:2] == ["max", "deviation:"]
    assert last[2::2] == ARRAYS
    assert all(0 <= float(value) < 1e-5 for value in last[3::2])


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("change", [2e-4, np.nan])
@pytest.mark.parametrize("family", ["spread_file", "hunting_file"])
def test_one_wrong_number_is_found(run, request, family, name, change):
    arrays = request.getfixturevalue(family)
    arrays[name] = arrays[name].copy()
    arrays[name].flat[-1] += change
    status, out, _ = run(arrays)
    assert status == 1
    assert name in out[-1]
    if np.isnan(change):
        assert f"{name} nan" in out[-1]


@pytest.mark.parametrize("name", ["action", "prey_action", "agent_vel0", "agent_pos0"])
def test_one_wrong_input_is_found(run, hunting_file, name):
    hunting_file[name].flat[0] += 0.01 if abs(hunting_file[name].flat[0]) < 0.98 else -0.01
    assert run(hunting_file)[0] == 1


def test_targets_decide_not_the_task_label(run, spread_file):
    spread_file["task"] = 7 - spread_file["task"]
    assert run(spread_file)[0] == 0
    spread_file["target"] = spread_file["target"][::-1]
    assert run(spread_file)[0] == 1


def test_tolerance(run, spread_file):
    spread_file["reward"] += 1e-3
    assert run(spread_file)[0] == 1
    assert run(spread_file, "--tol", "2e-3")[0] == 0


def test_first_steps_only(run, spread_file):
    spread_file["obs"][:, 40:] += 1
    assert run(spread_file)[0] == 1
    status, out, _ = run(spread_file, "--steps", "40")
    assert status == 0
    assert "x 40 steps" in out[0]
    assert run(spread_file, "--steps", "41")[0] == 1
    assert run(spread_file, "--steps", "1000")[0] == 1


def test_extra_arrays_are_ignored(run, spread_file):
    spread_file["note"] = np.array(["recorded", "elsewhere"])
    spread_file["junk"] = np.array([{"a": 1}], dtype=object)
    assert run(spread_file)[0] == 0
    del spread_file["prey_action"], spread_file["task"]  # neither says anything about spread
    assert run(spread_file)[0] == 0


def test_what_was_not_recorded_is_not_compared(run, spread_file):
    del spread_file["obs"], spread_file["agent_vel"]
    status, out, _ = run(spread_file)
    assert status == 0
    assert out[-1].split()[2::2] == ["initial_obs", "reward", "agent_pos"]
    for name in ("initial_obs", "reward", "agent_pos"):
        del spread_file[name]
    status, out, err = run(spread_file)
    assert (status, out, len(err)) == (2, [], 1)
    assert "nothing to compare" in err[0]


@pytest.mark.parametrize(
    ("family", "name"),
    [("hunting_file", "prey_action"), ("spread_file", "landmark_pos0")]
    + [
        (family, name)
        for family in ("hunting_file", "spread_file")
        for name in ("action", "target", "agent_pos0", "agent_vel0")
    ],
)
def test_missing_array(run, request, family, name):
    arrays = request.getfixturevalue(family)
    del arrays[name]
    status, out, err = run(arrays)
    assert (status, out, len(err)) == (2, [], 1)
    assert f"missing array '{name}'" in err[0]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("target", np.ones((2, 4)), "landmark_pos0"),
        ("target", np.ones(3), "target"),
        ("action", np.zeros((2, 100, 2, 3)), "action"),
        ("action", np.zeros((2, 0, 2, 2)), "nothing to replay"),
        ("action", np.full((2, 100, 2, 2), np.nan), "NaN"),
        ("action", np.full((2, 100, 2, 2), "up"), "numbers"),
        ("agent_vel0", np.zeros((3, 2, 2)), "agent_vel0"),
        ("agent_pos0", np.zeros((2, 1, 2)), "agent"),
        ("obs", np.zeros((2, 100, 2, 9)), "obs"),
        ("reward", np.array([{}], dtype=object), "reward"),
    ],
)
def test_shapes_that_do_not_fit(run, spread_file, name, value, message):
    spread_file[name] = value
    status, out, err = run(spread_file)
    assert (status, out, len(err)) == (2, [], 1)
    assert message in err[0]


def test_hunting_needs_a_target(run, hunting_file):
    hunting_file["target"][1] = False
    status, _, err = run(hunting_file)
    assert status == 2
    assert "target" in err[0]
    hunting_file["target"] = np.ones((2, 3))
    assert run(hunting_file)[0] == 2


def test_unknown_or_damaged_file(run, spread_file, tmp_path, capsys):
    status, _, err = run({"x": np.zeros(3)})
    assert (status, len(err)) == (2, 1)
    assert "no environment suite knows" in err[0]
    damaged = tmp_path / "damaged.npz"
    np.savez(damaged, **spread_file)
    damaged.write_bytes(damaged.read_bytes()[:-2000])
    text = tmp_path / "text.npz"
    text.write_text("hello")
    single = tmp_path / "single.npy"
    np.save(single, np.zeros(3))
    empty = tmp_path / "empty.npz"
    empty.write_bytes(b"")
    for path in (damaged, text, single, empty, tmp_path / "absent.npz", tmp_path):
        assert main([str(path)]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize("options", [["--steps", "0"], ["--tol", "-1"], ["--tol", "nan"]])
def test_bad_options(run, spread_file, options):
    with pytest.raises(SystemExit) as stop:
        run(spread_file, *options)
    assert stop.value.code == 2


def record(env, steps, seed):
    """A recording of our own: any number of bodies, with names as the golden files have."""
    rng = np.random.default_rng(seed)
    obs, _ = env.reset(seed=seed, task_ids=rng.integers(len(env.tasks), size=env.num_envs))
    world = env.world
    arrays = {
        "target": world.task > 0,
        "agent_pos0": world.position.copy(),
        "agent_vel0": world.velocity.copy(),
        "landmark_pos0": world.landmarks.copy(),
        "initial_obs": obs,
    }
    rows: dict[str, list[np.ndarray]] = {}
    for _ in range(steps):
        action = rng.uniform(-1, 1, world.agents.shape)
        prey = env.scenario.scripted_actions(world)
        obs, reward, *_ = env.step(action)
        step = {"action": action, "prey_action": prey, "obs": obs, "reward": reward}
        step |= {"agent_pos": world.position.copy(), "agent_vel": world.velocity.copy()}
        for name, value in step.items():
            rows.setdefault(name, []).append(value)
    return arrays | {name: np.stack(values, axis=1) for name, values in rows.items()}


@pytest.mark.parametrize(("agents", "landmarks"), [(1, 1), (6, 2), (4, 9), (12, 30)])
def test_any_number_of_agents_and_landmarks(run, agents, landmarks):
    config = SpreadConfig(60, n_agents=agents, n_landmarks=landmarks, n_tasks=1)
    arrays = record(ParticleEnv(Spread(config), 3, 60), 50, 5)
    status, out, err = run(arrays)
    assert (status, err) == (0, [])
    assert f"3 episodes x 50 steps, {agents} agents, {landmarks} landmarks" in out[0]


@pytest.mark.parametrize(("predators", "prey"), [(1, 1), (2, 6), (9, 3), (1, 14)])
def test_any_number_of_predators_and_prey(run, predators, prey):
    config = HuntingConfig(60, n_agents=predators, n_prey=prey)
    arrays = record(ParticleEnv(Hunting(config), 3, 60), 50, 5)
    status, out, err = run(arrays)
    assert (status, err) == (0, [])
    assert f"{predators} agents, {prey} prey" in out[0]
