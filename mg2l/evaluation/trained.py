"""Learners loaded from the checkpoints of runs."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import torch

from mg2l.config.saved import about, config_from_yaml, config_to_yaml
from mg2l.config.sections import Config
from mg2l.core.files import write_text, writing
from mg2l.core.schema import ConfigError
from mg2l.envs import registry
from mg2l.envs.base import EnvConfig, Seed, VectorEnv
from mg2l.training import checkpoint, spaces
from mg2l.training.device import select_device
from mg2l.training.learner import Learner


def read_config(path: Path, trust: bool = False) -> Config:
    """The config of a run.

    Raises:
        ConfigError: no run lies at ``path``, or it names code that is not imported.
    """
    if not (path / "config.yaml").is_file():
        raise ConfigError(f"{path}: no run lies there (it has no config.yaml)")
    return config_from_yaml(path / "config.yaml", trust)


def load(
    path: Path,
    device: torch.device | None = None,
    trust: bool = False,
    with_env: bool = True,
) -> Learner:
    """The learner of a run, its networks from a checkpoint.

    Args:
        path: folder of the run, whose last checkpoint is read, or one of its checkpoints.
        device: device of its networks; None is the one that it was trained on.
        trust: import the code that the run names, see `mg2l.config.saved.config_from_yaml`.
        with_env: build its environment. Else only spaces and tasks are there, where the run has
            written them.

    Raises:
        ConfigError: no run lies at ``path``.
        CheckpointError: it has no whole checkpoint.
    """
    run, name = checkpoint.locate(path)
    config = read_config(run, trust)

    def make(env: EnvConfig, num_envs: int, seed: Seed) -> VectorEnv:
        described = run / spaces.FILE
        if with_env or not described.is_file():
            return registry.make(env, num_envs, seed)
        return spaces.SpacesOnly(described, env, num_envs)

    learner = Learner(config, device or select_device(config.gpu_id), make)
    where = run / "checkpoints" / name if name else run
    learner.load_networks(checkpoint.load_networks(where, learner.networks()))
    return learner


def iteration_of(path: Path) -> int:
    """Iterations after which the checkpoint that `load` reads was written; 0 before the first."""
    run, name = checkpoint.locate(path)
    if name and not name.isdecimal():
        return checkpoint.load(run / "checkpoints" / name).iteration
    return int(name) if name else checkpoint.last_iteration(run / "checkpoints")


def save(learner: Learner, iteration: int, folder: Path) -> None:
    """Write what `load` needs of a run, all at once: config, spaces and networks.

    Args:
        learner: its networks are written, without optimisers and replay.
        iteration: iterations after which they are as they are.
        folder: must not exist.

    Raises:
        ConfigError: there is something at ``folder``.
        WriteError: it cannot be written.
    """
    if folder.exists() or folder.is_symlink():
        raise ConfigError(f"folder={folder}: exists; a team is written to a new folder")
    # Where the run lay, and what it began with, is of no use elsewhere.
    config = dataclasses.replace(
        learner.config, main_save_path="runs", load_model=False, load_model_path=""
    )
    partial = folder.with_name(f".{folder.name}.partial")
    with writing(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            write_text(partial / "config.yaml", config_to_yaml(config))
            spaces.write(partial / spaces.FILE, learner.env)
            state = {"networks": learner.networks()}
            checkpoint.save(partial / "checkpoints", iteration, state, about=about(config))
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
