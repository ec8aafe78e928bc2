"""Processes of this machine."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from mg2l.launch.work import Task, Work, begin

LEAST_MEMORY = 2 * 2**30
"""Bytes that must be free before a process is started beside another, or the most one has taken."""


def _kib(path: str, field: str) -> int:
    """Bytes from a file of /proc that counts in KiB; 0 if the process is gone."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError:
        return 0
    found = re.search(rf"^{field}:\s*(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


class Local:
    """Processes of this machine, see ``Executor``.

    Args:
        at_once: processes at once, where memory allows.
    """

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once
        self.threads = max(1, len(os.sched_getaffinity(0)) // at_once)
        self.where = f"{at_once} at once"
        self._most_memory = LEAST_MEMORY

    def room(self, tasks: list[Task]) -> bool:
        if len(tasks) >= self.at_once:
            return False
        for task in tasks:
            assert isinstance(task, subprocess.Popen)
            peak = _kib(f"/proc/{task.pid}/status", "VmHWM")
            self._most_memory = max(self._most_memory, peak)
        return not tasks or _kib("/proc/meminfo", "MemAvailable") > self._most_memory

    def start(self, work: Work) -> subprocess.Popen[bytes]:
        return begin(work, self.threads)

    def stop(self, tasks: list[Task]) -> None:
        for task in tasks:
            assert isinstance(task, subprocess.Popen)
            task.terminate()

    def close(self) -> None:
        """There is nothing to free."""
