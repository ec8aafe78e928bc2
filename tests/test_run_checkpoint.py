"""Checkpoints: never half written, never trusted unread."""

import builtins
import io
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from mg2l.training import checkpoint
from mg2l.training.checkpoint import CheckpointError


def test_no_pickle_and_two_files(tmp_path):
    path = checkpoint.save(tmp_path, 5, {"w": torch.ones(3), "lr": 1e-3})
    assert path.name == "00000005"
    assert sorted(file.name for file in path.iterdir()) == ["state.json", "state.safetensors"]
    content = json.loads((path / "state.json").read_text())["content"]
    assert content["state"] == {"w": {"$tensor": "w"}, "lr": 1e-3}
    from safetensors.torch import load_file

    assert torch.equal(load_file(path / "state.safetensors")["w"], torch.ones(3))


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
def test_one_changed_byte_anywhere_is_noticed(tmp_path, name):
    state = {"w": torch.arange(3.0), "text": "äb", "x": -1.5, "nan": math.nan, "n": {1: None}}
    path = checkpoint.save(tmp_path, 1, state, about={"a": 1})
    file = path / name
    good = file.read_bytes()
    rng = random.Random(0)
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << rng.randrange(8)
        file.write_bytes(bad)
        with pytest.raises(CheckpointError, match=f"{name} is damaged"):
            checkpoint.load(path)
    file.write_bytes(good)
    checkpoint.load(path)


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
def test_files_cut_short_lengthened_or_missing(tmp_path, name):
    path = checkpoint.save(tmp_path, 1, {"w": torch.arange(3.0)})
    file = path / name
    good = file.read_bytes()
    for bad in (b"", good[: len(good) // 2], good[:-1], good + b"\n", good + good):
        file.write_bytes(bad)
        with pytest.raises(CheckpointError, match=f"{name} is damaged"):
            checkpoint.load(path)
    file.unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        checkpoint.load(path)
    shutil.rmtree(path)
    with pytest.raises(CheckpointError, match="the folder is missing"):
        checkpoint.load(path)


def test_files_of_two_checkpoints_do_not_mix(tmp_path):
    first = checkpoint.save(tmp_path, 1, {"w": torch.zeros(3)})
    second = checkpoint.save(tmp_path, 2, {"w": torch.ones(3)})
    shutil.copy(first / "state.safetensors", second / "state.safetensors")
    with pytest.raises(CheckpointError, match=r"state\.safetensors is damaged"):
        checkpoint.load(second)


@pytest.mark.parametrize("text", ["{}", "[]", "null", '{"content": {}, "sha256": ""}', "{" * 9999])
def test_foreign_files_are_refused(tmp_path, text):
    path = checkpoint.save(tmp_path, 1, {"w": torch.zeros(3)})
    (path / "state.json").write_text(text)
    with pytest.raises(CheckpointError, match=str(path)):
        checkpoint.load(path)


def test_another_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    path = checkpoint.save(tmp_path, 1, {})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has format 99, this version of mg2l reads 1 and 2"):
        checkpoint.load(path)


def test_damage_names_the_checkpoint_before_it(tmp_path):
    for iteration in (1, 2, 3):
        checkpoint.save(tmp_path, iteration, {"at": iteration}, keep=3)
    (tmp_path / "00000003" / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"before it is .*00000002: use --resume-previous"):
        checkpoint.load_last(tmp_path)
    (tmp_path / "00000002" / "state.safetensors").write_bytes(b"")
    found = checkpoint.load_last(tmp_path, previous=True)
    assert found is not None
    assert found.state == {"at": 1}
    assert checkpoint.iterations(tmp_path) == [1], "what lies after it will be written again"
    (tmp_path / "00000001" / "state.json").unlink()
    with pytest.raises(CheckpointError, match="there is no earlier checkpoint"):
        checkpoint.load_last(tmp_path, previous=True)


def test_a_whole_last_checkpoint_is_used_even_where_the_previous_one_may_be(tmp_path):
    for iteration in (1, 2):
        checkpoint.save(tmp_path, iteration, {"at": iteration})
    found = checkpoint.load_last(tmp_path, previous=True)
    assert found is not None
    assert found.iteration == 2
    assert checkpoint.iterations(tmp_path) == [1, 2]


def test_no_checkpoint_yet(tmp_path):
    assert checkpoint.load_last(tmp_path / "checkpoints") is None


def test_the_last_k_stay(tmp_path):
    for iteration in (5, 10, 15, 100):
        checkpoint.save(tmp_path, iteration, {}, keep=2)
    assert checkpoint.iterations(tmp_path) == [15, 100]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000015", "00000100"]
    with pytest.raises(ValueError, match="keep >= 1"):
        checkpoint.save(tmp_path, 101, {}, keep=0)


def test_an_iteration_can_be_written_again(tmp_path):
    checkpoint.save(tmp_path, 1, {"x": 1}, keep=1)
    path = checkpoint.save(tmp_path, 1, {"x": 2}, keep=1)
    assert checkpoint.load(path).state == {"x": 2}
    assert [file.name for file in tmp_path.iterdir()] == ["00000001"]


def test_later_checkpoints_are_of_a_past_given_up(tmp_path):
    for iteration in (1, 2, 3, 2):
        checkpoint.save(tmp_path, iteration, {}, keep=2)
    assert checkpoint.iterations(tmp_path) == [2]
    checkpoint.save(tmp_path, 4, {}, keep=2)
    assert checkpoint.iterations(tmp_path) == [2, 4]


def test_another_run_is_refused(tmp_path):
    path = checkpoint.save(tmp_path, 1, {}, about={"env.family": "mpe-spread", "gamma": 0.9})
    assert checkpoint.load(path, about={"env.family": "mpe-spread", "gamma": 0.9}).iteration == 1
    with pytest.raises(CheckpointError, match=r"it has gamma=0\.9, this run gamma=0\.8"):
        checkpoint.load(path, about={"env.family": "mpe-spread", "gamma": 0.8})
    with pytest.raises(CheckpointError, match="it has no layer_N, this run layer_N=1"):
        checkpoint.load(path, about={"layer_N": 1})


def test_other_sizes_are_refused(tmp_path):
    def state(width=4, moments=True, **more):
        return {
            "networks": {"actor": torch.zeros(2, width)},
            "optimiser": {0: {"step": torch.zeros(())}} if moments else {},
            "clocks": [1, 2], **more,
        }  # fmt: skip

    path = checkpoint.save(tmp_path, 1, state())
    assert checkpoint.load(path, template=state(moments=False)).iteration == 1
    assert checkpoint.load(path, template={"networks": {}}).iteration == 1
    for template, message in [
        (state(width=5), r"networks.actor is float32 \[2, 4\], expected float32 \[2, 5\]"),
        (state(extra=1), "extra is missing"),
        ({"networks": {"critic": torch.zeros(1)}}, "networks.critic is missing"),
        ({"networks": {"actor": torch.zeros(2, 4)}, "optimiser": {1: {}}}, "optimiser.1 is miss"),
        ({"optimiser": {0: {"exp_avg": {}, "step": torch.zeros(())}}}, "optimiser.0.exp_avg is m"),
        ({**state(), "clocks": [1]}, "clocks has length 2, expected 1"),
        ({**state(), "networks": torch.zeros(1)}, "networks is a group, expected float32"),
        (
            {**state(), "networks": {"actor": torch.zeros(2, 4).double()}},
            "expected float64",
        ),
    ]:
        with pytest.raises(CheckpointError, match=message):
            checkpoint.load(path, template=template)


def test_networks_for_a_warm_start(tmp_path):
    networks = {"actor": torch.ones(2)}
    for iteration in (1, 2):
        path = checkpoint.save(
            tmp_path / "checkpoints", iteration, {"networks": networks, "x": torch.zeros(9)}
        )
    for where in (tmp_path, tmp_path / "checkpoints", path):
        assert torch.equal(checkpoint.load_networks(where, networks)["actor"], torch.ones(2))
    with pytest.raises(CheckpointError, match=r"networks.actor is float32 \[2\]"):
        checkpoint.load_networks(tmp_path, {"actor": torch.ones(3)})
    with pytest.raises(CheckpointError, match="no checkpoint lies there"):
        checkpoint.load_networks(tmp_path / "nowhere")
    checkpoint.save(tmp_path / "other", 1, {"x": 1})
    with pytest.raises(CheckpointError, match="holds no networks"):
        checkpoint.load_networks(tmp_path / "other")


WRITER = """
import sys, torch
from mg2l.training import checkpoint
iteration = 0
while True:
    iteration += 1
    state = {"x": torch.full((20000,), iteration)}
    checkpoint.save(sys.argv[1], iteration // 2, state, keep=2)  # each iteration twice
    print(iteration, flush=True)
"""


def test_kill_at_any_moment_never_loses_the_last_good_checkpoint(tmp_path):
    rng = random.Random(0)
    folder = tmp_path / "checkpoints"
    leftovers = 0
    for _ in range(5):
        shutil.rmtree(folder, ignore_errors=True)
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "1\n"
            time.sleep(rng.uniform(0.0, 0.15))
            writer.send_signal(signal.SIGKILL)
            done = [1, *map(int, writer.stdout.read().split())][-1]
        leftovers += len([path for path in folder.iterdir() if path.name.startswith(".")])
        checkpoint.clean(folder)
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]
        newest = 0
        for iteration in checkpoint.iterations(folder):
            values = checkpoint.load(checkpoint.path_of(folder, iteration)).state["x"]
            assert bool((values == values[0]).all())
            newest = max(newest, int(values[0]))
        assert newest in (done, done + 1)
    assert leftovers > 0, "no write was ever cut short: the test shows nothing"


@pytest.mark.parametrize("step", range(40))
def test_death_at_every_step_of_a_save(tmp_path, monkeypatch, step):
    """Stop the world before the n-th call that touches the disk, as a power failure would."""
    checkpoint.save(tmp_path, 1, {"x": 1}, keep=1)
    checkpoint.save(tmp_path, 2, {"x": 2}, keep=2)

    class Death(BaseException):
        pass

    calls = 0

    def dying(function):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls > step:
                raise Death
            return function(*args, **kwargs)

        return call

    for owner, names in [(os, "fsync unlink rmdir rename replace mkdir"), (io, "open"),
                         (builtins, "open"), (shutil, "rmtree")]:  # fmt: skip
        for name in names.split():
            monkeypatch.setattr(owner, name, dying(getattr(owner, name)))
    died = False
    try:
        checkpoint.save(tmp_path, 2, {"x": 3}, keep=1)  # replaces one and drops one
    except Death:
        died = True
    monkeypatch.undo()
    found = checkpoint.load_last(tmp_path)
    assert found is not None
    assert found.iteration == 2
    assert found.state["x"] == (3 if not died else found.state["x"])
    assert found.state["x"] in (2, 3)
    if step == 0:
        assert died
    if step == 39:
        assert not died
