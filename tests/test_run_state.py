"""States in checkpoints, bit for bit: everything that they may hold, optimisers, random streams."""

import math
import random
import struct
from typing import Any

import numpy as np
import pytest
import torch

from mg2l.training import checkpoint, tree
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
