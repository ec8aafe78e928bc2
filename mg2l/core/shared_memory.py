"""Messages between processes of one machine, through memory that they share.

A sum over TCP costs every process time of its core, which is then missing for the computation that
the sum overlaps with: here it costs a copy of the message and the addition.
"""

from __future__ import annotations

import ctypes
import os
import select
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import mg2l

if TYPE_CHECKING:
    from torch import Tensor
    from torch import distributed as dist

T = TypeVar("T")

LIBRARY = Path(mg2l.__file__).with_name("_C.abi3.so")
SLOTS = 4
"""Messages of a process that may be on their way at a time."""

_CAPACITY = 2**20  # of a slot, at first [B]
_LINE, _PAGE = 128, 4096  # of a processor's cache (at most), and of memory [B]
_LEFT = 2 * SLOTS  # place of the counter of processes that have left
_LOOK = 50_000_000  # between two looks whether all processes are still there [ns]
_POLL = 0.002  # between two looks at the store [s]


def is_available() -> bool:
    """Whether this system has what is needed: Linux, and mg2l with compiled operators."""
    return hasattr(os, "memfd_create") and hasattr(os, "pidfd_open") and LIBRARY.exists()


class SharedMemory:
    """Messages of W processes, each to all.

    Memory belongs to no file that could be left behind: it is gone with the last process.

    Args:
        store: where the processes meet; all build the object at the same time.
        rank: number of this process.
        size: W.

    Raises:
        OSError: the processes cannot reach each other's memory.
    """

    def __init__(self, store: dist.Store, rank: int, size: int) -> None:
        self.store, self.rank, self.size = store, rank, size
        library = ctypes.CDLL(str(LIBRARY))
        pointer, integer = ctypes.c_void_p, ctypes.c_int64
        self._set, self._await = library.mg2l_set_counter, library.mg2l_await_counters
        self._set.argtypes, self._set.restype = (pointer, integer), None
        self._await.argtypes, self._await.restype = (pointer, *[integer] * 4), integer
        store.set(f"process{rank}", str(os.getpid()))
        self.processes = [int(store.get(f"process{peer}")) for peer in range(size)]
        self._ends = select.poll()
        self._ranks: dict[int, int] = {}
        self._segments = 0
        try:
            for peer, process in enumerate(self.processes):
                self._watch(peer, process)
            self._segment = self._share(_CAPACITY)
        except OSError:
            if rank == 0:
                store.set("segment0", "")
            raise

    def start(self, x: Tensor) -> Callable[[Callable[[Tensor], T]], T]:
        """Begin to exchange tensors of one shape and dtype, a process's own being ``x``.

        All processes start the same exchanges in the same order, of which `SLOTS` can be on their
        way at a time.

        Returns:
            A function to call once. It waits for all processes, and returns what its argument makes
            of their tensors, ``[W, *x.shape]`` in the order of ranks, which must not be kept.

        Raises:
            RuntimeError: another process has ended.
        """
        count = x.numel() * x.element_size()
        if count > self._segment.capacity:  # in all processes alike
            self._segment = self._share(1 << (count - 1).bit_length())
        segment = self._segment
        segment.messages += 1
        number, slot = segment.messages, segment.messages % SLOTS
        posted, read = slot, SLOTS + slot
        self._wait(segment, read, number - SLOTS)
        messages = segment.slots[:, slot, :count].view(x.dtype)
        messages[self.rank].copy_(x.detach().reshape(-1))
        self._set(segment.address(posted, self.rank), number)

        def finish(use: Callable[[Tensor], T]) -> T:
            self._wait(segment, posted, number)
            used = use(messages.view(self.size, *x.shape))
            self._set(segment.address(read, self.rank), number)
            return used

        return finish

    def leave(self) -> None:
        """Take no part any more: those who wait for a message of this process fail."""
        self._set(self._segment.address(_LEFT, self.rank), 1)

    def _watch(self, peer: int, process: int) -> None:
        """Notice when a process ends: its descriptor becomes readable."""
        watched = os.pidfd_open(process)
        weakref.finalize(self, os.close, watched)
        self._ends.register(watched, select.POLLIN)
        self._ranks[watched] = peer

    def _share(self, capacity: int) -> _Segment:
        """Memory with slots of so many bytes, the same in all processes."""
        key = f"segment{self._segments}"
        self._segments += 1
        heads = -(-self.size * _LINE // _PAGE) * _PAGE
        length = heads + self.size * SLOTS * capacity
        if self.rank == 0:
            descriptor = os.memfd_create("mg2l")
            os.ftruncate(descriptor, length)
            segment = _Segment(f"/proc/self/fd/{descriptor}", length, heads, self.size, capacity)
            # Others open it by its number, and have done so when they have answered a message.
            weakref.finalize(segment, os.close, descriptor)
            self.store.set(key, str(descriptor))
            return segment
        while not self.store.check([key]):
            if (gone := self._gone()) is not None:
                raise RuntimeError(f"process {gone} has ended")
            time.sleep(_POLL)
        number = self.store.get(key).decode()
        if not number:
            raise OSError("process 0 has no memory to share")
        path = f"/proc/{self.processes[0]}/fd/{number}"
        return _Segment(path, length, heads, self.size, capacity)

    def _wait(self, segment: _Segment, counter: int, value: int) -> None:
        """Wait until this counter of all processes has reached a value."""
        first = segment.address(counter, 0)

        def missing(nanoseconds: int) -> bool:
            return bool(self._await(first, self.size, _LINE // 8, value, nanoseconds) >= 0)

        while missing(_LOOK):
            gone = self._gone(segment)
            if gone is not None and missing(0):  # it may have answered before it went
                raise RuntimeError(f"process {gone} has ended")

    def _gone(self, segment: _Segment | None = None) -> int | None:
        """A process that has ended or left, if any."""
        for watched, _ in self._ends.poll(0):
            return self._ranks[watched]
        if segment is not None:
            for peer in range(self.size):
                if segment.heads[peer, _LEFT]:
                    return peer
        return None


class _Segment:
    """Counters of each process, and slots of messages ``[W, SLOTS, bytes]``.

    A process has two counters for each slot, the number of its message there and that of the
    messages there that it has read, and one that says whether it has left.
    """

    def __init__(self, path: str, length: int, heads: int, size: int, capacity: int) -> None:
        import torch

        self.capacity, self.messages = capacity, 0
        os.close(os.open(path, os.O_RDWR))  # raises an OSError, as torch does not
        memory = torch.from_file(path, shared=True, size=length, dtype=torch.uint8)
        self.heads = memory[: size * _LINE].view(torch.int64).view(size, -1)
        self.slots = memory[heads:].view(size, SLOTS, capacity)

    def address(self, counter: int, rank: int) -> int:
        """Address of a counter of a process."""
        return self.heads.data_ptr() + rank * _LINE + 8 * counter
