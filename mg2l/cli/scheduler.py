"""Runs the jobs of a sweep, several at a time, until all are done or have failed."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.live import Live
from rich.table import Table

from mg2l.cli.jobs import Job, locked, logged, start
from mg2l.core.files import FileError, parse_json, read_text, require, write_text
from mg2l.core.schema import ConfigError
from mg2l.evaluation import groups, results, tables
from mg2l.evaluation.results import printable
from mg2l.training.folder import LOCK, take_lock
from mg2l.training.stop import GracefulStop

ATTEMPTS = 3
"""Times that a run is started within one sweep before it counts as failed."""

MISTAKE = 2
"""Exit status of what cannot succeed, such as an override that a run cannot take."""

LEAST_MEMORY = 2 * 2**30
"""Bytes that must be free before a run is started beside another, or the most one has taken."""

STATE = "sweep.jsonl"

POLL = 0.2  # [s]


def _kib(path: str, field: str) -> int:
    """Bytes that a file of /proc tells in KiB, 0 where the process is gone."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError:
        return 0
    found = re.search(rf"^{field}:\s*(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def others(path: Path, jobs: Sequence[Job]) -> list[str]:
    """Lines of ``sweep.jsonl`` about runs of another grid in the same folder."""
    ours = {(job.algo, job.env, job.seed) for job in jobs}
    try:
        lines = read_text(path, inside=path.parent).splitlines()
    except FileError:
        return []
    return [line for line in lines if (of := _about(line, path)) is not None and of not in ours]


def _about(line: str, path: Path) -> tuple[str, str, int] | None:
    """Algorithm, environment and seed of a line of ``sweep.jsonl``; None where it is damaged."""
    try:
        row = require(parse_json(line, path), {"algo": str, "env": str, "seed": int}, path)
    except FileError:
        return None
    return row["algo"], row["env"], row["seed"]


class Sweep:
    """Runs jobs, several at a time, until all are done or have failed.

    Args:
        jobs: in the order in which they are to start.
        folder: of the sweep, with all runs below it.
        at_once: jobs that run beside each other, where memory allows.
    """

    def __init__(self, jobs: Sequence[Job], folder: Path, at_once: int) -> None:
        self.jobs = jobs
        self.folder = folder
        self.at_once = at_once
        self.threads = max(1, len(os.sched_getaffinity(0)) // at_once)
        self.running: dict[str, tuple[Job, subprocess.Popen[bytes]]] = {}
        self.stages: dict[str, str] = {}
        self.console = Console()
        self._most_memory = LEAST_MEMORY
        self._others = others(folder / STATE, jobs)

    def write(self) -> None:
        """Replace ``sweep.jsonl``, so that a reader sees the old one or the new one."""
        lines = [*self._others, *(job.line() for job in self.jobs)]
        write_text(self.folder / STATE, "".join(f"{line}\n" for line in lines))

    def note(self, text: str) -> None:
        """A line of its own."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        self.console.file.flush()

    def room(self) -> bool:
        """Whether one more job may run."""
        if len(self.running) >= self.at_once:
            return False
        for _, process in self.running.values():
            peak = _kib(f"/proc/{process.pid}/status", "VmHWM")
            self._most_memory = max(self._most_memory, peak)
        return not self.running or _kib("/proc/meminfo", "MemAvailable") > self._most_memory

    def next(self) -> Job | None:
        """The next job to start; one that a process of an earlier sweep still holds must wait."""
        for job in self.jobs:
            if job.state == "waiting":
                run = job.run()
                if run is None or not locked(run):
                    return job
        return None

    def collect(self, stopping: bool) -> bool:
        """Note what has ended; returns whether anything has."""
        pairs = list(self.running.values())
        ended = [(job, process) for job, process in pairs if process.poll() is not None]
        for job, process in ended:
            del self.running[job.name]
            before, after = self.stages.pop(job.name), job.stage()
            if after is None:
                job.state, job.error = "done", ""
            elif stopping:
                job.state = "stopped"
            elif process.returncode == 0 and after != before:
                job.state, job.error, job.attempts = "waiting", "", 0
                self.note(f"{job.name}: {after} is next")
                continue
            else:
                lines = job.log.read_text(encoding="utf-8", errors="replace").split("\n")
                said = next((line for line in reversed(lines) if line.strip()), "")
                error = printable(f"status {process.returncode}: {said.strip()}")
                hopeless = self.hopeless(job, process.returncode, error)
                job.state, job.error = "failed" if hopeless else "waiting", error
            self.note(
                f"{job.name}: {job.state if job.state != 'waiting' else 'starts again'}"
                + (f" ({job.error})" if job.error else "")
            )
        return bool(ended)

    def hopeless(self, job: Job, status: int, error: str) -> bool:
        """Whether a job that ended like this is not to be started again.

        So it is with a mistake, unless another process is in its run, and where an attempt ended of
        itself and has said just the same as the one before.
        """
        run = job.run()
        if status == MISTAKE and (run is None or not locked(run)):
            return True
        return (status > 0 and error == job.error) or job.attempts >= ATTEMPTS

    def begin(self, job: Job) -> None:
        """Start a job."""
        stage = self.stages[job.name] = job.stage() or "train"
        training = "begins" if job.run() is None else "goes on"
        self.note(f"{job.name}: {training if stage == 'train' else stage}")
        self.running[job.name] = (job, start(job, self.threads))

    def table(self) -> Table:
        """The jobs at work, and how many there are of each state."""
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for job, _ in self.running.values():
            run = job.run()
            done = 0 if run is None else logged(run)
            table.add_row(job.name, *job.progress(done))
        states = [job.state for job in self.jobs]
        counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
        table.add_row(", ".join(counts), f"of {len(states)}", "")
        return table

    def ticks(self) -> Generator[None, None, None]:
        """Moments to look at the jobs, with a live display on a terminal."""
        if not self.console.is_terminal or self.console.is_dumb_terminal:
            while True:
                yield
                time.sleep(POLL)
        with Live(console=self.console, auto_refresh=False) as live:
            while True:
                live.update(self.table(), refresh=True)
                yield
                time.sleep(POLL)

    def summarise(self) -> None:
        """The table of `mg2l.compare` of all runs in the folder that can be used."""
        runs, skipped = results.find([self.folder])
        found, left_out = groups.grouped(runs)
        if runs or skipped:
            self.note("\n".join(tables.table(found, [*skipped, *left_out])))

    def go(self) -> int:
        """Run the jobs; returns the exit status: 0 when all are done, 1 when some failed."""
        for job in self.jobs:
            if job.stage() is None:
                job.state = "done"
        todo = sum(job.state == "waiting" for job in self.jobs)
        threads = sorted({job.threads or self.threads for job in self.jobs})
        self.note(
            f"{self.folder}: {todo} of {len(self.jobs)} runs to do, {self.at_once} at once, "
            f"{' or '.join(map(str, threads))} threads each"
        )
        asked = False
        with GracefulStop() as stop:
            self.write()
            last = time.monotonic()
            ticks = self.ticks()
            for _ in ticks:
                changed = self.collect(stop.requested)
                if stop.requested and not asked:
                    asked = True
                    for _, process in self.running.values():
                        process.terminate()
                while not stop.requested and self.room():
                    following = self.next()
                    if following is None:
                        break
                    self.begin(following)
                    changed = True
                if changed or time.monotonic() - last > 5:
                    self.write()
                    last = time.monotonic()
                waiting = any(job.state == "waiting" for job in self.jobs)
                if not self.running and (stop.requested or not waiting):
                    break
            ticks.close()
        states = [job.state for job in self.jobs]
        self.note(f"{states.count('done')} of {len(states)} done, {states.count('failed')} failed")
        if not stop.requested:
            self.summarise()
        return stop.exit_code or int("failed" in states)


def own(folder: Path) -> IO[bytes]:
    """Take the lock of a sweep's folder, made where there is none.

    Raises:
        ConfigError: another sweep is at work in it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = take_lock(folder / LOCK)
    except BlockingIOError:
        raise ConfigError(f"--folder={folder}: another sweep is at work there") from None
    except OSError as error:
        raise ConfigError(f"--folder={folder}: {error.strerror or error}") from None
    return lock
