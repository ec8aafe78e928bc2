"""Meta-test: decentralised inference from own experience, the same episodes, nothing disturbed."""

import csv
import json
import math
import re

import numpy as np
import pytest
import torch
from method_helpers import TINY, overrides, tiny_learner

import mg2l.train as train
from mg2l import cli, evaluate
from mg2l.config import files as loading
from mg2l.envs import registry
from mg2l.evaluation import measure, statistics
from mg2l.evaluation.meta_test import MetaTest, Sampling
from mg2l.training.learner import Learner
from mg2l.training.metrics import read_metrics

SHOTS, EPISODES = 2, 3


def build(learner: Learner, **values) -> MetaTest:
    ids = [*learner.env.tasks.train_ids, *learner.env.tasks.test_ids]
    return MetaTest(learner, ids, **{"episodes": EPISODES, "seed": 5, **values})


@pytest.fixture(scope="module")
def learner() -> Learner:
    return tiny_learner()


@pytest.mark.parametrize("sampling", ["uniform", "priority"])
def test_an_agent_infers_from_its_own_transitions_alone(learner, sampling):
    test = build(learner)
    with learner.isolated_rng(0):
        experience = test.explore(SHOTS)
    assert experience is not None
    assert experience.shape[:3] == (len(test.ids), SHOTS * 10, 2)
    for agent in (0, 1):
        changed = experience.clone()
        changed[:, :, 1 - agent] = torch.randn_like(changed[:, :, 1 - agent])
        latents = []
        for transitions in (experience, changed):
            with learner.isolated_rng(1):
                latents.append(test.infer(transitions, sampling)[0])
        torch.testing.assert_close(latents[0][:, agent], latents[1][:, agent], rtol=0, atol=0)
        assert not torch.equal(latents[0][:, 1 - agent], latents[1][:, 1 - agent])


def test_exploring_teams_always_sample(learner):
    explored: list[torch.Tensor] = []
    acted: list[torch.Tensor] = []
    for deterministic in (False, True):
        test = build(learner, deterministic=deterministic)
        with learner.isolated_rng(0):
            experience = test.explore(SHOTS)
            assert experience is not None
            explored.append(experience)
            acted.append(test.act(test.infer(explored[-1], "uniform")).actions)
        test.close()
    assert torch.equal(*explored)
    assert not torch.equal(*acted)


def test_a_sub_environment_learns_of_the_task_from_its_own_episodes_alone(learner):
    test = build(learner)
    with learner.isolated_rng(0):
        experience = test.explore(1)
    assert experience is not None
    changed = experience.clone()
    changed[1:] += 1
    latents = []
    for transitions in (experience, changed):
        with learner.isolated_rng(1):
            latents.append(test.infer(transitions, "uniform")[0, 0])
    torch.testing.assert_close(*latents, rtol=0, atol=0)


def test_the_learner_is_left_as_it_was(learner):
    before = {name: stream for name, stream in learner.state_dict().items() if name != "env"}
    streams = [learner.noise.get_state(), learner.draws.get_state()]
    rng = learner.rng.bit_generator.state
    test = build(learner)
    first = test.play(SHOTS).returns
    torch.testing.assert_close(first, test.play(SHOTS).returns, rtol=0, atol=0)
    test.play_online()
    test.play_mismatched(1)
    assert learner.rng.bit_generator.state == rng
    for stream, state in zip((learner.noise, learner.draws), streams, strict=True):
        assert torch.equal(stream.get_state(), state)
    after = learner.state_dict()
    for name, value in before["networks"]["inference"].items():
        assert torch.equal(value, after["networks"]["inference"][name])


def test_all_ways_of_acting_meet_the_same_episodes(learner):
    test = build(learner)
    starts = [test.play(k).rollout.observations[0] for k in (0, 1)]
    starts.append(test.play_online().rollout.observations[0])
    starts.append(build(tiny_learner("mappo")).play(0).rollout.observations[0])
    for other in starts[1:]:
        assert torch.equal(starts[0], other)
    assert not torch.equal(test.explore(1)[:, 0, :, :10].flatten(), starts[0].flatten())  # type: ignore[index]


