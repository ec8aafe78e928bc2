"""One run of a grid: what is done of it, read from its folder, and the process that goes on."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mg2l.config.files import names_own_code
from mg2l.core.files import FileError, read_bytes, read_json
from mg2l.evaluation.results import age
from mg2l.training import checkpoint
from mg2l.training.folder import LOCK, take_lock
from mg2l.training.metrics import MAX_METRICS, read_metrics

RESULTS = {"evaluate": "evaluation.json", "probe": "probe.json"}
"""What each analysis writes into the folder of a run."""

THREADS = "n_training_threads"

PR_SET_PDEATHSIG = 1


@dataclass
class Job:
    """One run of the grid.

    Attributes:
        words: the command line of ``mg2l.train``, without folder, threads and resumption.
        n_iters: iterations after which it is trained, unless ``n_env_steps`` says when.
        analyses: what is done with it then, modules of `mg2l`.
        threads: of torch, as its configuration says; 0 leaves it to the sweep.
        n_env_steps: environment steps after which it is trained; 0 leaves it to ``n_iters``.
        state: ``waiting``, ``running``, ``done``, ``failed`` or ``stopped``.
        attempts: times it was started by this sweep.
        error: the last line of its log when it failed.
    """

    algo: str
    env: str
    seed: int
    words: list[str]
    n_iters: int
    folder: Path
    analyses: list[str]
    threads: int = 0
    n_env_steps: int = 0
    state: str = "waiting"
    attempts: int = 0
    error: str = ""

    @property
    def name(self) -> str:
        """As its log is called."""
        return f"{self.env}-{self.algo}-sd{self.seed}"

    @property
    def log(self) -> Path:
        """Output of all its attempts."""
        return self.folder / "logs" / f"{self.name}.log"

    def run(self) -> Path | None:
        """Its run folder: of several the one that has come furthest, of equals the youngest."""
        ending = re.compile(rf".*-sd{self.seed}(-\d+)?")
        found = [
            path
            for path in sorted((self.folder / self.env / self.algo).glob("*/"))
            if ending.fullmatch(path.name) and (path / "config.yaml").is_file()
        ]
        return max(found, key=lambda path: (saved(path), age(path)), default=None)

    def trained(self, run: Path) -> bool:
        """Whether a run of it has come to its end."""
        if self.n_env_steps:
            return saved_steps(run) >= self.n_env_steps
        return saved(run) >= self.n_iters

    def progress(self, done: int) -> tuple[str, str]:
        """How far it is after ``done`` iterations, as a text and as a bar."""
        if self.n_env_steps:
            return f"{done} iterations", ""
        return f"{done}/{self.n_iters}", "━" * min(20, 20 * done // self.n_iters)

    def stage(self) -> str | None:
        """What is to be done next: ``train``, an analysis that is missing or old, or nothing."""
        run = self.run()
        if run is None or not self.trained(run):
            return "train"
        for name in self.analyses:
            if analysed(run, name) != saved(run):
                return name
        return None

    def command(self, threads: int) -> list[str]:
        """What begins the run, goes on with it or analyses it."""
        run, stage = self.run(), self.stage()
        trust = ["--trust"] if run is not None and trusted(run) else []
        if stage is not None and stage != "train":
            return [sys.executable, "-m", f"mg2l.{stage}", str(run), *trust]
        words = [*self.words, f"{THREADS}={self.threads or threads}"]
        if run is not None:
            kept = [word for word in words if not word.startswith(("--algo=", "--env="))]
            words = [f"--resume={run}", "--resume-previous", *trust, *kept]
        else:
            words.append(f"main_save_path={self.folder}")
        return [sys.executable, "-m", "mg2l.train", *words]

    def line(self) -> str:
        """Its state as one line of JSON."""
        run = self.run()
        return json.dumps(
            {
                "algo": self.algo,
                "env": self.env,
                "seed": self.seed,
                "state": self.state,
                "iterations": 0 if run is None else logged(run),
                "n_iters": self.n_iters,
                "attempts": self.attempts,
                "run": None if run is None else str(run.relative_to(self.folder)),
                "error": self.error,
            }
        )


def analysed(run: Path, name: str) -> int | None:
    """Iteration of the checkpoint that an analysis of a run is about; None where there is none."""
    try:
        found = read_json(run / RESULTS[name], {"iteration": int}, inside=run)
    except FileError:
        return None
    return int(found["iteration"])


def saved(run: Path) -> int:
    """Iteration of a run's last checkpoint, 0 before the first."""
    return checkpoint.last_iteration(run / "checkpoints")


def saved_steps(run: Path) -> float:
    """Environment steps of a run's last checkpoint, 0 before the first."""
    try:
        rows = read_metrics(run / "metrics.jsonl", run)
    except FileError:
        return 0
    return max(
        (float(row["env_steps"]) for row in rows if row["iteration"] == saved(run)), default=0
    )


def logged(run: Path) -> int:
    """Iterations that a run has logged."""
    try:
        return read_bytes(run / "metrics.jsonl", inside=run, most=MAX_METRICS).count(b"\n")
    except FileError:
        return 0


def locked(run: Path) -> bool:
    """Whether a process is at work in a run."""
    try:
        take_lock(run / LOCK).close()
    except BlockingIOError:
        return True
    except OSError:
        return False  # there is none, and none can be made
    return False


def trusted(run: Path) -> bool:
    """Whether the code that a run names is what the sweep's own command line has imported."""
    try:
        return names_own_code(run / "config.yaml")
    except FileError:
        return False


def dies_with(parent: int) -> Callable[[], None]:
    """What a new process calls so that it is asked to stop when this one ends in any way."""
    libc = ctypes.CDLL(None)

    def request() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it has ended meanwhile
            os._exit(1)

    return request


def start(job: Job, threads: int) -> subprocess.Popen[bytes]:
    """Begin or go on with a run, in a session of its own, where a terminal's Ctrl-C is not seen."""
    job.state, job.attempts = "running", job.attempts + 1
    job.log.parent.mkdir(exist_ok=True)
    with job.log.open("ab") as log:
        return subprocess.Popen(
            job.command(threads),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": str(job.threads or threads)},
            preexec_fn=dies_with(os.getpid()),
        )
