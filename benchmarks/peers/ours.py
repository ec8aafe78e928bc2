"""An iteration of ``mappo`` as ``python -m mg2l.train`` does it."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from mg2l.config import files
from mg2l.training.learner import Learner
from mg2l.training.loop import exempt_from_gc, iterate


def make(hidden: int, minibatches: int) -> Callable[[], object]:
    """An iteration of a learner, whose networks are ``hidden`` wide."""
    values = [f"algo_hidden_size={hidden}", f"num_mini_batch={minibatches}", "n_iters=1000000"]
    device = torch.device(os.environ.get("PEER_DEVICE", "cpu"))
    learner = Learner(files.load_config("default", "mappo", "mpe-spread", values), device)
    learner.prepare()
    exempt_from_gc()
    done = 0

    def run() -> None:
        nonlocal done
        iterate(learner, done)
        done += 1

    return run
