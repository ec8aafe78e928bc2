"""Suites: files that say what is trained and measured, in several sizes."""

from pathlib import Path

import pytest
import yaml

from mg2l import cli, sweep
from mg2l.cli import suite
from mg2l.cli.grid import grid
from mg2l.cli.jobs import Job
from mg2l.config.files import available, load_config
from mg2l.core.schema import ConfigError

FOUND = {
    "runs": [
        {"envs": ["mpe-goals", "mpe-weights"], "algos": ["mg2l", "mappo"], "seeds": 2},
        {"envs": ["mpe-goals"], "algos": ["mappo", "rl2"], "seeds": 3},
    ],
    "overrides": {"eval_shots": [0, 1], "log_tensorboard": False, "gamma": 0.9},
    "special": {"mpe-weights": {"gamma": 0.8}, "mappo": {"n_iters": 12}},
    "groups": {"of particles": ["mpe-goals"]},
    "then": {"evaluate": {"shots": [0, 10], "episodes": 3}, "probe": {}},
    "sizes": {"tiny": {"seeds": 1, "budget": 0.25}, "full": {}},
}


def write(folder: Path, **changes: object) -> str:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**FOUND, **changes}))
    return str(path)


def jobs(folder: Path, name: str, *more: str) -> list[Job]:
    return grid(sweep.parse(["--suite", name, "--folder", str(folder / "s"), *more]))


def test_blocks_are_one_grid_seed_by_seed(tmp_path):
    found = jobs(tmp_path, write(tmp_path))
    first = [("mpe-goals", "mg2l"), ("mpe-goals", "mappo"), ("mpe-weights", "mg2l"),
             ("mpe-weights", "mappo"), ("mpe-goals", "rl2")]  # fmt: skip
    assert [(job.env, job.algo) for job in found if job.seed == 0] == first
    assert [(job.env, job.algo) for job in found if job.seed == 1] == first
    assert [(job.env, job.algo) for job in found if job.seed == 2] == [first[1], first[4]]
    assert [job.seed for job in found] == sorted(job.seed for job in found)


def test_overrides_of_suite_special_ones_and_the_command_line(tmp_path):
    def words(*more: str) -> dict[tuple[str, str], list[str]]:
        return {(job.env, job.algo): job.words for job in jobs(tmp_path, write(tmp_path), *more)}

    found = words()
    assert {"eval_shots=[0, 1]", "log_tensorboard=false"} <= {*found["mpe-goals", "mg2l"]}
    assert "gamma=0.9" in found["mpe-goals", "mg2l"]
    assert "gamma=0.8" in found["mpe-weights", "mg2l"]
    assert "n_iters=12" in found["mpe-goals", "mappo"]
    found = words("gamma=0.7", "--set", "mappo:n_env_steps=9000")
    assert "gamma=0.7" in found["mpe-weights", "mg2l"]
    assert not {"gamma=0.8", "gamma=0.9"} & {*found["mpe-weights", "mg2l"]}
    assert "n_iters=12" not in found["mpe-goals", "mappo"]
    assert "n_env_steps=9000" in found["mpe-goals", "mappo"]


def test_a_size_has_part_of_the_budget(tmp_path):
    whole = load_config(env="mpe-goals").n_env_steps
    assert whole > 0
    found = jobs(tmp_path, write(tmp_path), "--size", "tiny")
    assert {job.seed for job in found} == {0}
    budgets = {job.algo: (job.n_iters, job.n_env_steps) for job in found if job.env == "mpe-goals"}
    assert budgets["rl2"][1] == whole // 4
    assert budgets["mappo"] == (3, 0)
    given = jobs(tmp_path, write(tmp_path), "--size", "tiny", "n_iters=40")
    assert {(job.n_iters, job.n_env_steps) for job in given} == {(40, 0)}


def test_analyses_have_their_options(tmp_path, monkeypatch):
    found = {job.algo: job for job in jobs(tmp_path, write(tmp_path), "--envs", "mpe-goals")}
    assert found["mg2l"].analyses == ["evaluate", "probe"]
    assert found["mappo"].analyses == ["evaluate"]
    monkeypatch.setattr(Job, "stage", lambda job: "evaluate")
    monkeypatch.setattr(Job, "run", lambda job: tmp_path)
    words = found["mg2l"].command(1)
    assert words[words.index(str(tmp_path)) :] == [
        str(tmp_path), "--episodes", "3", "--shots", "0", "10",
    ]  # fmt: skip


def test_choosing_from_a_suite(tmp_path):
    name = write(tmp_path)
    found = jobs(tmp_path, name, "--envs", "mpe-goals", "--algos", "rl2", "mappo", "--seeds", "2")
    assert [(job.algo, job.seed) for job in found] == [("mappo", 2), ("rl2", 2)]
    for more, said in (
        (["--envs", "mpe-spread"], "--envs mpe-spread: the suite has mpe-goals, mpe-weights"),
        (["--algos", "focal"], "--algos focal: the suite has mg2l, mappo, rl2"),
        (["--seeds", "7"], "--seeds 7: the suite has 0, 1, 2"),
    ):
        with pytest.raises(ConfigError, match=said):
            jobs(tmp_path, name, *more)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sizes": {"small": {}}}, "--size=full: .* has the sizes small"),
        ({"sizes": {"full": {"budget": 0}}}, r"sizes.full.budget must be in \(0, 1\], got 0"),
        ({"sizes": {"full": {"seed": 1}}}, "unknown key sizes.full.seed; .* did you mean 'seeds'"),
        (
            {"groups": {"x": ["mpe-prey"]}},
            "unknown key groups.x: mpe-prey; choose one of mpe-goals",
        ),
        ({"run": []}, "unknown key run; choose one of runs"),
        ({"runs": [{"envs": ["mpe-goals"], "algos": "most", "seeds": 1}]}, "a list or all"),
        ({"runs": [{"envs": ["mpe-goals"], "algos": "all"}]}, r"runs\[0\].seeds is missing"),
        ({"then": {"report": {}}}, "unknown key then.report; choose one of evaluate, probe"),
        ({"overrides": {"gama": 1}}, "unknown key 'gama'; did you mean 'gamma'"),
        ({"overrides": {"seed": 1}}, "seed=1: a sweep is given this by --seeds"),
    ],
)
def test_mistakes_in_a_file(tmp_path, changes, said):
    with pytest.raises((ConfigError, cli.ConfigError), match=said):
        jobs(tmp_path, write(tmp_path, **changes))


def test_mistakes_on_the_command_line(tmp_path):
    for argv, said in (
        (["--suite", "adaptatoin"], "must be one of adaptation.* did you mean 'adaptation'"),
        (["--envs", "mpe-goals"], "--algos is missing, or --suite in its place"),
        (["--envs", "mpe-goals", "--algos", "mappo", "--size", "small"], "needs --suite"),
    ):
        with pytest.raises(ConfigError, match=said):
            grid(sweep.parse([*argv, "--folder", str(tmp_path)]))


@pytest.mark.ci
@pytest.mark.parametrize("name", suite.names())
def test_shipped_suites_are_whole(tmp_path, name):
    full = jobs(tmp_path, name)
    small = jobs(tmp_path, name, "--size", "small")
    assert {job.seed for job in small} == {0}
    assert {(job.env, job.algo) for job in small} == {(job.env, job.algo) for job in full}
    compared = {job.algo for job in full}
    assert compared == {*available("algo")} or {"mappo", "oracle"} <= compared  # ends of the score
    assert all(job.n_env_steps for job in full), "every family needs a budget in its file"
    for part, whole in zip(small, full, strict=False):
        assert part.n_env_steps < whole.n_env_steps
