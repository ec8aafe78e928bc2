"""The folder of a run: ``<main_save_path>/<env>/<algo>/<time>-sd<seed>/``."""

from __future__ import annotations

import errno
import fcntl
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

import torch

from mg2l.config.files import config_from_yaml, config_to_yaml
from mg2l.config.options import Options
from mg2l.config.sections import Config
from mg2l.core.files import WriteError, read_json, write_json, write_text
from mg2l.core.schema import ConfigError
from mg2l.training import spaces

LOCK = ".lock"
REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES)
"""What a disk says that is full, broken or not to be written: no mistake of a command line."""

PACKAGES = ("mg2l", "torch", "numpy", "gymnasium", "safetensors", "tensorboard", "rich")


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")


def _git(*words: str) -> str | None:
    """What git says of the source that is running; None where it is not a checkout."""
    source = Path(__file__).resolve().parents[2]
    if not (source / ".git").exists():
        return None  # an installed copy inside somebody else's repository
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
    """What the process runs on: versions, commit, command line, processor, devices, time."""
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


def take_lock(path: Path) -> IO[bytes]:
    """Lock a file, made where there is none, until it is closed or the process ends.

    Raises:
        BlockingIOError: another process holds it.
        OSError: it cannot be made, or is a link.
    """
    # Never followed nor emptied: a folder that came from elsewhere may hold any link.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise
    except OSError:
        pass  # a file system without locks
    return file


class RunFolder:
    """A run's folder, owned by this process until ``close`` or its end.

    Attributes:
        path: the folder.
        config_path: the resolved config, which loads back to an equal ``Config``.
        environment_path: versions, command line and machine, of the start and of every resumption.
        metrics_path: one JSON object per iteration.
        spaces_path: spaces and tasks of the environment.
        checkpoints: folder of the checkpoints.
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
        self.tensorboard = path / "tensorboard"
        self._lock: IO[bytes] | None = None
        self._check()
        self._own()

    def _check(self) -> None:
        """Refuse a folder that would have something written elsewhere, or to a pipe or a device."""
        files = {self.config_path, self.environment_path, self.metrics_path, self.spaces_path}
        files.add(self.path / LOCK)
        for path in (*sorted(files), self.checkpoints, self.tensorboard):
            fits = path.is_file() if path in files else path.is_dir()
            if path.is_symlink() or (path.exists() and not fits):
                what = "a regular file" if path in files else "a folder"
                raise ConfigError(f"{path}: must be {what} of the run, and no link")

    def _own(self) -> None:
        """Take the lock, which the system frees however the process ends."""
        try:
            self._lock = take_lock(self.path / LOCK)
        except BlockingIOError:
            raise ConfigError(f"{self.path}: another process is at work in this run") from None

    def close(self) -> None:
        """Give the folder up."""
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @classmethod
    def create(cls, config: Config, options: Options) -> RunFolder:
        """Make the folder of a new run, with ``config.yaml`` and ``environment.json`` in it.

        The folder appears at once with both files; two runs that start in the same second get
        different ones.

        Raises:
            ConfigError: the folder cannot be made, or the env of ``config`` is not registered.
            WriteError: the disk is full or read-only.
        """
        parent = Path(config.main_save_path) / options.env / options.algo
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-sd{config.seed}"
        partial = parent / f".{name}.{os.getpid()}.{time.monotonic_ns()}"
        names = {"expt": options.expt, "algo": options.algo, "env": options.env}
        try:
            partial.mkdir(parents=True)
            write_text(partial / "config.yaml", config_to_yaml(config))
            started = {"names": names, "started": environment(), "resumed": []}
            write_json(partial / "environment.json", started)
            path, attempt = parent / name, 1
            while True:
                try:
                    partial.rename(path)
                    break
                except OSError:
                    if not path.exists():
                        raise
                    attempt += 1
                    path = parent / f"{name}-{attempt}"
        except (OSError, WriteError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            cause = error.__cause__ if isinstance(error, WriteError) else error
            assert isinstance(cause, OSError)
            if cause.errno in REFUSED:
                raise WriteError(f"{parent / name}: cannot be written: {cause.strerror}") from None
            raise ConfigError(
                f"main_save_path={config.main_save_path}: cannot make {parent / name}: "
                f"{cause.strerror or cause}"
            ) from None
        return cls(path)

    @classmethod
    def resume(cls, config: Config, options: Options) -> RunFolder:
        """Take up the folder of an earlier run: ``options.resume``, with ``config`` from ``parse``.

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
        notes = read_json(folder.environment_path, {"resumed": list})
        if config_from_yaml(folder.config_path, options.trust) != config:
            write_text(folder.config_path, config_to_yaml(config))
        notes["resumed"].append(environment())
        write_json(folder.environment_path, notes)
        return folder

    @classmethod
    def open(cls, config: Config, options: Options) -> RunFolder:
        """``resume`` where ``options`` ask for it, else ``create``."""
        if options.resume is not None:
            return cls.resume(config, options)
        return cls.create(config, options)
