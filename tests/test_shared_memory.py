"""Messages through memory that processes of one machine share."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import FileStore

from mg2l.core import shared_memory
from mg2l.core.distributed import World
from mg2l.core.shared_memory import SLOTS, SharedMemory

SIZE = 3
pytestmark = pytest.mark.skipif(not shared_memory.is_available(), reason="needs Linux")


def together(work: Callable[[FileStore, int], Any], folder: Path) -> list[Any]:
    """What ``work`` returns in each of three processes; None of one that was killed."""
    context = multiprocessing.get_context("spawn")
    ends, processes = [], []
    for rank in range(SIZE):
        ours, theirs = context.Pipe(duplex=False)
        processes.append(context.Process(target=answer, args=(work, folder, rank, theirs)))
        processes[-1].start()
        theirs.close()
        ends.append(ours)
    try:
        results = []
        for ours in ends:
            assert ours.poll(120), "a process waits for ever"
            try:
                results.append(ours.recv())
            except EOFError:
                results.append(None)
    finally:
        for process in processes:
            process.kill()
            process.join()
    return results


def answer(work: Callable[[FileStore, int], Any], folder: Path, rank: int, pipe: Any) -> None:
    torch.set_num_threads(1)
    pipe.send(work(FileStore(str(folder / "store"), SIZE), rank))


def message(rank: int, number: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    return (torch.arange(count) % 50 + 3 * rank + number).to(dtype)


def exchange(store: FileStore, rank: int) -> int:
    """Messages of all sizes, some of which need more memory, and as many at a time as may be."""
    memory = SharedMemory(store, rank, SIZE)
    started: list[Any] = []
    dtypes = (torch.float32, torch.int64, torch.float64, torch.bfloat16)
    for number, count in enumerate([1, 0, 70, 41_000, 5, 600_000, 3, 2_000_000, 9, 9, 9, 2]):
        dtype = dtypes[number % len(dtypes)]
        finish = memory.start(message(rank, number, count, dtype).view(1, -1))
        started.append((number, count, dtype, finish))
        if len(started) == SLOTS:  # the latest first, which need not wait for the others
            for number, count, dtype, finish in reversed(started):
                found = finish(torch.clone)
                assert found.shape == (SIZE, 1, count)
                for peer in range(SIZE):
                    assert torch.equal(found[peer, 0], message(peer, number, count, dtype))
            started.clear()
    total = 0
    for number in range(3000):  # none may be overwritten before all have read it
        total += int(memory.start(torch.full((17,), rank + number))(torch.sum))
    return total


def test_every_process_gets_the_messages_of_all(tmp_path):
    total = sum(17 * (rank + number) for number in range(3000) for rank in range(SIZE))
    assert together(exchange, tmp_path) == [total] * SIZE


def killed(store: FileStore, rank: int) -> str:
    memory = SharedMemory(store, rank, SIZE)
    memory.start(torch.ones(3))(torch.sum)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(RuntimeError) as error:
        memory.start(torch.ones(3))(torch.sum)
    return str(error.value)


def test_a_process_that_is_killed_is_missed(tmp_path):
    found = together(killed, tmp_path)
    assert found[1] is None
    assert "process 1 has ended" in (found[0], found[2])
    # Who waits for one that has given up meanwhile may name that one.
    assert set(found) <= {None, *(f"process {rank} has ended" for rank in range(SIZE))}


def left(store: FileStore, rank: int) -> Any:
    memory = SharedMemory(store, rank, SIZE)
    finish = memory.start(torch.ones(3))
    if rank == 1:
        memory.leave()
        store.set("left", "")
        store.wait(["missed"])
        return None
    store.wait(["left"])
    total = float(finish(torch.sum))  # sent before it left
    with pytest.raises(RuntimeError, match="process 1 has ended"):
        memory.start(torch.ones(3))(torch.sum)
    store.add("missing", 1)
    if rank == 0:
        while store.add("missing", 0) < SIZE - 1:
            time.sleep(0.01)
        store.set("missed", "")
    return total


def test_one_that_has_left_is_missed_though_it_lives(tmp_path):
    assert together(left, tmp_path) == [9.0, None, 9.0]


def refused(store: FileStore, rank: int) -> bool:
    def refuse(*_: Any) -> int:
        raise OSError("no memory")

    if rank == 0:
        os.memfd_create = refuse  # type: ignore[assignment]
    world = World()
    world.rank, world.size = rank, SIZE
    return world._share_memory(store) is None


def hidden(store: FileStore, rank: int) -> bool:
    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError("of another user")

    if rank == 2:
        os.open = refuse
    world = World()
    world.rank, world.size = rank, SIZE
    return world._share_memory(store) is None


@pytest.mark.parametrize("work", [refused, hidden])
def test_without_memory_of_one_all_go_without(tmp_path, work):
    assert together(work, tmp_path) == [True] * SIZE
