"""Adaptation scores: 0 is mappo and 1 the oracle, task by task."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_files import write_run

import mg2l
from mg2l import compare
from mg2l.evaluation.adaptation import Bound, Scale, TaskReturn, adaptation, in_order
from mg2l.report import __main__ as report

TASKS = ["a", "b", "c"]
ROLE = {"mappo": "zero", "oracle": "one"}


def rows(algo: str, values: Any, shots: str = "5", *, seed: int = 0, part: str = "test"):
    about = ("goals", algo, ROLE.get(algo, ""), seed, part, shots)
    return [TaskReturn(*about, task, value) for task, value in zip(TASKS, values, strict=True)]


BOUND = Bound("goals", "test", -50.0, -40.0, -10.0)
REFERENCES = [
    *rows("mappo", [-40, -40, -12], "0"),
    *rows("mappo", [-20, -20, -8], "0", seed=1),
    *rows("oracle", [-10, -15, -9], "0"),
    *rows("oracle", [-10, -5, -10], "0", seed=1),
    *rows("mappo", [-50, -50, -50], "random"),
]


def only(found):
    (one,) = found
    return one


def test_scores_are_task_by_task():
    mine = rows("mine", [-20, -30, 5])
    found = only(adaptation([*REFERENCES, *mine], [BOUND]))
    # Means over seeds: mappo -30, -30, -10; oracle -10, -10, -9.5. On c they differ by 0.5, less
    # than a tenth of the 30 between informed and blind.
    assert found.scale is not None
    assert found.scale.tasks == ["a", "b"]
    assert found.scale.unscored == 1
    np.testing.assert_allclose(found.scores["mine"]["5"], [[0.5, 0.0]])
    np.testing.assert_allclose(found.scores["oracle"]["0"].mean(0), [1, 1])
    np.testing.assert_allclose(found.scores["mappo"]["0"].mean(0), [0, 0])
    np.testing.assert_allclose(found.returns["mine"]["5"], [[-20, -30, 5]])
    assert found.random == -50
    assert "2 of 3 tasks have a score" in " ".join(found.notes)
    assert "0.1 of the 30.0 between informed and blind" in " ".join(found.notes)
    value, low, high = found.interval("mine", "5")
    assert low <= value == 0.25 <= high
    assert found.interval("mine", "1") is None


def test_an_oracle_that_is_worse_makes_no_score():
    scale = Scale({"a": 0.0, "b": 0.0, "c": 0.0}, {"a": 1.0, "b": -1.0, "c": 0.2}, 2.0)
    assert (scale.tasks, scale.unscored) == (["a", "c"], 1)
    assert scale.score("a", 0.25) == 0.25
    # Where scripted teams differ by nothing, any gain of the oracle counts.
    assert Scale({"a": 0.0, "b": 0.0}, {"a": 1e-3, "b": 0.0}, 0.0).tasks == ["a"]


def test_without_scripted_teams_the_range_is_from_random_to_the_oracle():
    found = only(adaptation([*REFERENCES, *rows("mine", [-20, -30, -10])], []))
    assert found.scale is not None
    assert found.scale.reach == pytest.approx(np.mean([-10, -10, -9.5]) + 50)
    assert "between oracle and random actions" in " ".join(found.notes)


def test_what_an_episode_is_worth():
    mine = [*rows("mine", [-30, -30, 0], "0"), *rows("mine", [-20, -25, 0], "1")]
    found = only(adaptation([*REFERENCES, *mine], [BOUND]))
    assert found.gain("mine", "0", "1") is not None
    value, low, high = found.gain("mine", "0", "1")
    assert (low, value, high) == (0.25, 0.375, 0.5)
    assert found.gain("mine", "0", "5") is None
    assert found.gain("nobody", "0", "1") is None


def test_gains_are_of_runs_tested_in_both_ways():
    before = [*rows("mine", [-30, -30, 0], "0", seed=2), *rows("mine", [0, 0, 0], "0", seed=1)]
    after = rows("mine", [-20, -25, 0], "1", seed=2)
    found = only(adaptation([*REFERENCES, *before, *after], [BOUND]))
    np.testing.assert_allclose(found.gains("mine", "0", "1"), [[0.5, 0.25]])
    other = rows("mine", [-20, -25, 0], "1", seed=3)
    assert only(adaptation([*REFERENCES, *before, *other], [BOUND])).gain("mine", "0", "1") is None


@pytest.mark.parametrize("missing", ["mappo", "oracle"])
def test_no_scores_without_both_references(missing):
    some = [row for row in REFERENCES if row.algo != missing] + rows("mine", [1, 2, 3])
    found = only(adaptation(some, [BOUND]))
    assert found.scale is None
    assert found.scores == {}
    assert found.returns["mine"]["5"].tolist() == [[1, 2, 3]]
    assert "needs tested runs of one mappo and of one oracle" in " ".join(found.notes)


def test_two_oracles_are_no_reference():
    other = [row._replace(algo="oracle (lr=1)") for row in REFERENCES if row.algo == "oracle"]
    assert only(adaptation([*REFERENCES, *other], [BOUND])).scale is None


def test_parts_and_ways_have_an_order():
    some = [
        *REFERENCES, *rows("mine", [1, 1, 1], part="ood"), *rows("mine", [1, 1, 1], "10"),
        *rows("mine", [1, 1, 1], "online", part="train"), *rows("mine", [1, 1, 1], "2"),
    ]  # fmt: skip
    assert [found.part for found in adaptation(some, [])] == ["test", "train", "ood"]
    assert adaptation(some, [])[0].shots == ["0", "2", "10"]
    assert in_order(["random", "10", "online", "2"]) == ["online", "2", "10"]
    assert math.isnan(adaptation(some, [])[1].random)


def test_tasks_that_some_runs_have_not_met_are_left_out():
    some = [*REFERENCES, *rows("mine", [-20, -30, -10])[:1]]
    found = only(adaptation(some, [BOUND]))
    assert found.returns["mine"]["5"].shape == (1, 1)
    np.testing.assert_allclose(found.scores["mine"]["5"], [[0.5]])


# Runs on disk.


def write_tested(root: Path, algo: str, seed: int, by_shots: dict[str, list[float]]) -> None:
    """A run of which evaluation.json says these returns of held-out tasks."""
    config = {"algo_name": algo, "env": {"family": "mpe-goals"}}
    folder = write_run(root, algo, seed, env="mpe-goals", config=config)
    results = [
        {
            "split": "test",
            "mode": "shots" if shots.isdigit() else shots,
            "shots": int(shots) if shots.isdigit() else 0,
            "sampling": "uniform",
            "return": float(np.mean(values)),
            "by_task": {task: {"return": x} for task, x in zip(TASKS, values, strict=True)},
        }
        for shots, values in by_shots.items()
    ]
    scripted = {"test": {"random": -50.0, "blind": -40.0, "informed": -10.0}}
    found = {"iteration": 30, "results": results, "scripted": scripted}
    (folder / "evaluation.json").write_text(json.dumps(found))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    random = {"random": [-50.0] * 3}
    for seed in (0, 1):
        write_tested(tmp_path, "mappo", seed, {"0": [-30, -30, -10], "online": [-30, -30, -10]})
        write_tested(tmp_path, "oracle", seed, {"0": [-10, -10, -9], "online": [-10, -10, -9]})
        shots = {"0": [-40.0] * 3, "1": [-20.0] * 3, "online": [-25.0] * 3}
        write_tested(tmp_path, "mg2l", seed, shots | random)
        # A recurrent policy that remembers is no mappo, whatever it is conditioned on.
        write_tested(tmp_path, "rl2", seed, {"0": [-20, -20, -20]})
    return tmp_path


def test_compare_shows_scores_beside_returns(runs, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["compare", str(runs)])
    compare.main()
    out = capsys.readouterr().out
    about = "mpe-goals, held-out tasks: 2 of 3 tasks have a score; on 1 the oracle is not better"
    assert about in out
    assert "returns without training: random -50.0, blind -40.0, informed -10.0" in out
    assert "| algorithm | seeds | online | K = 0 | K = 1 |" in out
    mine = [
        "0.25 [0.25, 0.25] (-25.0)", "-0.50 [-0.50, -0.50] (-40.0)", "0.50 [0.50, 0.50] (-20.0)",
    ]  # fmt: skip
    assert f"| mg2l | 2 | {' | '.join(mine)} |" in out
    assert "| rl2 | 2 |  | 0.50 [0.50, 0.50] (-20.0) |  |" in out


def test_results_have_scores(runs):
    found = mg2l.results(runs).scores.to_dict("records")
    assert len(found) == 2 * 2 * (2 + 2 + 3 + 1)  # seeds, tasks, ways of acting
    (row,) = [r for r in found if (r["algo"], r["shots"], r["seed"], r["task"]) ==
              ("mg2l", "1", 1, "b")]  # fmt: skip
    assert row == {
        "env": "mpe-goals", "algo": "mg2l", "seed": 1, "split": "test", "shots": "1", "task": "b",
        "return": -20, "score": 0.5,
    }  # fmt: skip


def test_report_draws_scores(runs, monkeypatch):
    monkeypatch.setattr("sys.argv", ["report", str(runs)])
    report.main()
    text = (runs / "report.html").read_text()
    assert "<h4>Adaptation to held-out tasks</h4>" in text
    assert "0.25 [0.25, 0.25]" in text
    assert "held-out tasks: 2 of 3 tasks have a score" in text
