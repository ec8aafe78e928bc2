"""Checkpoints: bit for bit, never half written, never trusted unread."""

import builtins
import io
import json
import math
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
import torch

from mg2l.training import checkpoint, tree
from mg2l.training.checkpoint import CheckpointError
from mg2l.training.random_state import Generator, random_state, set_random_state

TORCH_DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip
NUMPY_DTYPES = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?", "c8"]


def same(one, other):
    """Equality of type, structure and every bit."""
    if isinstance(one, torch.Tensor):
        return (
            isinstance(other, torch.Tensor)
            and (one.dtype, one.shape) == (other.dtype, other.shape)
            and one.contiguous().view(-1).view(torch.uint8).equal(
                other.contiguous().view(-1).view(torch.uint8)
            )
        )  # fmt: skip
    if isinstance(one, (np.ndarray, np.generic)):
        return (
            type(one) is type(other)
            and (one.dtype, one.shape) == (other.dtype, other.shape)
            and one.tobytes() == other.tobytes()
        )
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return struct.pack(">d", one) == struct.pack(">d", other)
    return one == other


def random_tree(rng, depth=4):
    """A nested state with everything that a checkpoint may hold."""
    if depth and rng.random() < 0.6:
        size = rng.randrange(5)
        inner = [random_tree(rng, depth - 1) for _ in range(size)]
        kind = rng.randrange(4)
        if kind == 0:
            return inner
        if kind == 1:
            return tuple(inner)
        names = ["a", "b.c", "$tensor", "$", "", "é\n\"", "0", "weight"]  # fmt: skip
        keys = rng.sample(names, size) if kind == 2 else rng.sample([0, 1, "1", "0", -7, 9], size)
        return dict(zip(keys, inner, strict=True))
    shape = [rng.randrange(4) for _ in range(rng.randrange(4))]
    size = int(np.prod(shape))
    kind = rng.randrange(9)
    if kind <= 1:
        dtype = rng.choice(TORCH_DTYPES)
        if dtype == torch.bool:
            return torch.tensor([rng.random() < 0.5 for _ in range(size)]).bool().view(shape)
        width = torch.empty(0, dtype=dtype).element_size()
        raw = torch.tensor(list(rng.randbytes(size * width)), dtype=torch.uint8)
        return raw.view(dtype).view(shape)
    if kind <= 3:
        dtype = np.dtype(rng.choice(NUMPY_DTYPES))
        octets = np.frombuffer(rng.randbytes(size * dtype.itemsize), np.uint8)
        array = (octets & 1).view("?") if dtype == "?" else octets.view(dtype)
        array = array.reshape(shape).copy()
        return array[(0,) * len(shape)] if size and rng.random() < 0.3 else array
    return [
        lambda: rng.choice([None, True, False]),
        lambda: rng.choice([0, -1, rng.getrandbits(128), -rng.getrandbits(70)]),
        lambda: rng.choice([0.0, -0.0, math.inf, -math.inf, math.nan, 5e-324, rng.gauss(0, 1e9)]),
        lambda: rng.choice(["", "text", "\ud800", "ü\x00\n"]),
        lambda: struct.unpack(">d", rng.randbytes(8))[0],
    ][kind - 4]()


@pytest.mark.parametrize("seed", range(60))
def test_states_round_trip_bit_for_bit(tmp_path, seed):
    rng = random.Random(seed)
    state = {"one": random_tree(rng), "two": random_tree(rng), "three": random_tree(rng)}
    path = checkpoint.save(tmp_path, seed, state, about={"seed": seed, "sizes": [1, 2]})
    read = checkpoint.load(path)
    assert same(read.state, state)
    assert (read.iteration, read.about) == (seed, {"seed": seed, "sizes": [1, 2]})


def test_the_comparison_can_fail():
    one = {"a": [1.0, torch.zeros(2), np.zeros(2, np.float32)]}
    assert same(one, {"a": [1.0, torch.zeros(2), np.zeros(2, np.float32)]})
    for other in (
        {"a": [1, torch.zeros(2), np.zeros(2, np.float32)]},
        {"a": [1.0, torch.zeros(2, dtype=torch.int32), np.zeros(2, np.float32)]},
        {"a": [1.0, -torch.zeros(2), np.zeros(2, np.float32)]},
        {"a": [1.0, torch.zeros(2), -np.zeros(2, np.float32)]},
        {"a": (1.0, torch.zeros(2), np.zeros(2, np.float32))},
    ):
        assert not same(one, other)


