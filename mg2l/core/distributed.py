"""Data-parallel training: what the processes of one run exchange.

``torchrun`` starts W processes. Every number of a run (environments, batches, updates) is that of
the whole run; a process owns an equal part of the rows. All hold the same networks, replay and
random streams: each draws the random numbers of all rows and keeps its own, so that results do not
depend on W, up to the order in which floats are summed. With a single process, every call here
returns what it was given.

Losses are means over own rows; gradients are summed over processes and divided by W where each
process owns as many rows as any other.

Configurations are read with this module but without torch, which is imported where tensors are
exchanged.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from mg2l.core.errors import RunError
from mg2l.core.schema import ConfigError
from mg2l.core.shared_memory import SharedMemory, is_available

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch import distributed as dist

    Rows = TypeVar("Rows", Tensor, np.ndarray)

T = TypeVar("T")

_POLL = 0.01  # between two looks at the store [s]
_GRACE = 5.0  # that a process has to say why it fails, once others notice that it has [s]


class PeerError(RunError, RuntimeError):
    """Another process of the run has ended, so that this one cannot continue."""


class World:
    """The processes of this run; a single one until `connect` finds others.

    Attributes:
        size: W, number of processes.
        rank: number of this process, from 0.
        local_rank: its number on its machine.
        local_size: processes on its machine.
        reductions: messages since `take_counts`, each a sum or a gather over all processes.
        bytes: of this process's own part of them.
        seconds: waited for them [s].
    """

    def __init__(self) -> None:
        self.size, self.rank = 1, 0
        self.local_size, self.local_rank = 1, 0
        self.reductions, self.bytes, self.seconds = 0, 0, 0.0
        self._repeats = 1
        self._store: Any = None
        self._memory: SharedMemory | None = None
        self._is_main = True
        self._runs, self._published, self._sums = 0, 0, 0

    @property
    def is_main(self) -> bool:
        """Whether this process owns the run's files, its log and its output."""
        return self._is_main

    # Coming together and parting.

    def connect(self) -> None:
        """Find the other processes, where torchrun started any; can be repeated."""
        environment = os.environ
        size = int(environment.get("WORLD_SIZE", "1"))
        if self._store is not None or size == 1 or "MASTER_ADDR" not in environment:
            return
        import torch.distributed as dist

        rank = int(environment["RANK"])
        store = next(dist.rendezvous("env://", rank, size))[0]
        # torchrun's store outlives the processes that it starts again.
        attempt = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._store = dist.PrefixStore(f"mg2l/attempt{attempt}", store)
        self.size, self.rank, self._is_main = size, rank, rank == 0
        self.local_rank = int(environment.get("LOCAL_RANK", rank))
        self.local_size = int(environment.get("LOCAL_WORLD_SIZE", size))

    def join(self, device: torch.device) -> None:
        """Open the connections that `sum`, `gather` and the like need.

        Args:
            device: of the tensors; NCCL reduces those on GPUs, Gloo those on the CPU, unless all
                processes are on one machine and share memory.
        """
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        if dist.is_initialized():
            return
        backend = "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
            backend = "cpu:gloo,cuda:nccl"
        store = dist.PrefixStore(f"run{self._runs}", self._store)
        self._runs += 1
        with self._peers():
            dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size)
            if self.local_size == self.size and is_available():
                self._memory = self._share_memory(dist.PrefixStore("memory", store))

    def _share_memory(self, store: dist.Store) -> SharedMemory | None:
        """Memory of all processes of this machine; None where one may not see another's."""
        try:
            memory = SharedMemory(store, self.rank, self.size)
        except OSError:
            memory = None
        store.set(f"sees{self.rank}", str(int(memory is not None)))
        sees = [store.get(f"sees{peer}") == b"1" for peer in range(self.size)]
        return memory if all(sees) else None

    def leave(self) -> None:
        """Close the connections."""
        if self._store is None:
            return
        import torch.distributed as dist

        if self._memory is not None:
            self._memory.leave()
            self._memory = None
        if dist.is_initialized():
            dist.destroy_process_group()

    @contextlib.contextmanager
    def local(self) -> Iterator[None]:
        """A block in which this process computes on its own, as if it were the only one.

        All processes compute the same in it, as their networks and random streams are the same.
        """
        before = self.size, self.rank
        self.size, self.rank = 1, 0
        try:
            yield
        finally:
            self.size, self.rank = before

    # Rows.

    def check_divides(self, **numbers: int) -> None:
        """Validate numbers of which every process gets an equal part.

        Raises:
            ConfigError: the number of processes does not divide one; the message names its key.
        """
        for name, number in numbers.items():
            if number % self.size:
                raise ConfigError(
                    f"{name}={number} must be a multiple of {self.size}, the number of processes"
                )

    def rows(self, count: int) -> slice:
        """This process's part of ``count`` rows.

        The last processes have less where W does not divide it.
        """
        most = -(-count // self.size)
        start = min(self.rank * most, count)
        return slice(start, min(start + most, count))

    def own(self, x: Rows) -> Rows:
        """This process's rows of ``x`` ``[rows, *]``."""
        return x if self.size == 1 else x[self.rows(len(x))]

    def draw(
        self, draw: Callable[[list[int]], Tensor], shape: Sequence[int], dim: int = 0
    ) -> Tensor:
        """Draw random numbers for the rows of all processes, and keep those of this one.

        Args:
            draw: gives random numbers of a shape.
            shape: of what is kept; every process keeps as much.
            dim: axis of the rows.
        """
        whole = list(shape)
        if self.size == 1:
            return draw(whole)
        whole[dim] *= self.size
        drawn, own = draw(whole).unflatten(dim, (self._repeats, -1)), shape[dim] // self._repeats
        kept: Tensor = drawn.narrow(dim + 1, self.rank * own, own).flatten(dim, dim + 1)
        return kept

    @contextlib.contextmanager
    def repeated(self, count: int) -> Iterator[None]:
        """A block in which `draw` is for ``count`` times the rows of a process, one after another.

        Such as those of several steps: of each of them, a process keeps its own part.
        """
        self._repeats = count
        try:
            yield
        finally:
            self._repeats = 1

    # Reductions.

    def start_sum(self, tensors: Iterable[Tensor]) -> Callable[[], None]:
        """Begin to sum tensors of one dtype over all processes, in one flat buffer.

        Returns:
            What must be called before they are used: it waits, and replaces them by their sums.
        """
        if self.size == 1:
            return _nothing
        import torch

        held = list(tensors)
        flat = torch.cat([x.reshape(-1) for x in held])
        with self._peers():
            wait = self._start_sum(flat)
        self._count(flat)

        def finish() -> None:
            with self._peers():
                wait()
            parts = flat.split([x.numel() for x in held])
            torch._foreach_copy_(held, [p.view_as(x) for p, x in zip(parts, held, strict=True)])

        return finish

    def _start_sum(self, flat: Tensor) -> Callable[[], object]:
        """Begin to sum a buffer in place; returns what waits for it.

        On the CPUs of one machine through the memory that its processes share, where each adds all
        in the order of ranks; on those of several by recursive doubling (Thakur et al., 2005,
        doi:10.1177/1094342005051521, section 4.4), with the processes at distances 1, 2, 4, ...:
        log2 W steps, where Gloo's ring takes 2 (W - 1), and the same bits everywhere, as both of a
        pair add the same two numbers.
        """
        import torch
        import torch.distributed as dist

        size, rank = self.size, self.rank
        if self._memory is not None and not flat.is_cuda:
            finish = self._memory.start(flat)
            return lambda: finish(lambda parts: torch.sum(parts, 0, dtype=flat.dtype, out=flat))
        if flat.is_cuda or size.bit_count() > 1:
            work: dist.Work = dist.all_reduce(flat, async_op=True)
            return work.wait
        received = torch.empty_like(flat)
        self._sums += 1
        tag = self._sums

        def exchange(distance: int) -> list[dist.Work | None]:
            peer = rank ^ distance
            return [dist.irecv(received, peer, tag=tag), dist.isend(flat, peer, tag=tag)]

        first = exchange(1)

        def wait() -> None:
            works, distance = first, 1
            while True:
                for each in works:
                    assert each is not None
                    each.wait()
                flat.add_(received)
                distance *= 2
                if distance == size:
                    return
                works = exchange(distance)

        return wait

    def sum(self, x: Tensor) -> Tensor:
        """``x`` summed over all processes; without gradients."""
        if self.size == 1:
            return x
        total = x.detach().clone()
        self.start_sum([total])()
        return total

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is true in some process."""
        if self.size == 1:
            return flag
        import torch

        return bool(self.sum(torch.tensor(int(flag))))

    def gather(self, x: Tensor, dim: int = 0, count: int | None = None) -> Tensor:
        """Rows of all processes in their order; gradients reach the process that a row came from.

        Args:
            x: this process's rows, along ``dim``.
            dim: axis of the rows.
            count: rows of all processes together, which `rows` has split; None is as many in each
                process as in any other.
        """
        if self.size == 1:
            return x
        from mg2l.core.gather import Gather

        gathered: Tensor = Gather.apply(x, dim, count)  # type: ignore[no-untyped-call]
        return gathered

    def gather_objects(self, value: T) -> list[T]:
        """Values of all processes, in their order."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        with self._peers():
            dist.all_gather_object(values, value)
        return values

    def gather_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """State of the environments of all processes, from that of this one's.

        Args:
            state: arrays ``[rows, *]``, and values that are the same in all processes.
        """
        if self.size == 1:
            return state
        states = self.gather_objects(state)
        return {
            name: np.concatenate([part[name] for part in states]) if np.ndim(value) else value
            for name, value in state.items()
        }

    def own_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """This process's part of what `gather_state` gave."""
        if self.size == 1:
            return state
        return {n: self.own(value) if np.ndim(value) else value for n, value in state.items()}

    def all_gather(self, x: Tensor) -> list[Tensor]:
        """Tensors of all processes, of one shape, in their order; without gradients."""
        import torch
        import torch.distributed as dist

        with self._peers():
            if self._memory is not None and not x.is_cuda:
                parts = list(self._memory.start(x)(torch.clone).unbind())
            else:
                parts = [torch.empty_like(x) for _ in range(self.size)]
                dist.all_gather(parts, x)
        self._count(x)
        return parts

    def _count(self, x: Tensor) -> None:
        self.reductions += 1
        self.bytes += x.numel() * x.element_size()

    def take_counts(self) -> dict[str, float]:
        """Messages, their bytes and the time that they took, since the last call."""
        counts = {
            "comm/reductions": self.reductions,
            "comm/bytes": self.bytes,
            "time/comm": self.seconds,
        }
        self.reductions, self.bytes, self.seconds = 0, 0, 0.0
        return counts

    @contextlib.contextmanager
    def _peers(self) -> Iterator[None]:
        """Measure how long other processes are waited for.

        Raises:
            PeerError: one of them has ended.
        """
        start = time.perf_counter()
        try:
            yield
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            self._await_reason()
            raise PeerError(f"another process of this run has ended: {reason}") from None
        finally:
            self.seconds += time.perf_counter() - start

    # Without the connections of `join`: by the store that torchrun keeps.

    def from_main(self, compute: Callable[[], T]) -> T:
        """Result of ``compute``, which only the main process calls.

        Args:
            compute: returns what JSON can hold.

        Raises:
            PeerError: another process has ended by an error.
        """
        if self.size == 1:
            return compute()
        key = f"published{self._published}"
        self._published += 1
        if self.is_main:
            value = compute()
            self._store.set(key, json.dumps(value))
            return value
        with self._peers():
            while not self._store.check([key]):
                if self._store.check(["failed"]):
                    raise PeerError("another process of this run has ended by an error")
                time.sleep(_POLL)  # where signals are handled, which a blocking call would not
            return cast(T, json.loads(self._store.get(key)))

    def _await_reason(self) -> None:
        """Let the process whose connections were cut be the first to fail, if it still says why."""
        deadline = time.monotonic() + _GRACE
        with contextlib.suppress(RuntimeError):  # the store has gone, too
            while time.monotonic() < deadline and not self._store.check(["failed"]):
                time.sleep(_POLL)

    def first_to_fail(self) -> bool:
        """Whether no other process has ended by an error yet: then it is this one's to be shown."""
        if self._store is None:
            return True
        try:
            return int(self._store.add("failed", 1)) == 1
        except RuntimeError:  # the store has gone with the process that kept it
            return self.is_main


def _nothing() -> None:
    """Wait of `World.start_sum` for a single process: nothing to do."""


world = World()
"""The processes of the run of this process."""
