"""Starts a worker: ``python .../worker SOCKET MEMORY INDEX PARENT``.

Two processes: a guardian, which imports next to nothing and outlives everything that the
environment starts, and its child, the worker itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import resource
import signal
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_PATIENCE = 5.0  # with processes that do not die at once [s]


def guard(parent: int, descriptors: tuple[int, ...]) -> None:
    """Become a guardian, and return in its child.

    The guardian waits for the worker's end, for SIGTERM or for the parent's death, kills all
    descendants, those included that have left the session or whose parents have ended, and ends
    with the worker's status.

    Args:
        parent: process that wants a worker.
        descriptors: open files that are the child's alone.
    """
    watched = {signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP}
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    system = ctypes.CDLL(None)
    system.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    # Comes when the thread ends that has started this process, so the parent is looked at, too.
    system.prctl(_PR_SET_PDEATHSIG, int(signal.SIGHUP))
    guardian = os.getpid()
    child = os.fork()
    if child == 0:
        system.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if os.getppid() != guardian:
            os._exit(1)
        return
    for descriptor in descriptors:
        os.close(descriptor)
    ended: dict[int, int] = {}
    while _reap(ended) and child not in ended and os.getppid() == parent:
        received = signal.sigtimedwait(watched, 1.0)
        if received is not None and received.si_signo == signal.SIGTERM:
            break
    deadline = time.monotonic() + _PATIENCE
    while _reap(ended) and time.monotonic() < deadline:
        for pid in _children(guardian):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    _end_like(ended.get(child, signal.SIGKILL))


def _reap(ended: dict[int, int]) -> bool:
    """Take in the status of children that have ended; whether there are others."""
    try:
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return True
            ended[pid] = status
    except ChildProcessError:
        return False


def _children(parent: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(ValueError, OSError):
            stat = Path("/proc", str(int(name)), "stat").read_text(errors="replace")
            if int(stat.rpartition(")")[2].split()[1]) == parent:
                found.append(int(name))
    return found


def _end_like(status: int) -> None:
    if os.WIFSIGNALED(status):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        number = os.WTERMSIG(status)
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


def main() -> None:
    """Fork, and work in the child."""
    socket, memory, index, parent = map(int, sys.argv[1:])
    guard(parent, (socket, memory))
    # Under a name of its own: the environment's modules may have any other.
    folder = Path(__file__).parent
    spec = importlib.util.spec_from_file_location(
        "_mg2l_worker", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    del sys.path[0]
    sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])
    importlib.import_module("_mg2l_worker.process").serve(socket, memory, index)


if __name__ == "__main__":
    main()
