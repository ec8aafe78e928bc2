"""Runs that are damaged or hostile take nothing but themselves out of a table or a report."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_files import write_run

from mg2l import compare
from mg2l.core.files import FileError
from mg2l.evaluation import results
from mg2l.report import __main__ as report

EVALUATION: dict[str, Any] = {
    "iteration": 30,
    "results": [
        {
            "split": split,
            "mode": mode,
            "shots": shots,
            "sampling": "uniform",
            "return": value,
            "by_task": {"left": {"return": value}, "right": {"return": value + 1.0}},
        }
        for split in ("test", "train")
        for mode, shots, value in (("shots", 0, 1.0), ("shots", 2, 2.0), ("random", 0, -3.0))
    ],
    "mismatch": {
        "test": {"shots": 2, "tasks": ["left", "right"], "returns": [[1.0, 2.0], [3.0, 4.0]]}
    },
}
PROBE: dict[str, Any] = {
    "iteration": 30,
    "tasks": ["left", "right"],
    "contexts": {
        "1": {
            "global": {"linear": 0.5, "nearest": 0.5, "silhouette": 0.1, "r2": float("nan")},
            "agent_0": {"linear": 0.5, "nearest": 0.5, "silhouette": 0.1},
            "mi/global": 0.3,
        }
    },
    "maps": {"global": {"pca": [[[0.0, 1.0], [1.0, 0.0]], [[2.0, 1.0], [1.0, 2.0]]]}},
    "priorities": [[[1.0, 1.0]], [[0.5, 1.5]]],
}
ROW = {"iteration": 1, "env_steps": 3200, "return": 1.0}


def changed(value: Any, *path: Any, to: Any) -> bytes:
    """JSON of a value in which another stands at a path."""
    copied = json.loads(json.dumps(value))
    place = copied
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return json.dumps(copied).encode()


def rows(*changes: dict[str, Any]) -> bytes:
    return "".join(json.dumps(ROW | change) + "\n" for change in changes).encode()


DEEP = b'{"iteration": ' + b"[" * 100_000
BOMB = b"a: &a [x, x]\n" + b"".join(b"%c: &%c [*%c, *%c]\n" % (k + 1, k + 1, k, k) for k in b"abcd")

UNUSABLE = {
    "metrics.jsonl": {
        "not an object": (b"[1]\n", "line 1: the document must be an object, got a list"),
        "not JSON": (b"{]\n" + rows({}), "line 1: .*not valid JSON"),
        "not UTF-8": (b'{"iteration": "\xff"}\n', "not valid JSON"),
        "deep": (DEEP + b"\n", "nested too deep"),
        "no steps": (b'{"iteration": 1}\n', "env_steps is missing"),
        "steps in words": (rows({"env_steps": "many"}), "env_steps must be a number, got a text"),
        "true iteration": (rows({"iteration": True}), "iteration must be an integer"),
        "huge integer": (b'{"iteration": 1, "env_steps": 1%s}\n' % (b"0" * 5000), "not valid JSON"),
        "huge number": (
            rows({"return": 1e308}),
            "return must be a number up to 1e.100, got 1e.308",
        ),
        "NaN": (b'{"iteration": 1, "env_steps": 1, "loss": {"v": NaN}}\n', "loss/v must be"),
        "infinite steps": (b'{"iteration": 1, "env_steps": Infinity}\n', "env_steps must be"),
        "return in words": (rows({"return": "good"}), "return must be a number"),
        "tasks in a list": (rows({"return_by_task": [1]}), "return_by_task must be an object"),
        "task in words": (
            rows({"return_by_task": {"0": "a"}}),
            "return_by_task.0 must be a number",
        ),
        "standing still": (rows({}, {"iteration": 2}), "must grow from line to line"),
        "backwards": (rows({"iteration": 2}, {"env_steps": 9999}), "must grow from line to line"),
    },
    "config.yaml": {
        "aliases": (BOMB, "aliases such as .a are not allowed"),
        "a list": (b"- 1\n", "must hold 'key: value' lines, got a list"),
        "list key": (b"[a]: 1\n", "a key must be a word"),
        "deep": (b"a: " + b"[" * 5000, "nested too deep"),
        "not UTF-8": (b"a: \xff\n", "is not UTF-8"),
        "seed in words": (b"seed: first\n", "seed must be an integer, got a text"),
        "iterations in words": (b"n_iters: many\n", "n_iters must be an integer, got a text"),
        "not YAML": (b"a: [\n", "not valid YAML"),
        "code": (b"a: !!python/object/apply:os.system [id]\n", "tags such as"),
    },
}
MEASURED = {
    "evaluation.json": {
        "cut short": (b'{"results": [', "not valid JSON"),
        "a list": (b"[]", "must be an object, got a list"),
        "deep": (DEEP, "nested too deep"),
        "results": (changed(EVALUATION, "results", to={"a": 1}), "results must be a list"),
        "no split": (b'{"results": [{}]}', r"results\[0\].split is missing"),
        "return": (
            changed(EVALUATION, "results", 1, "return", to="2"),
            r"\[1\].return must be a n",
        ),
        "NaN": (changed(EVALUATION, "results", 1, "return", to=float("nan")), "got NaN or larger"),
        "huge": (
            changed(EVALUATION, "results", 0, "by_task", "left", "return", to=1e200),
            "larger",
        ),
        "tasks": (
            changed(EVALUATION, "results", 0, "by_task", to=[1]),
            "by_task must be an object",
        ),
        "mismatch": (changed(EVALUATION, "mismatch", to=[]), "mismatch must be an object"),
        "shape": (
            changed(EVALUATION, "mismatch", "test", "returns", to=[[1.0]]),
            "mismatch.test.returns must be 2 x 2 numbers, got 1 x 1",
        ),
        "ragged": (
            changed(EVALUATION, "mismatch", "test", "returns", 0, to=[1.0]),
            "got lists that differ",
        ),
    },
    "probe.json": {
        "a text": (b'"probe"', "must be an object, got a text"),
        "tasks": (changed(PROBE, "tasks", to=None), "tasks must be a list, got null"),
        "contexts": (changed(PROBE, "contexts", "1", to=1), "contexts.1 must be an object"),
        "maps": (changed(PROBE, "maps", "global", to=["pca"]), "maps.global must be an object"),
        "map": (
            changed(PROBE, "maps", "global", "pca", to=[[[0.0, 1.0]]]),
            "maps.global.pca must be 2 x any x 2 numbers, got 1 x 1 x 2",
        ),
        "priorities": (changed(PROBE, "priorities", to=[[[1.0]]]), "priorities must be 2 x any"),
    },
}


def cases(files: dict[str, dict[str, tuple[bytes, str]]]) -> list[Any]:
    return [
        pytest.param(file, *held[name], id=f"{file}: {name}")
        for file, held in files.items()
        for name in held
    ]


@pytest.mark.parametrize(("file", "data", "said"), cases(UNUSABLE))
def test_a_run_that_cannot_be_used_is_skipped(
    tmp_path: Path, file: str, data: bytes, said: str
) -> None:
    whole = [write_run(tmp_path, seed=seed) for seed in (0, 1)]
    bad = write_run(tmp_path, seed=2)
    (bad / file).write_bytes(data)
    runs, skipped = results.find([tmp_path])
    assert [run.folder for run in runs] == whole
    with pytest.raises(FileError, match=said):
        results.read(bad)
    assert len(skipped) == 1
    assert skipped[0].startswith(f"skipped: {bad / file}")
    assert "\n" not in skipped[0]


@pytest.mark.parametrize(("file", "data", "said"), cases(MEASURED))
def test_measurements_that_cannot_be_used_are_skipped(
    tmp_path: Path, file: str, data: bytes, said: str
) -> None:
    bad = write_run(tmp_path)
    (bad / "evaluation.json").write_text(json.dumps(EVALUATION))
    (bad / "probe.json").write_text(json.dumps(PROBE))
    (run,), skipped = results.find([tmp_path], measured=True)
    assert skipped == []
    assert run.evaluation is not None
    assert run.probe is not None
    (bad / file).write_bytes(data)
    (run,), (line,) = results.find([tmp_path], measured=True)
    assert (run.evaluation is None, run.probe is None) == (
        file == "evaluation.json", file == "probe.json",
    )  # fmt: skip
    assert re.match(rf"skipped: {re.escape(str(bad / file))}: .*{said}", line)


def test_the_last_line_may_be_cut_short(tmp_path: Path) -> None:
    folder = write_run(tmp_path, iterations=3)
    path = folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    (run,), skipped = results.find([tmp_path])
    assert ([row["iteration"] for row in run.rows], skipped) == ([1, 2], [])


# Nothing leads out of a run.


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.yaml", "evaluation.json", "probe.json"])
def test_links_out_of_a_run_are_not_followed(tmp_path: Path, name: str) -> None:
    folder = write_run(tmp_path / "runs", seed=0, config={"a": 1})
    other = write_run(tmp_path / "elsewhere", seed=1, config={"a": 2})
    (other / "evaluation.json").write_text(json.dumps(EVALUATION))
    (other / "probe.json").write_text(json.dumps(PROBE))
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(other / name)
    _, (line,) = results.find([tmp_path / "runs"], measured=True)
    assert line == f"skipped: {folder / name}: is a link that leads out of {folder}"


def test_pipes_and_folders_are_not_read(tmp_path: Path) -> None:
    write_run(tmp_path, seed=0)
    for seed, make in enumerate([os.mkfifo, os.mkdir], 1):
        path = write_run(tmp_path, seed=seed) / "metrics.jsonl"
        path.unlink()
        make(path)
    runs, skipped = results.find([tmp_path])
    assert [run.seed for run in runs] == [0]
    assert len(skipped) == 1  # a folder of that name is no run
    assert "no regular file" in skipped[0]


# Commands.


def words(monkeypatch: pytest.MonkeyPatch, main: Callable[[], None], *argv: object) -> None:
    monkeypatch.setattr("sys.argv", ["command", *map(str, argv)])
    main()


def test_many_bad_runs_beside_a_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write_run(tmp_path, seed=0, returns=7.0)
    (good / "evaluation.json").write_text(json.dumps(EVALUATION))
    (good / "probe.json").write_text(json.dumps(PROBE))
    count = 0
    for file, held in {**UNUSABLE, **MEASURED}.items():
        for data, _ in held.values():
            count += 1
            (write_run(tmp_path, seed=count) / file).write_bytes(data)
    words(monkeypatch, compare.main, tmp_path / "mpe-spread")
    out = capsys.readouterr().out
    assert out.count("skipped: ") == count
    words(monkeypatch, report.main, tmp_path)
    out = capsys.readouterr().out
    assert out.count("skipped: ") == count
    text = (tmp_path / "report.html").read_text()
    assert text.count("<li>skipped: ") == count
    assert "Few shots" in text


def test_when_nothing_can_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (write_run(tmp_path) / "metrics.jsonl").write_bytes(b"[]\n")
    for main in (compare.main, report.main):
        with pytest.raises(SystemExit) as caught:
            words(monkeypatch, main, tmp_path)
        assert caught.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: no run lies below {tmp_path}; skipped: ")


def mutated(value: Any, rng: random.Random) -> Any:
    """A value in which something somewhere is another thing."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        if rng.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: mutated(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        if rng.random() < 0.15:
            return value[:at] + value[at + 1 :]
        return [*value[:at], mutated(value[at], rng), *value[at + 1 :]]
    strange: tuple[Any, ...] = (
        None,
        True,
        -1,
        0,
        10**30,
        1e300,
        float("nan"),
        "",
        "x",
        "<b>",
        [],
        {},
        [[]],
        {"a": 1},
    )
    return rng.choice(strange)


