"""Work to run, the resources it needs, and the process that runs it on its machine."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mg2l.training.seat import Seat

PR_SET_PDEATHSIG = 1

BUSY = 75
"""Exit status (``EX_TEMPFAIL``) of work that another process is at."""

LOST = -signal.SIGKILL
"""Exit status of work whose machine or worker died."""

POLL = 0.2  # [s]


class Work(Protocol):
    """A run, or whatever continues from files where it was, however often it is started."""

    @property
    def name(self) -> str:
        """Name of its log."""

    @property
    def log(self) -> Path:
        """Output of all its attempts, on storage that every machine sees."""

    @property
    def threads(self) -> int:
        """Threads of torch; 0 leaves the number to the executor."""

    def stage(self) -> str | None:
        """Next stage; None when all are done."""

    def command(self, threads: int) -> list[str]:
        """Words after the interpreter that do what is next, read from the files as they are."""


class Task(Protocol):
    """Work that was started."""

    def poll(self) -> int | None:
        """Exit status; None while it runs, or waits for a machine."""


class Executor(Protocol):
    """Starts work.

    Attributes:
        at_once: tasks at once, at most.
        threads: of torch for each, where the work does not say.
        where: in words.
    """

    at_once: int
    threads: int
    where: str

    def room(self, tasks: list[Task]) -> bool:
        """Whether one more may be started beside these."""

    def start(self, work: Work) -> Task:
        """Start it, or queue it."""

    def stop(self, tasks: list[Task]) -> None:
        """Ask all tasks to end after their iterations, with checkpoints."""

    def close(self) -> None:
        """Free what was taken; tasks have ended."""


@dataclass(frozen=True)
class Resources:
    """Resources of each task on a cluster."""

    cpus: int = 1
    gpus: float = 0
    memory: float = 0
    """[GB]; 0 is whatever there is."""


def dies_with(parent: int) -> Callable[[], None]:
    """Hook for a new process, so that it is asked to stop when this one ends in any way."""
    libc = ctypes.CDLL(None)

    def request() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it has ended meanwhile
            os._exit(1)

    return request


def begin(work: Work, threads: int) -> subprocess.Popen[bytes]:
    """Start work as a process, in a session of its own, where a terminal's Ctrl-C is not seen."""
    work.log.parent.mkdir(parents=True, exist_ok=True)
    threads = work.threads or threads
    with work.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *work.command(threads)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            preexec_fn=dies_with(os.getpid()),
        )


def seat_of(work: Work) -> Path:
    """Folder whose seat is held by whoever is at the work."""
    return work.log.parent / f".{work.name}"


def attend(work: Work, threads: int, stop: Path, folder: Path) -> int:
    """Do what is next of some work, on the machine of a cluster that it came to.

    What that is is decided here and not when it was queued, and only by who holds its seat: work
    that was queued twice, as by a driver that was killed and started again, is done once.

    Args:
        work: that was queued.
        threads: of torch.
        stop: a file; where it appears, the work is asked to stop.
        folder: that relative paths are meant from.

    Returns:
        The exit status of its process; 0 where there was nothing left to do; `BUSY` where another
        process is at it, or it was asked to stop before it began.
    """
    os.chdir(folder)
    seat = seat_of(work)
    seat.mkdir(parents=True, exist_ok=True)
    try:
        held = Seat(seat)
    except BlockingIOError:
        return BUSY
    with held:
        if stop.exists():
            return BUSY
        if work.stage() is None:
            return 0
        process, asked = begin(work, threads), False
        try:
            while process.poll() is None:
                if (stop.exists() or held.lost) and not asked:
                    process.terminate()
                    asked = True
                time.sleep(POLL)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        return int(process.returncode)
