"""A queue of a cluster, in which each task waits until a machine takes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from mg2l.launch.work import Resources, Task, Work, seat_of
from mg2l.training.seat import taken


class QueuedTask(ABC):
    """A task of a queue.

    Args:
        work: that it does.
    """

    def __init__(self, work: Work) -> None:
        self._seat = seat_of(work)

    @abstractmethod
    def poll(self) -> int | None:
        """Exit status; `LOST` where it ended without one; None while it waits or runs."""

    @abstractmethod
    def cancel(self) -> None:
        """Remove it from the queue."""

    def leave_queue(self) -> None:
        """Cancel it unless it runs, and so sees the stop file."""
        if not (self._seat.exists() and taken(self._seat)):
            self.cancel()


class Queue:
    """The part of an ``Executor`` that all clusters share.

    Args:
        where: in words.
        resources: of each task.
        folder: of the sweep, on storage that every node sees at the same path.
        at_once: tasks that are queued at once.
    """

    def __init__(self, where: str, resources: Resources, folder: Path, at_once: int) -> None:
        self.where, self.at_once, self.threads = where, at_once, resources.cpus
        self.stop_file = folder / ".stop"
        self.stop_file.unlink(missing_ok=True)

    def room(self, tasks: Sequence[Task]) -> bool:
        return len(tasks) < self.at_once

    def stop(self, tasks: Sequence[Task]) -> None:
        self.stop_file.touch()
        for task in tasks:
            assert isinstance(task, QueuedTask)
            task.leave_queue()