def enlarged(value: Any) -> Any:
    """A value whose numbers are integers that NumPy has no type for."""
    if isinstance(value, dict):
        kept = ("iteration", "env_steps", "shots")
        return {k: v if k in kept else enlarged(v) for k, v in value.items()}
    if isinstance(value, list):
        return [enlarged(item) for item in value]
    return 10**30 if isinstance(value, float) else value


def test_whatever_changes_in_a_run_a_report_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(0)
    config = {"ppo": {"gamma": 0.9}, "env": {"n_agents": 2}, "n_iters": 3}
    for seed in range(60):
        folder = write_run(tmp_path, rng.choice(["mg2l", "oracle"]), seed, config=config)
        row = {"return_by_task": {"0": 1.0, "1": 2.0}, "mi/global": 0.1, "eval/test_0_shots": 1.0}
        lines = [ROW | row | {"iteration": k, "env_steps": 100 * k} for k in (1, 2, 3)]
        files = {"evaluation.json": EVALUATION, "probe.json": PROBE, "metrics.jsonl": lines}
        name = rng.choice([*files])
        if seed == 1:
            files = {file: enlarged(value) for file, value in files.items()}
        elif seed:
            for _ in range(rng.choice([1, 1, 3])):
                files[name] = mutated(files[name], rng)
        for file, value in files.items():
            several = file == "metrics.jsonl" and isinstance(value, list)
            texts = map(json.dumps, value) if several else [json.dumps(value)]
            (folder / file).write_text("".join(f"{text}\n" for text in texts))
    words(monkeypatch, compare.main, tmp_path, f"--plot={tmp_path / 'curves.png'}")
    words(monkeypatch, report.main, tmp_path)
    assert (tmp_path / "report.html").stat().st_size > 1e6
