"""The folder of a run: ``<main_save_path>/<env>/<algo>/<time>-sd<seed>/``."""

from __future__ import annotations

import errno
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from mg2l.config.options import Options
from mg2l.config.saved import about, config_from_yaml, config_to_yaml
from mg2l.config.sections import Config
from mg2l.core.distributed import world
from mg2l.core.files import WriteError, read_bytes, read_json, write_json, write_text
from mg2l.core.schema import ConfigError
from mg2l.training import checkpoint, spaces
from mg2l.training.checkpoint import Checkpoint
from mg2l.training.metrics import MAX_METRICS, truncate
from mg2l.training.seat import EXPIRES, LOCK, Seat

REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES)
"""Errors of a full, broken or read-only disk, as opposed to a user's mistake."""

PACKAGES = ("mg2l", "torch", "numpy", "gymnasium", "safetensors", "tensorboard", "rich")


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")


def _git(*words: str) -> str | None:
    """Commit and state of the running source; None where it is not a git checkout."""
    source = Path(__file__).resolve().parents[2]
    if not (source / ".git").exists():
        return None  # an installed copy inside another repository
    try:
        done = subprocess.run(
            ["git", "-C", str(source), *words], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment() -> dict[str, Any]:
    """Description of the process: versions, commit, command line, processor, devices, time."""
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [sys.executable, *sys.argv],
        "python": platform.python_version(),
        "packages": {package: _version(package) for package in PACKAGES},
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(changes) if changes is not None else None,
        "system": platform.platform(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in gpus],
    }


