"""Runs the jobs of a sweep or a search, several at a time, until all are done or have failed."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from mg2l.cli.jobs import Job, logged, saved
from mg2l.core.files import FileError, parse_json, read_text, require, write_text
from mg2l.core.schema import ConfigError
from mg2l.evaluation import groups, results, tables
from mg2l.evaluation.results import printable
from mg2l.launch.work import BUSY, POLL, Executor, Task, seat_of
from mg2l.training.seat import Seat, taken
from mg2l.training.stop import GracefulStop

ATTEMPTS = 3
"""Times that a run is started within one sweep before it counts as failed."""

MISTAKE = 2
"""Exit status of a job that cannot succeed, such as one with an invalid override."""

STATE = "sweep.jsonl"


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


class Scheduler:
    """Runs jobs, several at a time, until all are done or have failed.

    Args:
        jobs: in the order in which they are to start.
        folder: with all runs below it.
        executor: where they run.
    """

    def __init__(self, jobs: Sequence[Job], folder: Path, executor: Executor) -> None:
        self.jobs = list(jobs)
        self.folder = folder
        self.executor = executor
        self.running: dict[str, tuple[Job, Task]] = {}
        self.stages: dict[str, str] = {}
        self.saved: dict[str, int] = {}
        self.console = Console()

    def write(self) -> None:
        """Write down how the jobs stand."""

    def completed(self, job: Job) -> None:
        """Mark a job as done."""
        job.state, job.error = "done", ""
        self.note(f"{job.name}: done")

    def failed(self, job: Job, error: str) -> None:
        """Mark a job as failed."""
        job.state, job.error = "failed", error
        self.note(f"{job.name}: failed ({error})")

    def note(self, text: str) -> None:
        """Print a line above the live display."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        self.console.file.flush()

    def room(self) -> bool:
        """Whether one more job may run."""
        return self.executor.room([task for _, task in self.running.values()])

    def next(self) -> Job | None:
        """The next job to start; one that a process of an earlier sweep still holds must wait."""
        for job in self.jobs:
            if job.state == "waiting" and not at_work(job):
                return job
        return None

    def collect(self, stopping: bool) -> bool:
        """Collect jobs that have ended; returns whether any has."""
        ended = [(job, status) for job, task in [*self.running.values()]
                 if (status := task.poll()) is not None]  # fmt: skip
        for job, status in ended:
            del self.running[job.name]
            before, after = self.stages.pop(job.name), job.stage()
            if after is None:
                self.completed(job)
            elif stopping:
                job.state = "stopped"
                self.note(f"{job.name}: stopped")
            elif status == BUSY:
                job.state, job.attempts = "waiting", job.attempts - 1
            elif status == 0 and after != before:
                job.state, job.error, job.attempts = "waiting", "", 0
                self.note(f"{job.name}: {after} is next")
            else:
                # A machine with a time limit may end it many times, as long as it makes progress.
                if iterations_of(job) > self.saved.get(job.name, 0):
                    job.attempts = 1
                error = printable(f"status {status}: {last_line(job.log)}")
                if self.hopeless(job, status, error):
                    self.failed(job, error)
                else:
                    job.state, job.error = "waiting", error
                    self.note(f"{job.name}: starts again ({error})")
        return bool(ended)

    def hopeless(self, job: Job, status: int, error: str) -> bool:
        """Whether a job that ended like this must not be started again.

        True after a user's mistake, unless another process uses its run, and where an attempt ended
        by itself with the same message as the one before.
        """
        if status == MISTAKE and not at_work(job):
            return True
        return (status > 0 and error == job.error) or job.attempts >= ATTEMPTS

    def begin(self, job: Job) -> None:
        """Start a job."""
        stage = job.stage() or "train"
        self.stages[job.name], self.saved[job.name] = stage, iterations_of(job)
        training = "starts" if job.run() is None else "resumes"
        self.note(f"{job.name}: {training if stage == 'train' else stage}")
        job.state, job.attempts = "running", job.attempts + 1
        self.running[job.name] = (job, self.executor.start(job))

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
        """Times at which to poll the jobs, with a live display on a terminal."""
        if not self.console.is_terminal or self.console.is_dumb_terminal:
            while True:
                yield
                time.sleep(POLL)
        with Live(console=self.console, auto_refresh=False) as live:
            while True:
                live.update(self.table(), refresh=True)
                yield
                time.sleep(POLL)

    def work(self) -> int:
        """Run the jobs; returns the exit status: 0 unless it was asked to stop."""
        asked = False
        with GracefulStop() as stop:
            self.write()
            last = time.monotonic()
            ticks = self.ticks()
            for _ in ticks:
                changed = self.collect(stop.requested)
                if stop.requested and not asked:
                    asked = True
                    self.executor.stop([task for _, task in self.running.values()])
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
        return stop.exit_code


class Sweep(Scheduler):
    """Runs the jobs of a grid, and keeps ``sweep.jsonl``."""

    def __init__(self, jobs: Sequence[Job], folder: Path, executor: Executor) -> None:
        super().__init__(jobs, folder, executor)
        self._others = others(folder / STATE, jobs)

    def write(self) -> None:
        """Replace ``sweep.jsonl``, so that a reader sees the old one or the new one."""
        lines = [*self._others, *(job.line() for job in self.jobs)]
        write_text(self.folder / STATE, "".join(f"{line}\n" for line in lines))

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
        threads = sorted({job.threads or self.executor.threads for job in self.jobs})
        self.note(
            f"{self.folder}: {todo} of {len(self.jobs)} runs to do, {self.executor.where}, "
            f"{' or '.join(map(str, threads))} threads each"
        )
        status = self.work()
        states = [job.state for job in self.jobs]
        self.note(f"{states.count('done')} of {len(states)} done, {states.count('failed')} failed")
        if status == 0:
            self.summarise()
        return status or int("failed" in states)


def at_work(job: Job) -> bool:
    """Whether a process is at work in a job's run, or another task is at the job."""
    seat, run = seat_of(job), job.run()
    return (seat.is_dir() and taken(seat)) or (run is not None and taken(run))


def iterations_of(job: Job) -> int:
    """Iteration of the last checkpoint of a job's run."""
    run = job.run()
    return 0 if run is None else saved(run)


def last_line(log: Path) -> str:
    """Last line of a log."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return ""  # it was lost before it began
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def own(folder: Path, what: str = "sweep") -> Seat:
    """Take the seat of a sweep's folder, made where there is none.

    Args:
        folder: of it.
        what: it is, for messages.

    Raises:
        ConfigError: another sweep is at work in it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        seat = Seat(folder)
    except BlockingIOError:
        raise ConfigError(f"--folder={folder}: another {what} is at work there") from None
    except OSError as error:
        raise ConfigError(f"--folder={folder}: {error.strerror or error}") from None
    return seat
