"""A run's folder that is damaged or hostile: one line and exit status 2 in every command."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from hostile_helpers import small_run, status

import mg2l.train as train
from mg2l import evaluate
from mg2l.training import checkpoint
from mg2l.training.metrics import read_metrics

DEEP = b"[" * 100_000
NAMES = {"expt": "default", "algo": "mg2l", "env": "mpe-spread"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def refusal(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    main: Callable[[], int | None],
    *words: object,
) -> str:
    """The one line of a program that refuses."""
    capsys.readouterr()
    assert status(monkeypatch, main, *words) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


ENVIRONMENT = {
    "a number": (b'{"names": 3}', "names must be an object, got an integer"),
    "a list": (b"[]", "must be an object, got a list"),
    "names": (b'{"names": {"expt": 1, "algo": "mg2l", "env": "x"}}', "names.expt must be a text"),
    "resumed": (json.dumps({"names": NAMES, "resumed": 3}).encode(), "resumed must be a list"),
    "deep": (DEEP, "nested too deep"),
    "not UTF-8": (b"\xff\xfe", "not UTF-8"),
}


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_environment(run, monkeypatch, capsys, name):
    content, said = ENVIRONMENT[name]
    (run / "environment.json").write_bytes(content)
    err = refusal(monkeypatch, capsys, train.main, f"--resume={run}", "n_iters=5")
    assert f"{run / 'environment.json'}: " in err
    assert said in err


CONFIG = {
    "alias": (b"a: &a [x]\nb: *a\n", "aliases such as *a are not allowed"),
    "list key": (b"[a, b]: 1\n", "a key must be a word"),
    "deep": (DEEP, "nested too deep"),
    "not UTF-8": (b"\xff\xfe", "not UTF-8"),
    "a text": (b"run", "must hold 'key: value' lines, got a text"),
    "no env": (b"seed: 1\n", "has no group 'env'"),
    "huge": (b"seed: " + b"9" * 5000, "not valid YAML"),
}


@pytest.mark.parametrize("name", CONFIG)
def test_config(run, monkeypatch, capsys, name):
    content, said = CONFIG[name]
    (run / "config.yaml").write_bytes(content)
    for main, word in [(train.main, f"--resume={run}"), (evaluate.main, run)]:
        err = refusal(monkeypatch, capsys, main, word)
        assert f"{run / 'config.yaml'}: " in err
        assert said in err


def test_a_config_reveals_no_secret(run, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "sesame")
    text = (run / "config.yaml").read_text()
    for key in ("seed: 3", "wandb_project", "main_save_path"):
        line = next((line for line in text.splitlines() if line.startswith(key)), None)
        if line is None:
            continue
        name = line.partition(":")[0]
        changed = text.replace(line, f"{name}: ${{oc.env:WANDB_API_KEY}}")
        (run / "config.yaml").write_text(changed)
        err = refusal(monkeypatch, capsys, evaluate.main, run)
        assert name in err
        assert "sesame" not in err


@pytest.mark.parametrize("what", ["pipe", "folder", "link"])
def test_what_is_no_file_is_neither_waited_for_nor_followed(
    run, monkeypatch, capsys, tmp_path, what
):
    (tmp_path / "mine").write_text("mine")
    for name in ("config.yaml", "environment.json", "metrics.jsonl", ".lock"):
        path = run / name
        path.rename(tmp_path / "kept")
        {"pipe": os.mkfifo, "folder": os.mkdir, "link": lambda p: p.symlink_to("../mine")}[what](
            path
        )
        err = refusal(monkeypatch, capsys, train.main, f"--resume={run}", "n_iters=5")
        assert str(run) in err
        assert (tmp_path / "mine").read_text() == "mine"
        path.rmdir() if what == "folder" else path.unlink()
        (tmp_path / "kept").rename(path)


def test_a_folder_of_checkpoints_elsewhere_is_refused(run, monkeypatch, capsys, tmp_path):
    (run / "checkpoints").rename(tmp_path / "elsewhere")
    (run / "checkpoints").symlink_to("../elsewhere")
    err = refusal(monkeypatch, capsys, train.main, f"--resume={run}", "n_iters=5")
    assert "checkpoints: must be a folder of the run, and no link" in err


def set_at(tree: Any, path: str, value: Any) -> None:
    """Change what lies at ``a.b.0.c``."""
    *groups, name = (int(word) if word.isdecimal() else word for word in path.split("."))
    for group in groups:
        tree = tree[group]
    tree[name] = value


FORMS: dict[str, tuple[str, Any]] = {
    "a text as iteration": ("iteration", "4"),
    "another iteration": ("iteration", 9),
    "no number as iteration": ("iteration", None),
    "a list as state": ("state", []),
    "about": ("about", {"$dict": 3}),
    "pairs": ("about", {"$dict": [[1]]}),
    "a key that is a list": ("state.networks", {"$dict": [[[], 1]]}),
    "a tensor's name": ("state.networks.actor", {"$tensor": [1]}),
    "no tensor": ("state.networks.actor", {"$tensor": "x"}),
    "a float": ("state.env_steps", {"$float": "zz"}),
    "a short float": ("state.env_steps", {"$float": "00"}),
    "steps": ("state.env_steps", "x"),
    "random": ("state.random", 3),
    "no random": ("state.random", {}),
    "a stream of Python": ("state.random.python", ["a"]),
    "a stream": ("state.random.generators.tasks", {}),
    "an optimiser": ("state.optimisers.actor", {}),
    "rates": ("state.optimisers.actor.param_groups", [{"lr": "x"}]),
    "a moment": ("state.optimisers.actor.state.$dict.0.1.exp_avg", 3),
    "betas": ("state.optimisers.actor.param_groups.0.betas", 5),
    "an environment": ("state.env", {}),
    "buffers": ("state.buffers", 3),
    "NaN": ("state.optimisers.actor.param_groups", [{"lr": {"$float": "7ff8000000000000"}}]),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_state_of_the_right_hash_and_the_wrong_form(run, monkeypatch, capsys, name):
    where, value = FORMS[name]
    path = checkpoint.path_of(run / "checkpoints", 4)
    content = json.loads((path / checkpoint.STRUCTURE).read_text())["content"]
    set_at(content, where, value)
    (path / checkpoint.STRUCTURE).write_bytes(checkpoint.to_document(content))
    before = (run / "metrics.jsonl").read_bytes()
    err = refusal(monkeypatch, capsys, train.main, f"--resume={run}", "n_iters=5")
    assert f"checkpoint {path}" in err
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("part", ["networks", "optimisers"])
def test_weights_that_are_not_finite(run, monkeypatch, capsys, part):
    path = checkpoint.path_of(run / "checkpoints", 4)
    read = checkpoint.load(path)
    tensors = safetensors.torch.load_file(path / checkpoint.TENSORS)
    name = next(key for key in tensors if key.startswith(part) and tensors[key].numel() > 1)
    tensors[name].view(-1)[0] = float("nan")
    data = safetensors.torch.save(tensors)
    (path / checkpoint.TENSORS).write_bytes(data)
    content = json.loads((path / checkpoint.STRUCTURE).read_text())["content"]
    content["tensors_sha256"] = hashlib.sha256(data).hexdigest()
    (path / checkpoint.STRUCTURE).write_bytes(checkpoint.to_document(content))
    for main, word in [(train.main, f"--resume={run}"), (evaluate.main, run)]:
        err = refusal(monkeypatch, capsys, main, word)
        assert f"{part}." in err
        assert "holds NaN or infinity" in err
    assert read.iteration == 4


def test_stray_files_are_cleared(run, monkeypatch):
    folder = run / "checkpoints"
    (folder / ".partial-00000009").touch()
    (folder / ".trash-00000002").mkdir()
    (folder / ".trash-00000003").write_text("x")
    (folder / ".partial-x").symlink_to("/etc")
    (folder / "00000099").write_text("a file")
    (folder / "7").mkdir()
    assert checkpoint.iterations(folder) == [2, 4]
    assert status(monkeypatch, train.main, f"--resume={run}", "n_iters=6") == 0
    assert checkpoint.iterations(folder) == [4, 6]
    assert sorted(path.name for path in folder.iterdir()) == [
        "00000004", "00000006", "00000099", "7",
    ]  # fmt: skip


def test_metrics_that_are_damaged_are_refused_and_stay(run, monkeypatch, capsys):
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    damaged = "".join([lines[0], "[]\n", *lines[2:]])
    (run / "metrics.jsonl").write_text(damaged)
    err = refusal(monkeypatch, capsys, train.main, f"--resume={run}", "n_iters=5")
    assert "metrics.jsonl: line 2: the document must be an object, got a list" in err
    assert (run / "metrics.jsonl").read_text() == damaged


@pytest.mark.parametrize("kept", [0, 2])
def test_metrics_that_are_shorter_than_the_checkpoint_say_so(run, monkeypatch, capsys, kept):
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:kept]))
    assert status(monkeypatch, train.main, f"--resume={run}", "n_iters=5") == 0
    out = capsys.readouterr().out
    assert f"metrics.jsonl has {kept} of the 4 iterations that the checkpoint has" in out
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["iteration"] for row in rows] == [*range(1, kept + 1), 5]


def test_a_run_without_a_checkpoint_says_that_it_starts_again(run, monkeypatch, capsys):
    shutil.rmtree(run / "checkpoints")
    assert status(monkeypatch, train.main, f"--resume={run}") == 0
    assert "there is no checkpoint: starts again" in capsys.readouterr().out