class RunFolder:
    """A run's folder, owned by this process until ``close`` or its end.

    Of several processes of a run, the main one owns it; the others know where it is.

    Attributes:
        path: the folder.
        config_path: the resolved config, which loads back to an equal ``Config``.
        environment_path: versions, command line and machine, of the start and of every resumption.
        metrics_path: one JSON object per iteration.
        spaces_path: spaces and tasks of the environment.
        checkpoints: folder of the checkpoints.
        csv: the same as a table (``log_csv``).
        tensorboard: folder of the TensorBoard events.

    Raises:
        ConfigError: another process is at work in the folder, or it holds links.
        OSError: nothing can be written there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_path = path / "config.yaml"
        self.environment_path = path / "environment.json"
        self.metrics_path = path / "metrics.jsonl"
        self.spaces_path = path / spaces.FILE
        self.checkpoints = path / "checkpoints"
        self.csv = path / "metrics.csv"
        self.tensorboard = path / "tensorboard"
        self._seat: Seat | None = None
        if world.is_main:
            self._check()
            self._own()

    def _check(self) -> None:
        """Refuse a folder with links, pipes or devices in place of files to write."""
        files = {self.config_path, self.environment_path, self.metrics_path, self.spaces_path}
        files |= {self.csv, self.path / LOCK}
        for path in (*sorted(files), self.checkpoints, self.tensorboard):
            fits = path.is_file() if path in files else path.is_dir()
            if path.is_symlink() or (path.exists() and not fits):
                what = "a regular file" if path in files else "a folder"
                raise ConfigError(f"{path}: must be {what} of the run, and no link")

    def _own(self) -> None:
        """Take the seat, which is free again however the process ends."""
        try:
            self._seat = Seat(self.path)
        except BlockingIOError:
            raise ConfigError(f"{self.path}: another process is at work in this run") from None

    def close(self) -> None:
        """Give the folder up."""
        if self._seat is not None:
            self._seat.close()

    def require_seat(self) -> None:
        """Refuse to write into a run that another process has taken over.

        Raises:
            WriteError: one has, as this one was silent for too long.
        """
        if self._seat is not None and self._seat.lost:
            raise WriteError(
                f"{self.path}: another process has taken over this run, as this one had not been "
                f"seen for {EXPIRES:.0f} s"
            )

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @classmethod
    def create(
        cls, config: Config, options: Options, origin: Checkpoint | None = None
    ) -> RunFolder:
        """Make the folder of a new run, with ``config.yaml`` and ``environment.json`` in it.

        The folder appears at once with all files; two runs that start in the same second get
        different ones. A fork starts with its parent's checkpoint, and the metrics up to it.

        Args:
            config: of the run.
            options: names of its files, and of the run it is forked from.
            origin: what it is forked from; named in ``environment.json``.

        Raises:
            ConfigError: the folder cannot be made, or the env of ``config`` is not registered.
            WriteError: the disk is full or read-only.
        """
        parent = Path(config.main_save_path) / options.env / options.algo
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-sd{config.seed}"
        if options.folder is not None:
            parent, name = options.folder.absolute().parent, options.folder.name
        partial = parent / f".{name}.{os.getpid()}.{time.monotonic_ns()}"
        names = {"expt": options.expt, "algo": options.algo, "env": options.env}
        try:
            partial.mkdir(parents=True)
            write_text(partial / "config.yaml", config_to_yaml(config))
            started = {"names": names, "started": environment(), "resumed": []}
            if origin is not None:
                started["parent"] = {"run": str(options.fork), "iteration": origin.iteration}
                _inherit(partial, origin, config)
            write_json(partial / "environment.json", started)
            path, attempt = parent / name, 1
            while True:
                try:
                    partial.rename(path)
                    break
                except OSError:
                    if not path.exists():
                        raise
                    if options.folder is not None:
                        raise
                    attempt += 1
                    path = parent / f"{name}-{attempt}"
        except (OSError, WriteError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            cause = error.__cause__ if isinstance(error, WriteError) else error
            assert isinstance(cause, OSError)
            if cause.errno in REFUSED:
                raise WriteError(f"{parent / name}: cannot be written: {cause.strerror}") from None
            where = f"main_save_path={config.main_save_path}"
            if options.folder is not None:
                where = f"--folder={options.folder}"
            raise ConfigError(
                f"{where}: cannot make {parent / name}: {cause.strerror or cause}"
            ) from None
        return cls(path)

    @classmethod
    def resume(cls, config: Config, options: Options) -> RunFolder:
        """Open the folder of an earlier run: ``options.resume``, with ``config`` from ``parse``.

        Writes ``config`` where it differs from the one in the folder, and a note of the
        resumption into ``environment.json``.

        Raises:
            ConfigError: no run lies there, its files are damaged, or another process is at work in
                it.
            OSError: nothing can be written there.
        """
        if options.resume is None or not (options.resume / "config.yaml").is_file():
            raise ConfigError(f"--resume={options.resume}: no run lies there")
        folder = cls(options.resume)
        try:
            notes = read_json(folder.environment_path, {"resumed": list})
            if config_from_yaml(folder.config_path, options.trust) != config:
                write_text(folder.config_path, config_to_yaml(config))
            notes["resumed"].append(environment())
            write_json(folder.environment_path, notes)
        except BaseException:
            folder.close()
            raise
        return folder

    @classmethod
    def open(cls, config: Config, options: Options, origin: Checkpoint | None = None) -> RunFolder:
        """``resume`` where ``options`` ask for it, else ``create``; in the main process."""
        opened: RunFolder | None = None

        def make() -> str:
            nonlocal opened
            if options.resume is not None:
                opened = cls.resume(config, options)
            else:
                opened = cls.create(config, options, origin)
            return str(opened.path)

        path = world.from_main(make)
        return cls(Path(path)) if opened is None else opened


def _inherit(folder: Path, origin: Checkpoint, config: Config) -> None:
    """Put what a fork takes from its parent into its folder: a checkpoint, and its metrics."""
    saved, state = origin.iteration, origin.state
    checkpoint.save(folder / "checkpoints", saved, state, about=about(config))
    source = origin.path.parents[1] / "metrics.jsonl"
    if source.is_file():
        data = read_bytes(source, inside=source.parent, most=MAX_METRICS)
        (folder / "metrics.jsonl").write_bytes(data)
        truncate(folder / "metrics.jsonl", saved)
