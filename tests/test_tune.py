"""A search: what it may be asked, what it decides, and that it loses nothing when it is killed."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from method_helpers import TINY, tiny_words

import mg2l
from mg2l import cli, tune
from mg2l.config.files import load_config
from mg2l.config.keys import Schema
from mg2l.report import tuning as report
from mg2l.training.metrics import read_metrics
from mg2l.tuning import space, summary
from mg2l.tuning.schedulers import Rungs, exploit
from mg2l.tuning.study import importances

WORDS = tiny_words(n_iters=None, save_model=True, save_interval=50, n_training_threads=1)
SCHEMA = Schema("mpe-spread", "mg2l")


def dimension(text: str) -> space.Dimension:
    (found,) = space.read([text], SCHEMA)
    return found


def plain(run: Path) -> list[str]:
    """Metrics as texts, without times."""
    return [
        json.dumps({k: v for k, v in row.items() if "time/" not in k and k != "env_steps_per_s"})
        for row in read_metrics(run / "metrics.jsonl")
    ]


def words(folder: Path, *more: str) -> list[str]:
    keys = {word.partition("=")[0] for word in more}
    mine = [word for word in WORDS if word.partition("=")[0] not in keys]
    return ["--algo", "mappo", "--folder", str(folder), *mine, *more]


def search(folder: Path, *more: str) -> int:
    """In this process, but for its trials."""
    return tune.run(tune.parse(words(folder, *more)))


def begin(folder: Path, *more: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "mg2l.tune", *words(folder, *more)])


def trials(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "tune.json").read_text())["trials"]
    return found


@pytest.mark.parametrize(
    ("text", "name", "low", "high", "log", "choices"),
    [
        ("ppo.actor_lr=log:1e-4..1e-2", "ppo.actor_lr", 1e-4, 1e-2, True, ()),
        ("clip_param=0.1..0.3", "ppo.clip_param", 0.1, 0.3, False, ()),
        ("ppo_epoch=log:1..16", "ppo.ppo_epoch", 1, 16, True, ()),
        ("encoder.context_dim=8,16,32", "algo.context_dim", 0, 0, False, (8, 16, 32)),
        ("use_gae=true,false", "ppo.use_gae", 0, 0, False, (True, False)),
        ("act_on=mean,sample", "rollout.act_on", 0, 0, False, ("mean", "sample")),
        ("gamma=0.9,0.99,1", "ppo.gamma", 0, 0, False, (0.9, 0.99, 1.0)),
    ],
)
def test_what_may_be_searched(text, name, low, high, log, choices):
    found = dimension(text)
    assert (found.name, found.low, found.high) == (name, low, high)
    assert (found.log, found.choices) == (log, choices)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("actor_lr", "expected KEY=LOW..HIGH"),
        ("actor_lr=", "expected KEY=LOW..HIGH"),
        ("actor_lrr=0..1", "did you mean 'actor_lr'"),
        ("actor_lr=3", "with two values or more"),
        ("actor_lr=1e-2..1e-4", "0.01 must be less than 0.0001"),
        ("actor_lr=low..1", "'low' is not a number"),
        ("entropy_coef=log:0..1", "begins above 0"),
        ("clip_param=0.1..2", r"clip_param must be in \(0, 1\)"),
        ("context_dim=8,x", "context_dim must be an integer"),
        ("ppo_epoch=1.5..4", "ppo_epoch must be an integer"),
        ("act_on=mean..sample", "list its values"),
        ("act_on=mean,simple", "must be one of mean, sample"),
        ("context_dim=8,8", "listed twice"),
        ("seed=1,2", "not a key of what is learnt"),
        ("n_iters=10,20", "not a key of what is learnt"),
        ("log:actor_lr=1,2", "unknown key"),
        ("actor_lr=log:1,2", "expected KEY=LOW..HIGH"),
    ],
)
def test_a_mistake_in_the_space_is_one_line(text, said):
    with pytest.raises(cli.ConfigError, match=said) as caught:
        dimension(text)
    assert str(caught.value).startswith("--search")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--search", "gamma=0..1", "gamma=0.5"], "also given a fixed value"),
        (["--search", "gamma=0..1", "ppo.gamma=0,1"], "searched twice"),
        (["--search", "gamma=0..1", "main_save_path=x"], "given this by --folder"),
        (["--search", "gamma=0..1", "save_model=false"], "continues from checkpoints"),
        (["--search", "gamma=0..1", "n_iters=0"], "n_iters must be in"),
        (["--search", "gamma=0..1", "n_env_steps=9"], "give the budget of a search as n_iters"),
        (["--search", "gamma=0..1", "--objective", "eval/test"], "expected eval/PART_K_shots"),
        (["--search", "gamma=0..1", "--objective", "eval/test_1_shots"], "set eval_interval"),
        (
            ["eval_interval=1", "--search", "gamma=0..1", "--objective", "eval/test_9_shots"],
            "eval_shots must have 9",
        ),
        (["--search", "gamma=0..1", "--interval", "9", "n_iters=9"], "must be less than n_iters"),
        (["--search", "gamma=0..1", "--scheduler", "pbt", "--trials", "3"], "at least 4"),
        (
            ["--search", "layer_N=1,2", "--scheduler", "pbt"],
            "policy.layer_N=2 changes what a run holds",
        ),
        (["--search", "gamma=0..1", "--on", "mars"], "--on must be local"),
    ],
)
def test_other_mistakes_are_one_line(tmp_path, more, said):
    with pytest.raises(cli.ConfigError, match=said) as caught:
        search(tmp_path / "s", *more)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "s" / "trials").exists()


def test_rungs():
    asha = Rungs("asha", 100, 5, 3)
    assert asha.iterations == [5, 15, 45, 100]
    assert (asha.after(0), asha.after(45)) == (5, 100)
    assert Rungs("asha", 90).iterations == [10, 30, 90]
    assert Rungs("median", 100).iterations == [*range(10, 101, 10)]
    assert Rungs("pbt", 50, 20, every=8).iterations == [24, 48, 50]
    assert Rungs("none", 7).iterations == [7]


def test_values_stay_in_their_space_and_move():
    rng = np.random.default_rng(0)
    for text in ("actor_lr=log:1e-4..1e-2", "ppo_epoch=1..15", "gamma=0.5..1", "ppo_epoch=2,5,9"):
        found = dimension(text)
        value, seen = found.draw(rng), set()
        for _ in range(200):
            value = found.key.check(found.perturb(value, rng))
            seen.add(value)
            assert value in found.choices if found.choices else found.low <= value <= found.high
        assert len(seen) > 2 or found.choices
    logs = [math.log10(dimension("actor_lr=log:1e-4..1e-2").draw(rng)) for _ in range(2000)]
    assert np.mean(logs) == pytest.approx(-3, abs=0.05)


def test_the_worst_quarter_is_replaced_by_forks_of_the_best():
    values: dict[int, float | None] = {k: float(k) for k in range(8)}
    params = {k: {"ppo.gamma": 0.9} for k in range(8)}
    chosen = [dimension("gamma=0.5..1")]
    found = exploit(values, params, chosen, "max", np.random.default_rng(0))
    assert {r.loser for r in found} == {0, 1}
    assert {r.winner for r in found} <= {6, 7}
    assert all(r.params["ppo.gamma"] != 0.9 for r in found)
    found = exploit(values, params, chosen, "min", np.random.default_rng(0))
    assert {r.loser for r in found} == {6, 7}
    failed = values | {6: None, 4: None, 3: None}
    found = exploit(failed, params, chosen, "max", np.random.default_rng(0))
    assert {r.loser for r in found} == {3, 4, 6}
    assert {r.winner for r in found} <= {5, 7}


def test_importances_find_what_matters():
    chosen = [dimension("gamma=0.5..1"), dimension("clip_param=0.1..0.3")]
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(40):
        params = {d.name: d.draw(rng) for d in chosen}
        rows.append((params, 10 * params["ppo.gamma"] + 0.1 * params["ppo.clip_param"]))
    found = importances(chosen, rows)
    assert next(iter(found)) == "ppo.gamma"
    assert found["ppo.gamma"] > 0.9
    assert sum(found.values()) == pytest.approx(1)
    assert importances(chosen, rows[:3]) == {}


def test_trials_are_ordinary_runs_and_the_best_is_written_down(tmp_path):
    """The value of each trial is that of the same run without a search, bit for bit."""
    folder = tmp_path / "s"
    more = ("--search", "ppo.actor_lr=log:1e-4..1e-1", "act_on=mean,sample", "--trials", "2")
    assert search(folder, *more, "n_iters=2", "seed=5") == 0
    rows = trials(folder)
    assert [(row["trial"], row["state"], row["iteration"]) for row in rows] == [
        (0, "done", 2), (1, "done", 2),
    ]  # fmt: skip
    for row in rows:
        keys: dict[str, Any] = {**TINY, "n_iters": 2, "seed": 5, **row["params"]}
        own = mg2l.train(algo="mappo", main_save_path=str(tmp_path / "own"), **keys)
        assert plain(own.folder) == plain(folder / row["run"])
        assert row["value"] == own.rows[-1]["return"]
    best = max(rows, key=lambda row: row["value"])
    written = yaml.safe_load((folder / "best.yaml").read_text())
    assert written["ppo.actor_lr"] == best["params"]["ppo.actor_lr"]
    config = load_config(str(folder / "best.yaml"), "mappo", "mpe-spread")
    assert (config.ppo.actor_lr, config.seed) == (best["params"]["ppo.actor_lr"], 5)
    assert "Objective over each key" in (folder / "report.html").read_text()
    with pytest.raises(cli.ConfigError, match="holds another search: its sampler"):
        search(folder, *more, "n_iters=2", "seed=5", "--sampler", "random")


def result(count: int = 9) -> summary.Result:
    rng = np.random.default_rng(0)
    rows = [
        {
            "trial": k, "state": "done", "iteration": 9, "value": float(k), "run": None,
            "params": {"ppo.gamma": float(rng.uniform())}, "forked": [0, 3] if k else None,
            "error": "",
        }
        for k in range(count)
    ]  # fmt: skip
    return summary.Result("return", "max", {"ppo.gamma": False}, rows, 8, {"ppo.gamma": 1.0}, 9)


def test_table_and_report(tmp_path):
    lines = summary.table(result())
    assert lines[0] == "| trial | state | iteration | return | ppo.gamma | forked from |"
    assert lines[2].startswith("| 8 (best) | done | 9 | 8 |")
    report.write(tmp_path / "report.html", result())
    page = (tmp_path / "report.html").read_text()
    assert "Importance of the keys" in page
    assert "how much of the variance of return at iteration 9 each key explains" in page


def test_the_metric_must_be_one_that_is_logged(tmp_path):
    more = ("--search", "gamma=0.9..1", "--trials", "1", "n_iters=1", "--objective", "returns")
    with pytest.raises(cli.ConfigError, match=r"no trial has a value.*did you mean 'return'"):
        search(tmp_path, *more)


def wait_for(condition, what: str):
    for _ in range(6000):
        if found := condition():
            return found
        time.sleep(0.05)
    raise TimeoutError(what)


def lines(folder: Path) -> int:
    paths = folder.glob("trials/*/*/*/*/metrics.jsonl")
    return sum(path.read_bytes().count(b"\n") for path in paths)


def children(pid: int) -> list[int]:
    text = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in text.stdout.split()]


@pytest.mark.ci
@pytest.mark.parametrize(
    ("scheduler", "count", "jobs"), [("asha", "3", "1"), ("pbt", "4", "2")], ids=["asha", "pbt"]
)
def test_killed_at_any_moment(tmp_path, scheduler, count, jobs):
    """Trials and decisions are those of a search that nobody disturbs."""
    more = [
        *("--search", "ppo.actor_lr=log:1e-4..1e-1", "--trials", count, "--jobs", jobs),
        *("--scheduler", scheduler, "--interval", "2", "--reduction", "2"),
        *("n_iters=4", "save_interval=1", "max_ep_len=100"),
    ]
    calm, folder = tmp_path / "calm", tmp_path / "s"
    assert search(calm, *more) == 0
    process = begin(folder, *more)
    for moment, target in ((1, "trial"), (3, "driver"), (5, "trial")):
        wait_for(lambda moment=moment: lines(folder) >= moment, f"{moment} iterations")
        found = children(process.pid)
        if target == "trial" and found:
            os.kill(found[0], signal.SIGKILL)
        elif target == "driver":
            process.send_signal(signal.SIGKILL)
            process.wait()
            process = begin(folder, *more)
    assert process.wait(timeout=300) == 0
    rows = [{k: v for k, v in row.items() if k != "run"} for row in trials(folder)]
    assert rows == [{k: v for k, v in row.items() if k != "run"} for row in trials(calm)]
    for row, own in zip(trials(folder), trials(calm), strict=True):
        assert plain(folder / row["run"]) == plain(calm / own["run"])
    states = [row["state"] for row in trials(folder)]
    assert "stopped early" in states
    if scheduler == "pbt":
        fork = next(row for row in trials(folder) if row["forked"])
        notes = json.loads((folder / fork["run"] / "environment.json").read_text())
        parent = trials(folder)[fork["forked"][0]]
        assert notes["parent"]["run"].endswith(parent["run"])
        assert notes["parent"]["iteration"] == fork["forked"][1]
        assert plain(folder / fork["run"])[0] == plain(folder / parent["run"])[0]
    else:
        decayed = [json.loads(plain(folder / row["run"])[1])["lr/actor"] for row in trials(folder)]
        rates = [row["params"]["ppo.actor_lr"] for row in trials(folder)]
        assert decayed == pytest.approx([rate * (1 - 0.95 / 4) for rate in rates])
