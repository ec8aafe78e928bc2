"""Videos of a team: what is on them, that each agent's marker is its own, and nothing disturbed."""

import itertools
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from method_helpers import TINY, overrides, tiny_learner

import mg2l.train as train
from mg2l import cli, evaluate
from mg2l.envs import video
from mg2l.evaluation import measure
from mg2l.evaluation import video as team_video
from mg2l.evaluation.meta_test import MetaTest, first_steps
from mg2l.evaluation.picture import Drawing, Trajectory
from mg2l.training.learner import Learner

STEPS = 10
"""Steps of an episode of a tiny run."""


@pytest.fixture(scope="module")
def learner() -> Learner:
    return tiny_learner()


def trained(root: Path, algo: str) -> Path:
    pairs = {**TINY, "save_model": True, "main_save_path": root}
    arguments = [f"--algo={algo}", *overrides(pairs)]
    assert train.run(*cli.parse(arguments)) == 0
    (folder,) = root.glob(f"*/{algo}/*")
    return folder


def test_evaluate_writes_videos_and_the_same_results(tmp_path, monkeypatch, capsys):
    run = trained(tmp_path, "mg2l")
    found = []
    for words in ([], ["--video"]):
        arguments = ["evaluate", str(run), "--shots", "0", "--episodes", "2", *words]
        monkeypatch.setattr("sys.argv", arguments)
        evaluate.main()
        found.append((run / "evaluation.json").read_text())
    assert found[0] == found[1]
    videos = sorted((run / "videos").iterdir())
    assert [path.name for path in videos] == [
        "3-landmark-0.mp4", "4-landmark-1.mp4", "5-landmark-2.mp4", "6-landmark-0-1-2.mp4",
    ]  # fmt: skip
    assert str(videos[0]) in capsys.readouterr().out
    frames = imageio.mimread(videos[0], format="FFMPEG")
    assert len(frames) == 2 * STEPS
    assert len({frame.shape for frame in frames}) == 1


def test_results_are_written_before_the_videos(tmp_path, monkeypatch):
    run = trained(tmp_path, "mappo")

    def fail(*arguments):
        raise RuntimeError("no picture")

    monkeypatch.setattr(video, "write", fail)
    monkeypatch.setattr("sys.argv", ["evaluate", str(run), "--episodes", "1", "--video", "gif"])
    with pytest.raises(RuntimeError, match="no picture"):
        evaluate.main()
    assert (run / "evaluation.json").is_file()
    assert (run / "evaluation.csv").is_file()