def test_mismatch_has_the_matched_returns_on_its_diagonal(learner):
    test = build(learner)
    matrix = test.play_mismatched(SHOTS)
    tasks = len(learner.env.tasks)
    assert matrix.shape == (tasks, tasks)
    matched = test.play(SHOTS).returns.view(tasks, -1).mean(1)
    np.testing.assert_allclose(np.diag(matrix), matched, rtol=1e-5)


def test_online_starts_with_the_prior_and_continues_with_what_was_seen(learner):
    latent = build(learner).play_online().rollout.latent
    assert latent is not None
    assert not torch.equal(latent[0], latent[1])
    assert not torch.equal(latent[1], latent[2])


def test_zero_shots_is_a_draw_from_the_prior_held_for_the_episode(learner):
    latent = build(learner).play(0).rollout.latent
    assert latent is not None
    assert (latent == latent[0]).all()
    norms = latent[0].norm(dim=-1)
    torch.testing.assert_close(norms, torch.full_like(norms, 8**0.5))


@pytest.mark.parametrize("name", loading.available("algo"))
def test_every_algorithm(name):
    learner = tiny_learner(name)
    test = build(learner)
    for shots in (0, 1):
        episode = test.play(shots)
        assert episode.returns.shape == (len(test.ids), 2)
        assert episode.returns.isfinite().all()
        assert (episode.lengths == 10).all()
    test.close()


def test_discrete_actions_at_random_respect_masks():
    learner = tiny_learner("mappo", "rware-layout", n_agents=2)
    test = MetaTest(learner, [0, 1], 2, seed=0)
    returns, lengths = test.play_random()
    assert returns.shape == (4, 2)
    assert lengths.tolist() == [10] * 4


def test_bounds():
    assert measure.bounds(np.full((2, 5), 3.0)) == (3, 3)
    data = np.random.default_rng(0).normal(size=(4, 400)) + 10 * np.arange(4)[:, None]
    low, high = measure.bounds(data)
    error = 1.96 / math.sqrt(data.size)  # differences between tasks do not widen it
    assert low == pytest.approx(data.mean() - error, abs=0.01)
    assert high == pytest.approx(data.mean() + error, abs=0.01)


def words(algo, root, **values):
    pairs = {**TINY, "save_model": True, "main_save_path": root, **values}
    return [f"--algo={algo}", *overrides(pairs)]


def run(algo, root, **values):
    assert train.run(*cli.parse(words(algo, root, **values))) == 0
    (folder,) = root.glob(f"*/{algo}/*")
    return folder


def test_evaluate(tmp_path, monkeypatch, capsys):
    folders = {algo: run(algo, tmp_path) for algo in ("mg2l", "oracle", "mappo")}
    monkeypatch.setattr(
        "sys.argv",
        ["evaluate", str(folders["mg2l"]), "--oracle", str(folders["oracle"]),
         "--mappo", str(folders["mappo"]), "--shots", "0", "2", "--episodes", "3"],
    )  # fmt: skip
    evaluate.main()
    found = json.loads((folders["mg2l"] / "evaluation.json").read_text())
    ways = [(r["split"], r["mode"], r["shots"], r["sampling"]) for r in found["results"]]
    expected = [
        ("shots", 0, "uniform"), ("shots", 2, "uniform"), ("shots", 2, "priority"),
        ("online", 0, "uniform"), ("random", 0, "none"),
    ]  # fmt: skip
    assert ways == [(split, *way) for split in ("test", "train") for way in expected]
    for row in found["results"]:
        assert row["interval"][0] <= row["return"] <= row["interval"][1]
        scale = found["scale"][row["split"]]
        share = (row["return"] - scale["random"]) / (scale["oracle"] - scale["random"])
        assert row["normalised"] == pytest.approx(share)
        by_agent = [agent["return"] for agent in row["by_agent"]]
        assert np.mean(by_agent) == pytest.approx(row["return"], abs=1e-4)
        for part in (*row["by_agent"], *row["by_task"].values()):
            assert part["interval"][0] <= part["return"] <= part["interval"][1]
        by_task = [task["return"] for task in row["by_task"].values()]
        assert np.mean(by_task) == pytest.approx(row["return"], abs=1e-4)
        scores = [task["score"] for task in row["by_task"].values() if "score" in task]
        assert len(scores) == scale["scored"] == len(row["by_task"]) - scale["unscored"]
        assert ("adaptation" in row) == bool(scores)
        if scores:
            assert row["adaptation"]["score"] == pytest.approx(
                statistics.interquartile_mean(np.array([scores]))
            )
        assert scale["reach"] == pytest.approx(
            found["scripted"][row["split"]]["informed"] - found["scripted"][row["split"]]["blind"]
        )
    assert found["results"][-1]["normalised"] == pytest.approx(0)
    tasks = registry.make("mpe-spread", 1).tasks
    for split, ids in (("train", tasks.train_ids), ("test", tasks.test_ids)):
        assert np.shape(found["mismatch"][split]["returns"]) == (len(ids), len(ids))
    rows = list(csv.DictReader((folders["mg2l"] / "evaluation.csv").open()))
    assert {row["training_seed"] for row in rows} == {"0"}
    assert len(rows) == len(expected) * len(tasks) * 3 * 2
    shown = capsys.readouterr().out
    assert "test   online" in shown
    assert "test   scripted teams: random" in shown
    assert re.search(r"test   \d tasks have an adaptation score, \d none", shown)

    monkeypatch.setattr("sys.argv", ["evaluate", str(folders["oracle"]), "--episodes", "2"])
    evaluate.main()
    found = json.loads((folders["oracle"] / "evaluation.json").read_text())
    assert "mismatch" not in found
    assert len({row["return"] for row in found["results"] if row["mode"] != "random"}) == 2


