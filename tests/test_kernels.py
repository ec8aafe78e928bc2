"""The choice between compiled operators and their definitions, for a whole run."""

import pytest
import torch
from method_helpers import TINY

from mg2l import ops
from mg2l.config.keys import Schema
from mg2l.ops import backend, native
from mg2l.training.learner import Learner
from mg2l.training.loop import iterate


def metrics(kernels: str, hidden: list[int], precision: str = "float32") -> list[dict[str, float]]:
    """Three iterations of a small run, flat."""
    schema = Schema("mpe-spread")
    values = {**TINY, "kernels": kernels, "hidden_sizes_mlp": hidden, "n_iters": 3}
    values["precision"] = precision
    learner = Learner(schema.build(schema.flatten(values)), torch.device("cpu"))
    learner.prepare()
    learner.take_times()
    rows = [iterate(learner, iteration) for iteration in range(3)]
    learner.close()
    flat = []
    for row in rows:
        row = {k: v for k, v in row.items() if not k.startswith(("time/", "env_steps_per_s"))}
        flat.append({k: v for k, v in row.items() if isinstance(v, (int, float))})
    return flat


@pytest.mark.parametrize("hidden", [[16], [16, 12]], ids=str)
def test_both_paths_give_the_same_training(hidden):
    native, plain = metrics("native", hidden), metrics("torch", hidden)
    for ours, theirs in zip(native, plain, strict=True):
        assert ours.keys() == theirs.keys()
        assert len(ours) > 20
        for name, value in ours.items():
            assert value == pytest.approx(theirs[name], rel=2e-2, abs=2e-3), name


def test_the_native_path_is_native_on_the_cpu(capsys):
    assert backend.choose("native", torch.device("cpu")) == backend.NATIVE
    assert capsys.readouterr().out == ""
    assert backend.choose("torch", torch.device("cpu")) == backend.TORCH


def test_what_is_not_compiled_for_a_device_is_computed_in_torch_and_said(capsys):
    chosen = backend.choose("auto", torch.device("xpu"))
    assert chosen == backend.TORCH
    said = capsys.readouterr().out
    names = ", ".join(sorted(ops.NAMES))
    assert said == f"not compiled for xpu, computed in plain torch: {names}\n"


def test_native_kernels_that_are_not_there_are_an_error():
    with pytest.raises(ValueError, match="kernels=native, but not compiled for xpu: clip_norms"):
        backend.choose("native", torch.device("xpu"))


def test_bfloat16_is_an_error_where_it_cannot_be_had(monkeypatch):
    with pytest.raises(ValueError, match="precision=bfloat16 needs operators compiled by GCC"):
        backend.choose("auto", torch.device("xpu"), "bfloat16")
    monkeypatch.setattr(native, "has_bfloat16", lambda: False)
    with pytest.raises(ValueError, match="precision=bfloat16 needs operators compiled by GCC"):
        backend.choose("native", torch.device("cpu"), "bfloat16")
    assert backend.choose("torch", torch.device("cpu"), "bfloat16").bfloat16


@pytest.mark.skipif(not native.has_bfloat16(), reason="a CPU without avx512_bf16")
def test_training_in_bfloat16_is_that_of_its_definition():
    ours, theirs, plain = (
        metrics(kernels, [16], precision)
        for kernels, precision in (
            ("native", "bfloat16"),
            ("torch", "bfloat16"),
            ("native", "float32"),
        )
    )
    assert ours != plain
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert value == pytest.approx(other[name], rel=5e-2, abs=1e-2), name


def test_every_operator_is_on_both_paths_and_in_the_dispatcher():
    assert set(backend.OPERATORS) == set(ops.NAMES)
    for name in ops.NAMES:
        assert hasattr(torch.ops.mg2l, name)
        assert getattr(backend.NATIVE, name) is getattr(ops, name)
        assert getattr(backend.TORCH, name).__name__ == name
