"""The processes that step a foreign environment, and the memory that they share."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cloudpickle

from mg2l.envs.adapters import worker
from mg2l.envs.adapters.worker import Arrays, Layout

Request = tuple[Any, ...]


class CrashError(RuntimeError):
    """A worker has ended; its message is the traceback, or how the process ended.

    Args:
        index: of the worker.
        message: what is known.
    """

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


class Workers:
    """``count`` worker processes.

    A process that is started anew finds the shared memory as it was.

    Args:
        make: the environment's factory.
        count: of processes.
    """

    def __init__(self, make: Callable[[dict[str, Any]], Any], count: int) -> None:
        _pickle_by_value(make)
        self._setup = {"path": sys.path[:], "make": cloudpickle.dumps(make)}
        self._memory_file = os.memfd_create("mg2l")
        self._attach: Request | None = None
        self._pipes: list[Connection | None] = [None] * count
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * count

    def __len__(self) -> int:
        return len(self._pipes)

    def attach(self, layout: Layout, spaces: Any) -> Arrays:
        """Make the shared memory; returns its arrays."""
        size = worker.size_of(layout)
        os.ftruncate(self._memory_file, size)
        self._attach = ("attach", layout, spaces)
        for index, process in enumerate(self._processes):
            if process is not None:
                self.ask([(index, self._attach)])
        return worker.arrays_in(mmap.mmap(self._memory_file, size), layout)

    def ask(self, requests: Sequence[tuple[int, Request]]) -> tuple[list[Any], list[CrashError]]:
        """Send requests to workers, all before the first answer is awaited.

        Returns:
            The answers of those that live, and the others' crashes; these start anew when they
            are asked again.
        """
        sent = [index for index, request in requests if self._send(index, request)]
        answers, crashes = [], [self._bury(i, None) for i, _ in requests if i not in sent]
        for index in sent:
            status, answer = self._receive(index)
            if status == "failed":
                crashes.append(self._bury(index, answer))
            else:
                answers.append(answer)
        return answers, crashes

    def _send(self, index: int, request: Request) -> bool:
        try:
            self._pipe(index).send(request)
        except OSError:
            return False
        return True

    def _receive(self, index: int) -> tuple[str, Any]:
        try:
            received: tuple[str, Any] = self._pipe(index).recv()
        except (EOFError, OSError):
            return "failed", None
        return received

    def _pipe(self, index: int) -> Connection:
        pipe = self._pipes[index]
        if pipe is None:
            pipe, theirs = Pipe()
            environment = {"OMP_NUM_THREADS": "1", **os.environ}
            files = (theirs.fileno(), self._memory_file)
            command = [sys.executable, str(Path(worker.__file__)), *map(str, (*files, index))]
            # A session of its own: Ctrl-C is for the training loop alone.
            self._processes[index] = subprocess.Popen(
                command, pass_fds=files, env=environment, start_new_session=True
            )
            theirs.close()
            self._pipes[index] = pipe
            pipe.send_bytes(cloudpickle.dumps(self._setup))
            if self._attach is not None:
                pipe.send(self._attach)
                pipe.recv()
        return pipe

    def _bury(self, index: int, message: str | None) -> CrashError:
        pipe, process = self._pipes[index], self._processes[index]
        self._pipes[index] = self._processes[index] = None
        if pipe is not None:
            pipe.close()
        if process is not None:
            code = process.wait()
            message = message or f"the process ended with status {code}"
        return CrashError(index, message or "the process could not be started")

    @property
    def pids(self) -> list[int]:
        """Of the processes that run."""
        return [process.pid for process in self._processes if process is not None]

    def close(self) -> None:
        """End all processes."""
        for index, pipe in enumerate(self._pipes):
            if pipe is not None:
                self._bury(index, "")
        if self._memory_file >= 0:
            os.close(self._memory_file)
            self._memory_file = -1


def _pickle_by_value(make: Callable[..., Any]) -> None:
    """Send ``make`` with what it uses of its module, where workers must not import that.

    What was loaded from a file by its path has no name there, and a module that registers families
    would import mg2l, and torch with it.
    """
    module = sys.modules.get(getattr(make, "__module__", ""))
    if module is None:
        return
    owners = {
        getattr(v, "__module__", None) or getattr(v, "__name__", "") for v in vars(module).values()
    }
    imports_us = any(str(owner).partition(".")[0] == "mg2l" for owner in owners)
    if imports_us or module.__name__.startswith("mg2l_family_"):
        cloudpickle.register_pickle_by_value(module)
