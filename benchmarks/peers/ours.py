"""An iteration of ``mappo`` as ``python -m mg2l.train`` does it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from mg2l.config import files
from mg2l.training.learner import Learner
from mg2l.training.loop import iterate


def make(hidden: int, minibatches: int) -> Callable[[], object]:
    """An iteration of a learner, whose networks are ``hidden`` wide."""
    values = [f"algo_hidden_size={hidden}", f"num_mini_batch={minibatches}", "n_iters=1000000"]
    learner = Learner(
        files.load_config("default", "mappo", "mpe-spread", values), torch.device("cpu")
    )
    learner.prepare()
    done = 0

    def run() -> None:
        nonlocal done
        iterate(learner, done)
        done += 1

    return run