def test_evaluate_refuses(tmp_path, monkeypatch, capsys):
    mine = run("mappo", tmp_path / "a")
    other = run("oracle", tmp_path / "b", n_landmarks=4, n_tasks=3)
    for arguments, message in (
        ([str(mine), "--oracle", str(other)], "same environment"),
        ([str(mine), "--oracle", str(mine)], "must be a run of oracle, got one of mappo"),
        ([str(mine), "--mappo", str(other)], "must be a run of mappo, got one of oracle"),
        ([str(mine), "--mappo", str(mine)], "--mappo needs --oracle"),
        ([str(tmp_path)], "config.yaml"),
        ([str(mine), "--shots", "0", str(10**30)], "--shots: must be a whole number from 0"),
        ([str(mine), "--episodes", "0"], "--episodes: must be a whole number from 1"),
    ):
        monkeypatch.setattr("sys.argv", ["evaluate", *arguments])
        with pytest.raises(SystemExit) as stopped:
            evaluate.main()
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


def test_meta_tests_in_the_course_of_training_change_nothing_of_it(tmp_path):
    quiet = run("mg2l", tmp_path / "quiet")
    tested = run("mg2l", tmp_path / "tested", eval_interval=2, eval_episodes=2, eval_shots=[0, 1])
    rows = [read_metrics(folder / "metrics.jsonl") for folder in (quiet, tested)]
    added = {"eval/train_0_shots", "eval/train_1_shots", "eval/test_0_shots", "eval/test_1_shots"}
    assert added <= set(rows[1][1]) - set(rows[0][1])
    assert not added & set(rows[1][0])
    for plain, with_tests in zip(*rows, strict=True):
        for name, value in plain.items():
            if not name.startswith(("time/", "env_steps_per_s")):
                assert with_tests[name] == value, name


@pytest.mark.parametrize("name", ["mg2l", "mappo", "rl2", "varibad"])
def test_shots_share_their_exploration(name):
    """Every number of shots plays what it would play alone."""
    learner = tiny_learner(name)
    test = build(learner)
    samplings: list[Sampling] = ["uniform", "priority"] if test.prioritises else ["uniform"]
    seen = []
    found = test.play_each([0, 1, 3], samplings, lambda *way: seen.append(way[:2]))
    assert seen == list(found)
    assert len(found) == (5 if name == "mg2l" else 3)
    for (shots, sampling), scored in found.items():
        alone = test.play(shots, sampling)
        torch.testing.assert_close(scored.returns, alone.returns, rtol=0, atol=0)
        assert torch.equal(scored.lengths, alone.lengths)
    test.close()
