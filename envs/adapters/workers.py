"""The processes that step a foreign environment, and the memory that they share."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
from numpy.typing import NDArray

from mg2l.envs.adapters import worker
from mg2l.envs.adapters.worker import Arrays, Layout

Request = tuple[Any, ...]
_GRACE = 5.0  # for a process to end by itself [s]


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

    A process that is started anew finds the shared memory as it was. One that hangs is ended, and
    counts as crashed.

    Args:
        make: the environment's factory.
        count: of processes.
        timeout: a process hangs if for this long it neither answers nor turns to another copy [s].
    """

    def __init__(self, make: Callable[[dict[str, Any]], Any], count: int, timeout: float) -> None:
        self._timeout = timeout
        self._beats: NDArray[np.int64] = np.zeros(count, np.int64)
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
        arrays = worker.arrays_in(mmap.mmap(self._memory_file, size), layout)
        self._beats = arrays["beats"]
        return arrays

    def ask(self, requests: Sequence[tuple[int, Request]]) -> tuple[list[Any], list[CrashError]]:
        """Send requests to workers, all before the first answer is awaited.

        Returns:
            The answers of those that live, and the others' crashes; these start anew when they
            are asked again.
        """
        sent, answers, crashes = [], [], []
        for index, request in requests:
            crash = self._send(index, request)
            if crash is None:
                sent.append(index)
            else:
                crashes.append(crash)
        for index in sent:
            status, answer = self._answer(index)
            if status == "failed":
                crashes.append(self._bury(index, answer))
            else:
                answers.append(answer)
        return answers, crashes

    def _send(self, index: int, request: Request) -> CrashError | None:
        try:
            self._pipe(index).send(request)
        except (EOFError, OSError) as error:
            return self._bury(index, _known(error))
        return None

    def _answer(self, index: int) -> tuple[str, Any]:
        try:
            return self._receive(index, self._pipe(index))
        except (EOFError, OSError) as error:
            return "failed", _known(error)

    def _receive(self, index: int, pipe: Connection) -> tuple[str, Any]:
        """The next answer.

        Raises:
            _LostError: the process hung.
            EOFError: it has ended.
        """
        beats, since = int(self._beats[index]), time.monotonic()
        while not pipe.poll(self._timeout / 4):
            if self._beats[index] != beats:
                beats, since = int(self._beats[index]), time.monotonic()
            elif time.monotonic() - since >= self._timeout:
                process = self._processes[index]
                assert process is not None
                _kill(process)
                raise _LostError(f"it hung: no answer for {self._timeout:g} s (key timeout)")
        received: tuple[str, Any] = pipe.recv()
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
                status, answer = self._receive(index, pipe)
                if status == "failed":
                    raise _LostError(answer)
        return pipe

    def _bury(self, index: int, message: str | None) -> CrashError:
        pipe, process = self._pipes[index], self._processes[index]
        self._pipes[index] = self._processes[index] = None
        if pipe is not None:
            pipe.close()
        if process is not None:
            code = _end(process)
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


class _LostError(OSError):
    """A process was lost, and its message says how."""


def _known(error: Exception) -> str | None:
    """How a process was lost, or None where only its end can tell."""
    return str(error) if isinstance(error, _LostError) else None


def _end(process: subprocess.Popen[bytes]) -> int:
    """Status of a process whose pipe is closed; one that does not notice that is killed."""
    try:
        return process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        _kill(process)
        return process.wait()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process with those that its environments have started: its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


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