def test_missing_packages_are_said_before_anything_is_evaluated(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(video, "PACKAGES", {".mp4": ("no_such_package",)})
    monkeypatch.setattr(measure, "evaluate", lambda *arguments: pytest.fail("evaluated"))
    monkeypatch.setattr("sys.argv", ["evaluate", str(tmp_path), "--video"])
    with pytest.raises(SystemExit):
        evaluate.main()
    assert "a .mp4 video needs the package no_such_package; install with: pip" in (
        capsys.readouterr().err
    )


def test_the_maps_change_while_the_team_explores_and_stand_still_while_it_acts(learner):
    renderer = team_video.VideoRenderer(learner, 0)
    held, frames = renderer.record(3), list(renderer.frames(3))
    assert held.phases == [("exploring", STEPS), ("acting", STEPS)]
    assert held.acts_on is not None
    assert held.infers is not None
    assert held.acts_on.shape == held.infers.shape == (2 * STEPS, 2, 8)
    # It explores under one draw from the prior, and acts on what it inferred last.
    assert (held.acts_on[:STEPS] == held.acts_on[0]).all()
    assert (held.infers[0] == held.acts_on[0]).all()
    assert len({z.tobytes() for z in held.infers[: STEPS + 1]}) == STEPS + 1
    assert (held.acts_on[STEPS:] == held.infers[STEPS]).all()
    assert (held.infers[STEPS:] == held.infers[STEPS]).all()
    maps = [frame[50:, 240:720] for frame in frames]
    changes = [(a != b).any() for a, b in itertools.pairwise(maps)]
    assert all(changes[:STEPS])


def test_another_agents_data_do_not_move_a_marker(learner, monkeypatch):
    renderer = team_video.VideoRenderer(learner, 0)
    plain = renderer.record(3).infers
    explore = MetaTest.explore_once

    def disturbed(test, shot):
        rollout = explore(test, shot)
        for held in (rollout.observations, rollout.final_observations, rollout.rewards):
            held[:, :, 1] += 1
        return rollout

    monkeypatch.setattr(MetaTest, "explore_once", disturbed)
    other = renderer.record(3).infers
    assert plain is not None
    assert other is not None
    np.testing.assert_array_equal(plain[:, 0], other[:, 0])
    assert (plain[1:, 1] != other[1:, 1]).any(-1).all()


def test_what_is_inferred_at_a_step_does_not_know_the_later_ones(learner, monkeypatch):
    renderer = team_video.VideoRenderer(learner, 0)
    plain = renderer.record(3).infers
    explore = MetaTest.explore_once

    def disturbed(test, shot):
        rollout = explore(test, shot)
        rollout.rewards[6:] += 1
        return rollout

    monkeypatch.setattr(MetaTest, "explore_once", disturbed)
    other = renderer.record(3).infers
    assert plain is not None
    assert other is not None
    np.testing.assert_array_equal(plain[:7], other[:7])
    assert (plain[7:] != other[7:]).any()


def test_the_learner_is_left_as_it_was_and_videos_repeat(learner):
    streams = [learner.noise.get_state(), learner.draws.get_state()]
    rng = learner.rng.bit_generator.state
    networks = {k: v.clone() for k, v in learner.networks()["inference"].items()}
    videos = [np.stack(list(team_video.VideoRenderer(learner, 1).frames(4))) for _ in range(2)]
    np.testing.assert_array_equal(videos[0], videos[1])
    assert learner.rng.bit_generator.state == rng
    for stream, state in zip((learner.noise, learner.draws), streams, strict=True):
        assert torch.equal(stream.get_state(), state)
    for name, value in networks.items():
        assert torch.equal(value, learner.networks()["inference"][name])


@pytest.mark.parametrize(
    ("algo", "phases", "mapped"),
    [
        ("mappo", ["acting"], False),
        ("oracle", ["acting"], False),
        ("rl2", ["first episode", "second episode"], False),
        ("varibad", ["first episode", "second episode"], True),
        ("ma-pearl", ["exploring", "acting"], True),
    ],
)
def test_other_algorithms(algo, phases, mapped):
    renderer = team_video.VideoRenderer(tiny_learner(algo), 0)
    held = renderer.record(3)
    assert held.phases == [(name, STEPS) for name in phases]
    assert len(held.pictures) == len(held.rewards) == STEPS * len(phases)
    assert (renderer.known is not None) == (held.infers is not None) == mapped
    frames = list(renderer.frames(3))
    assert len(frames) == len(held.pictures)
    assert (frames[0].shape[1] > 600) == mapped


def test_a_long_video_shows_every_second_step(learner, monkeypatch):
    monkeypatch.setattr(team_video, "PICTURES", 2 * STEPS - 1)
    renderer = team_video.VideoRenderer(learner, 0)
    shown = []
    monkeypatch.setattr(Drawing, "__call__", lambda self, *words: shown.append(words[1:]))
    list(renderer.frames(3))
    assert len(shown) == STEPS
    assert [index for *_, index in shown] == list(range(STEPS))
    assert shown[1][0] == "landmark 0  (test task)"
    assert shown[1][1].startswith(f"exploring   step 2/{STEPS}   return -")
    assert shown[STEPS // 2][1] == f"acting   step 0/{STEPS}   return 0.0"


def test_training_tasks_where_a_family_has_no_others(learner, tmp_path, monkeypatch):
    tasks = learner.env.tasks
    monkeypatch.setattr(type(tasks), "test_ids", np.arange(0))
    monkeypatch.setattr(team_video, "TASKS", 2)
    written = list(team_video.write_videos(learner, tmp_path, "gif", 0))
    assert [path.name for path in written] == ["0-landmark-0-1.gif", "1-landmark-0-2.gif"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("landmark 0+1", "7-landmark-0-1"),
        ("../../etc/passwd", "7-etc-passwd"),
        ("a:b|c?", "7-a-b-c"),
        ("重い", "7"),
        ("x" * 300, "7-" + "x" * 80),
    ],
)
def test_file_names_are_safe(name, expected):
    assert team_video.file_name(7, name) == expected


def test_many_tasks_agents_and_long_names_fit():
    rng = np.random.default_rng(0)
    tasks = np.arange(12).repeat(3)
    trajectory = Trajectory(
        rng.normal(size=(36, 4, 3)), tasks, ["name " * 20] * 12,
        rng.normal(size=(5, 4, 3)), rng.normal(size=(5, 4, 3)),
    )  # fmt: skip
    picture = Drawing(trajectory)(np.zeros((100, 50, 3), np.uint8), "a", "b", 4)
    assert picture.dtype == np.uint8
    assert picture.shape == (46 + 380, 190 + 2 * 190 + 158, 3)


def test_first_steps(learner):
    rollout = MetaTest(learner, [0], 2, seed=0).play(0).rollout
    first = first_steps(rollout, 4)
    assert torch.equal(first.rewards, rollout.rewards[:4])
    assert torch.equal(first.observations, rollout.observations[:5])
    assert first.states is None
