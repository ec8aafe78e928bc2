"""Streams of random numbers of several processes and of GPUs, without any of these."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from mg2l.core.distributed import world
from mg2l.training.random_state import (
    GLOBAL,
    gather_random_state,
    own_random_state,
    random_state,
    set_random_state,
)


class Gpus:
    """In place of ``torch.cuda``: a global stream for each of some GPUs."""

    def __init__(self, count: int) -> None:
        self.states = [torch.full((16,), index, dtype=torch.uint8) for index in range(count)]
        self.current = 0

    def get_rng_state(self, device: torch.device) -> torch.Tensor:
        return self.states[device.index].clone()

    def set_rng_state(self, state: torch.Tensor, device: torch.device) -> None:
        self.states[device.index] = state.clone()

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        self.current = device.index
        yield

    def manual_seed(self, seed: int) -> None:
        self.states[self.current] = torch.full((16,), seed % 251, dtype=torch.uint8)

    def values(self) -> list[int]:
        return [int(state[0]) for state in self.states]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Gpus:
    found = Gpus(3)
    monkeypatch.setattr("mg2l.training.random_state.torch.cuda", found)
    return found


def gpu(index: int) -> torch.device:
    return torch.device("cuda", index)


def test_the_gpu_of_the_run_alone_is_saved_and_restored(gpus):
    state = random_state({}, gpu(1))
    gpus.states[:] = [torch.full((16,), 90 + index, dtype=torch.uint8) for index in range(3)]
    assert set_random_state(state, {}, gpu(1)) == []
    assert gpus.values() == [90, 1, 92]


def test_the_stream_moves_to_the_gpu_of_the_resumed_run(gpus):
    state = random_state({}, gpu(2))
    assert set_random_state(state, {}, gpu(0)) == []
    assert gpus.values() == [2, 1, 2]


def test_earlier_checkpoints_hold_the_streams_of_all_gpus(gpus):
    state = random_state({}) | {"cuda": [torch.full((16,), k, dtype=torch.uint8) for k in (7, 8)]}
    assert set_random_state(state, {}, gpu(1)) == []
    assert gpus.values() == [0, 8, 2]
    assert set_random_state(state, {}, gpu(2), fresh=(1, 2)) == ["cuda"]
    assert gpus.values()[:2] == [0, 8]


def test_a_run_that_moves_to_a_gpu_has_a_fresh_stream_there(gpus):
    state = random_state({})
    assert state["cuda"] == []
    assert set_random_state(state, {}, gpu(1), fresh=(1, 2)) == ["cuda"]
    first = gpus.values()
    assert set_random_state(state, {}, gpu(1), fresh=(1, 3)) == ["cuda"]
    assert gpus.values() != first
    assert [gpus.values()[k] for k in (0, 2)] == [0, 2]


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes this process one of several, whose streams are those of the seeds 0, 1, ..."""

    def become(rank: int, size: int) -> None:
        monkeypatch.setattr(world, "rank", rank)
        monkeypatch.setattr(world, "size", size)

    def of_all(value: Any) -> list[Any]:
        states = []
        for rank in range(world.size):
            torch.manual_seed(rank)
            states.append(value | {"torch": torch.get_rng_state()})
        return states

    monkeypatch.setattr(world, "gather_objects", of_all)
    return become


def test_each_process_continues_with_its_own_global_streams(processes):
    processes(0, 3)
    torch.manual_seed(0)
    saved = gather_random_state(random_state({}))
    assert len(saved["others"]) == 2
    assert set(saved["others"][0]) == set(GLOBAL)
    for rank in range(3):
        processes(rank, 3)
        set_random_state(own_random_state(saved), {})
        drawn = torch.rand(2)
        torch.manual_seed(rank)
        assert torch.equal(drawn, torch.rand(2))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_with_another_number_of_processes_all_continue_with_the_main_ones(processes, size):
    processes(0, 3)
    torch.manual_seed(0)
    saved = gather_random_state(random_state({}))
    for rank in range(size):
        processes(rank, size)
        set_random_state(own_random_state(saved), {})
        drawn = torch.rand(2)
        torch.manual_seed(0)
        assert torch.equal(drawn, torch.rand(2))


def test_a_single_process_saves_nothing_more():
    assert "others" not in gather_random_state(random_state({}))
