"""A small run that is trained once, and programs of mg2l called in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import mg2l.train as train

SMALL = [
    *("--algo=mg2l", "--env=mpe-spread", "n_iters=4", "save_interval=2", "gpu_id=-1", "seed=3"),
    *("max_ep_len=6", "n_rollout_threads=4", "n_ae_rollout_threads=2", "n_init_rollouts=1"),
    *("ppo_epoch=1", "ae_updates_per_iter=1", "ae_batch_size=8", "ae_buffer_size=40"),
    *("algo_hidden_size=8", "context_dim=4", "sample_ae_interval=2", "n_init_updates=1"),
]


def status(monkeypatch: pytest.MonkeyPatch, main: Callable[[], int | None], *words: object) -> int:
    """Exit status of a program called with these words."""
    monkeypatch.setattr(sys, "argv", ["program", *map(str, words)])
    try:
        return main() or 0
    except SystemExit as error:
        return int(error.code or 0)


def small_run(root: Path) -> Path:
    """Train four iterations, and return the folder."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert status(monkeypatch, train.main, *SMALL, f"main_save_path={root}") == 0
    (folder,) = root.glob("*/*/*-sd3")
    return folder
