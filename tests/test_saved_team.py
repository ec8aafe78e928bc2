"""Teams written alone, to pass on."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from method_helpers import TINY

import mg2l
from mg2l import evaluate
from mg2l.core.files import WriteError
from mg2l.core.schema import ConfigError
from mg2l.training.checkpoint import CheckpointError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    sizes: dict[str, Any] = {key: value for key, value in TINY.items() if key != "save_model"}
    return mg2l.train(algo="mg2l-regression", **sizes, main_save_path=str(path))


@pytest.fixture(scope="module")
def saved(run, tmp_path_factory):
    return mg2l.load(run).save(tmp_path_factory.mktemp("out") / "teams" / "mine")


def acts(team):
    team.reset(3)
    rng = np.random.default_rng(0)
    width = team.observation_sizes[0]
    actions = []
    for _ in range(4):
        actions.append(team.act(rng.normal(size=(3, 2, width)), deterministic=True))
        team.observe(rng.random((3, 2)), rng.normal(size=(3, 2, width)))
    return np.stack(actions)


def test_it_acts_as_the_run_does(run, saved):
    np.testing.assert_array_equal(acts(mg2l.load(saved)), acts(mg2l.load(run)))
    assert mg2l.load(saved).iteration == mg2l.load(run).iteration == 2


def test_it_is_small_and_says_nothing_of_where_it_was_made(run, saved):
    files = {str(path.relative_to(saved)): path for path in saved.rglob("*") if path.is_file()}
    assert set(files) == {
        "config.yaml",
        "spaces.json",
        "checkpoints/00000002/state.json",
        "checkpoints/00000002/state.safetensors",
    }
    numbers = sum(p.numel() for p in mg2l.load(run).learner.actor.parameters())
    assert files["checkpoints/00000002/state.safetensors"].stat().st_size < 4 * 20 * numbers
    for path in files.values():
        assert str(run.folder.parents[2]).encode() not in path.read_bytes()


def test_it_is_saved_and_evaluated_again(saved, tmp_path, monkeypatch):
    again = mg2l.load(saved).save(tmp_path / "again")
    for path in saved.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (again / path.relative_to(saved)).read_bytes()
    monkeypatch.setattr(
        "sys.argv", ["evaluate", str(again), "--shots", "0", "1", "--episodes", "2"]
    )
    evaluate.main()
    assert json.loads((again / "evaluation.json").read_text())["iteration"] == 2


def test_it_cannot_be_resumed(saved):
    with pytest.raises((ConfigError, CheckpointError)):
        mg2l.train(resume=saved, n_iters=3)


def test_what_lies_there_stays(run, tmp_path):
    (tmp_path / "team").mkdir()
    with pytest.raises(ConfigError, match="team: exists; a team is written to a new folder"):
        mg2l.load(run).save(tmp_path / "team")
    assert not list((tmp_path / "team").iterdir())
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="link: exists"):
        mg2l.load(run).save(tmp_path / "link")


def test_a_team_that_cannot_be_written_leaves_nothing(run, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("mg2l.training.checkpoint.os.fsync", refuse)
    with pytest.raises(WriteError, match="cannot be written: No space left on device"):
        mg2l.load(run).save(tmp_path / "team")
    assert not list(tmp_path.iterdir())


def test_a_learner_that_goes_on_is_another(run, tmp_path):
    team = mg2l.load(run)
    team.save(tmp_path / "before")
    with torch.no_grad():
        for p in team.learner.actor.parameters():
            p.add_(0.1)
    assert not np.array_equal(acts(mg2l.load(tmp_path / "before")), acts(team))


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("mpe-goals", (-10.5, -8.0)),
        ("mpe-goals-joint", (-15.0, -9.5)),
        ("mpe-weights", (15.0, 15.0)),
        ("mpe-hunting-4", (6.0, 8.5)),
    ],
)
def test_released_teams_adapt_to_tasks_they_never_saw(name, least):
    """Of `results/teams`. Return without and after an episode; blind scripts get -30, -1 and -9."""
    team = mg2l.load(Path(__file__).parents[1] / "results" / "teams" / name)
    found = team.evaluate(shots=[0, 1], episodes=2)["results"]
    for shots in (0, 1):
        way = {"split": "test", "mode": "shots", "shots": shots, "sampling": "uniform"}
        (row,) = [x for x in found if way.items() <= x.items()]
        assert row["return"] > least[shots]
