"""The processes that step a foreign environment, and the memory that they share."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mg2l.envs.adapters import worker
from mg2l.envs.adapters.transport import dumps
from mg2l.envs.adapters.worker.channel import TOKEN, BrokenChannelError, Channel
from mg2l.envs.adapters.worker.memory import Arrays, Layout, arrays_in, size_of

Request = tuple[Any, ...]
GRACE = 5.0
"""Time for a process to end by itself [s]."""


class CrashError(RuntimeError):
    """A worker has ended; its message is the traceback, or how the process ended.

    Args:
        index: index of the worker.
        message: the traceback or exit status, as far as known.
    """

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


class RefusedError(RuntimeError):
    """An environment does not do what its interface or spaces say; its message is one line.

    Args:
        index: index of the worker.
        message: actual and expected value.
    """

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


class Workers:
    """``count`` worker processes.

    A process that is restarted finds the shared memory as it was. One that hangs is ended, and
    counts as crashed. All that a worker starts ends with it, and it ends with this process.

    Args:
        make: the environment's factory.
        count: number of processes.
        timeout: a process hangs if for this long it neither answers nor turns to another
            sub-environment [s].
        team: names of the agents that are the team; None is all.
        others: policy of the others, see ``adapters.register``.

    Raises:
        ConfigError: ``make`` or ``others`` cannot be sent to another process.
    """

    def __init__(
        self,
        make: Callable[[dict[str, Any]], Any],
        count: int,
        timeout: float,
        team: Sequence[Any] | None = None,
        others: Callable[..., Any] | None = None,
    ) -> None:
        self.timeout = timeout
        self._beats: NDArray[np.int64] = np.zeros(count, np.int64)
        self._pids: NDArray[np.int64] = np.zeros(count, np.int64)
        self._setup = {
            "path": sys.path[:],
            "make": dumps(make),
            "team": None if team is None else list(team),
            "others": dumps(others),
        }
        self._memory_file = os.memfd_create("mg2l", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._attach: Request | None = None
        self._pipes: list[Channel | None] = [None] * count
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * count

    def __len__(self) -> int:
        return len(self._pipes)

    def attach(self, layout: Layout, spaces: Any) -> Arrays:
        """Make the shared memory; returns its arrays."""
        size = size_of(layout)
        os.ftruncate(self._memory_file, size)
        # Who shortened it would end all processes that read it.
        fcntl.fcntl(self._memory_file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        self._attach = ("attach", layout, spaces)
        for index, process in enumerate(self._processes):
            if process is not None:
                self.ask([(index, self._attach)])
        arrays = arrays_in(mmap.mmap(self._memory_file, size), layout)
        self._beats, self._pids = arrays["beats"], arrays["pids"]
        return arrays

    def ask(self, requests: Sequence[tuple[int, Request]]) -> tuple[list[Any], list[CrashError]]:
        """Send requests to workers, all before the first answer is awaited.

        Returns:
            The answers of those that are alive, and the others' crashes; these restart when they
            are asked again.

        Raises:
            RefusedError: an environment does not do what its interface or spaces say.
        """
        sent, answers, crashes, refused = [], [], [], []
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
            elif status == "refused":
                refused.append(RefusedError(index, answer))
            else:
                answers.append(answer)
        if refused:
            raise refused[0]
        return answers, crashes

    def _send(self, index: int, request: Request) -> CrashError | None:
        try:
            self.pipe(index).send(request)
        except (EOFError, OSError) as error:
            return self._bury(index, _known(error))
        return None

    def _answer(self, index: int) -> tuple[str, Any]:
        try:
            return self._receive(self.pipe(index))
        except (EOFError, OSError) as error:
            return "failed", _known(error)

    def _receive(self, channel: Channel) -> tuple[str, Any]:
        received: tuple[str, Any] = channel.receive()
        return received

    def _wait(self, index: int, end: socket.socket, event: int) -> None:
        """Wait for a worker's socket.

        Raises:
            _LostError: the process hung.
            EOFError: it has ended, even if another process still holds its end of the socket.
        """
        process = self._processes[index]
        assert process is not None
        poll = select.poll()
        poll.register(end, event)
        beats, since = int(self._beats[index]), time.monotonic()
        while not poll.poll(250 * min(self.timeout, 1)):
            if process.poll() is not None:
                raise EOFError
            if self._beats[index] != beats:
                beats, since = int(self._beats[index]), time.monotonic()
            elif time.monotonic() - since >= self.timeout:
                _kill(process)
                raise _LostError(f"it hung: no answer for {self.timeout:g} s (key timeout)")

    def pipe(self, index: int) -> Channel:
        channel = self._pipes[index]
        if channel is None:
            ours, theirs = socket.socketpair()
            environment = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", **os.environ}
            files = (theirs.fileno(), self._memory_file)
            words = map(str, (*files, index, os.getpid()))
            # A session of its own: Ctrl-C is for the training loop alone. What an environment
            # prints does not belong into a command's output.
            self._processes[index] = subprocess.Popen(
                [sys.executable, str(Path(worker.__file__).parent), *words],
                pass_fds=files,
                env=environment,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=2,
            )
            theirs.close()
            token = os.urandom(TOKEN)
            ours.sendall(token)
            channel = self._pipes[index] = Channel(
                ours, token, lambda event: self._wait(index, ours, event), dumps
            )
            channel.send(self._setup)
            if self._attach is not None:
                channel.send(self._attach)
                status, answer = self._receive(channel)
                if status == "failed":
                    raise _LostError(answer)
        return channel

    def _bury(self, index: int, message: str | None) -> CrashError:
        channel, process = self._pipes[index], self._processes[index]
        self._pipes[index] = self._processes[index] = None
        if channel is not None:
            channel.close()
        if process is not None:
            code = _end(process)
            message = message or f"the process ended with status {code}"
        return CrashError(index, message or "the process could not be started")

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that run, below their guardians."""
        running = (index for index, process in enumerate(self._processes) if process is not None)
        return [int(self._pids[index]) for index in running]

    def close(self) -> None:
        """End all processes."""
        for channel in self._pipes:
            if channel is not None:
                channel.close()
        for index in range(len(self)):
            self._bury(index, "")
        if self._memory_file >= 0:
            os.close(self._memory_file)
            self._memory_file = -1


class _LostError(OSError):
    """A process was lost, and its message says how."""


def _known(error: Exception) -> str | None:
    """How a process was lost, or None where that is only known once it has ended."""
    if isinstance(error, BrokenChannelError):
        return str(error)
    return str(error) if isinstance(error, _LostError) else None


def _end(process: subprocess.Popen[bytes]) -> int:
    """Status of a process whose socket is closed; one that does not notice that is killed."""
    try:
        return process.wait(GRACE)
    except subprocess.TimeoutExpired:
        _kill(process)
        return process.wait()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a worker with all that its environments have started: its guardian does so."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