def test_views_shared_and_strided_tensors(tmp_path):
    base = torch.arange(24.0)
    strided = np.arange(12.0).reshape(3, 4).T[::2]
    state = {
        "base": base, "same": base, "slice": base[3:7], "transposed": base.view(4, 6).t(),
        "expanded": base[:1].expand(5), "strided": strided,
        "parameter": torch.nn.Parameter(torch.ones(2)), "empty": torch.zeros(0, 3), "none": {},
    }  # fmt: skip
    read = checkpoint.load(checkpoint.save(tmp_path, 1, state)).state
    for key, value in state.items():
        assert read[key] is not value or value == {}
        if isinstance(value, torch.Tensor):
            assert torch.equal(read[key], value)
    assert np.array_equal(read["strided"], strided)
    read["base"][0] = -1.0  # what was read can be written to, and shares nothing
    assert read["same"][0] == 0.0
    read["strided"][0, 0] = -1.0
    assert base[0] == 0.0


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": [{"b": object()}]}, "a.0.b: object"),
        ({"a": {1.5: 3}}, "a: keys must be str or int, got 1.5"),
        ({"a": {True: 3}}, "a: keys must be str or int, got True"),
        ({"a": np.array(["x"])}, "a: arrays of <U1"),
        ({"a": np.array([None])}, "a: arrays of object"),
        ({"a": {1, 2}}, "a: set"),
    ],
)
def test_what_cannot_be_saved_is_named_and_leaves_nothing(tmp_path, value, path):
    with pytest.raises(TypeError, match=path):
        checkpoint.save(tmp_path / "c", 1, value)
    assert checkpoint.iterations(tmp_path / "c") == []
    assert list((tmp_path / "c").iterdir()) == []


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


def test_an_adam_continues_bit_for_bit(tmp_path):
    def build():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 1))
        return model, torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=1e-3)

    def train(model, optimiser, steps, generator):
        for _ in range(steps):
            optimiser.param_groups[0]["lr"] *= 0.9
            x = torch.randn(4, 3) + torch.tensor(generator.normal(size=3)).float()
            loss = model(x).square().sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    model, optimiser = build()
    generator = np.random.default_rng(5)
    train(model, optimiser, 3, generator)
    state = {
        "networks": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "random": random_state({"tasks": generator}),
    }
    path = checkpoint.save(tmp_path, 3, state)
    train(model, optimiser, 4, generator)

    other, other_optimiser = build()
    other_generator = np.random.default_rng(99)
    read = checkpoint.load(path).state
    assert same(read["optimiser"], checkpoint.load(path).state["optimiser"])
    other.load_state_dict(read["networks"])
    other_optimiser.load_state_dict(read["optimiser"])
    set_random_state(read["random"], {"tasks": other_generator})
    train(other, other_optimiser, 4, other_generator)
    assert same(dict(other.state_dict()), dict(model.state_dict()))
    assert same(other_optimiser.state_dict(), optimiser.state_dict())


def test_every_stream_of_random_numbers_continues(tmp_path):
    arrays = {
        "pcg": np.random.default_rng(1),
        "mt": np.random.Generator(np.random.MT19937(2)),
        "philox": np.random.Generator(np.random.Philox(3)),
    }
    own = torch.Generator().manual_seed(4)
    streams: dict[str, Generator] = {**arrays, "torch": own}

    def draw():
        return [
            [torch.rand(3), torch.rand(3, generator=own)],
            # an odd number of 32-bit words and of Gaussians leaves one half of a pair behind
            [stream.integers(1 << 31, size=3, dtype=np.uint32) for stream in arrays.values()],
            [stream.normal(size=3) for stream in arrays.values()],
            [random.random(), random.gauss(0, 1)],
            np.random.standard_normal(3),  # noqa: NPY002
        ]

    draw()
    path = checkpoint.save(tmp_path, 1, random_state(streams))
    expected = draw()
    assert not same(draw(), expected)
    set_random_state(checkpoint.load(path).state, streams)
    assert same(draw(), expected)
    with pytest.raises(ValueError, match="generators must be"):
        set_random_state(random_state(streams), {})


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "older"])
def test_a_stream_of_another_device_is_fresh(tmp_path, recorded):
    """A GPU's state has 16 bytes, a CPU's 5,056; older checkpoints do not record the device."""
    stream = torch.Generator().manual_seed(4)
    state = random_state({"actions": stream, "tasks": np.random.default_rng(1)})
    assert state["devices"] == {"actions": "cpu"}
    state["generators"]["actions"] = torch.zeros(16, dtype=torch.uint8)
    state["devices"] = {"actions": "cuda"}
    if not recorded:
        del state["devices"]
    read = checkpoint.load(checkpoint.save(tmp_path, 3, state)).state

    def first(seed, iteration):
        own, tasks = torch.Generator(), np.random.default_rng(9)
        streams: dict[str, Any] = {"actions": own, "tasks": tasks}
        assert set_random_state(read, streams, fresh=(seed, iteration)) == ["actions"]
        assert tasks.random() == np.random.default_rng(1).random()
        return torch.rand(3, generator=own).tolist()

    assert first(1, 3) == first(1, 3)
    assert len({tuple(first(*fresh)) for fresh in ((1, 3), (1, 4), (2, 3))}) == 3


def test_the_rest_of_the_structure_comparison():
    assert tree.first_difference({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}}) == "a.c is not known"
    assert tree.first_difference({"a": 1, "b": 1}, {"a": 1, "b": 2.5}) is None
    for saved, kind in [(None, "NoneType"), ("1", "str"), (True, "bool"), (1.0, "float")]:
        difference = tree.first_difference({"a": saved}, {"a": 1})
        assert difference == f"a is a {kind}, expected a int"
    assert tree.first_difference({"a": np.zeros(3)}, {"a": None}) is None
    assert tree.first_difference([{"x": np.zeros(3)}], [{"x": np.zeros(4)}]) == (
        "0.x is float64 [3], expected float64 [4]"
    )
