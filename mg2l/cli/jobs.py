"""One run of a grid or a search: its progress, read from its folder, and what is next."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from mg2l.config.code import names_own_code
from mg2l.core.files import FileError, read_bytes, read_json
from mg2l.evaluation.results import age
from mg2l.training import checkpoint
from mg2l.training.metrics import MAX_METRICS, read_metrics

RESULTS = {"evaluate": "evaluation.json", "probe": "probe.json"}
"""The file that each analysis writes into the folder of a run."""

THREADS = "n_training_threads"


@dataclass
class Job:
    """One run of the grid.

    Attributes:
        words: the command line of ``mg2l.train``, without folder, threads and resumption.
        n_iters: iterations after which it is trained, unless ``n_env_steps`` says when.
        analyses: modules of `mg2l` that are run on it then.
        threads: torch threads of its configuration; 0 leaves them to the sweep.
        n_env_steps: environment steps after which it is trained; 0 leaves it to ``n_iters``.
        options: of each analysis, as words of its command line.
        until: iteration after which it stops for the time being; 0 is the end.
        parent: checkpoint that it is forked from; None where it begins by itself.
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
    options: dict[str, list[str]] = field(default_factory=dict)
    until: int = 0
    parent: Path | None = None
    state: str = "waiting"
    attempts: int = 0
    error: str = ""

    @property
    def name(self) -> str:
        """Name of its log."""
        return f"{self.env}-{self.algo}-sd{self.seed}"

    @property
    def log(self) -> Path:
        """Output of all its attempts."""
        return self.folder / "logs" / f"{self.name}.log"

    def run(self) -> Path | None:
        """Its run folder: of several the one with most iterations, among equals the newest."""
        ending = re.compile(rf".*-sd{self.seed}(-\d+)?")
        found = [
            path
            for path in sorted((self.folder / self.env / self.algo).glob("*/"))
            if ending.fullmatch(path.name) and (path / "config.yaml").is_file()
        ]
        return max(found, key=lambda path: (saved(path), age(path)), default=None)

    def trained(self, run: Path) -> bool:
        """Whether one of its runs is complete."""
        if self.n_env_steps:
            return saved_steps(run) >= self.n_env_steps
        return saved(run) >= (self.until or self.n_iters)

    def progress(self, done: int) -> tuple[str, str]:
        """Progress after ``done`` iterations, as a text and as a bar."""
        if self.n_env_steps:
            return f"{done} iterations", ""
        return f"{done}/{self.n_iters}", "━" * min(20, 20 * done // self.n_iters)

    def stage(self) -> str | None:
        """Next step: ``train``, an analysis that is missing or outdated, or None."""
        run = self.run()
        if run is None or not self.trained(run):
            return "train"
        for name in self.analyses:
            if analysed(run, name) != saved(run):
                return name
        return None

    def command(self, threads: int) -> list[str]:
        """Words after the interpreter that start, resume or analyse the run."""
        run, stage = self.run(), self.stage()
        trust = ["--trust"] if run is not None and trusted(run) else []
        if stage is not None and stage != "train":
            options = self.options.get(stage, [])
            return ["-m", f"mg2l.{stage}", str(run), *options, *trust]
        words = [*self.words, f"{THREADS}={self.threads or threads}"]
        kept = [word for word in words if not word.startswith(("--expt=", "--algo=", "--env="))]
        if run is not None:
            words = [f"--resume={run}", "--resume-previous", *trust, *kept]
        else:
            if self.parent is not None:
                trust = ["--trust"] if trusted(self.parent.parents[1]) else []
                words = [f"--from={self.parent}", *trust, *kept]
            words.append(f"main_save_path={self.folder}")
        if self.until:
            words.append(f"--until={self.until}")
        return ["-m", "mg2l.train", *words]

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


def trusted(run: Path) -> bool:
    """Whether the code that a run names is what the sweep's own command line has imported."""
    try:
        return names_own_code(run / "config.yaml")
    except FileError:
        return False
