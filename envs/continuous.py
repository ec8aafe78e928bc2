"""Tasks drawn from a continuous distribution: too many to memorise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mg2l.core.schema import bounded
from mg2l.envs.base import EnvConfig, TaskSet

Doubles = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Doubles]

TRAIN, TEST, OOD = range(3)
"""Streams of random numbers of a seed, one for the tasks of each part."""


@dataclass
class ContinuousConfig(EnvConfig):
    """How many tasks are drawn; ``task_seed`` draws them.

    Held-out tasks are the same for any number of training tasks, and fewer training tasks are among
    those of more.
    """

    max_ep_len: int = bounded(50, ge=1, le=1_000_000)
    """Steps after which an episode is truncated."""

    n_tasks: int = bounded(40, ge=1, le=100_000)
    """Training tasks."""

    n_test_tasks: int = bounded(16, ge=0, le=100_000)
    """Held-out tasks of the same distribution."""

    n_ood_tasks: int = bounded(8, ge=0, le=100_000)
    """Tasks beyond that distribution."""


def continuous_tasks(config: ContinuousConfig, key: str, draw: Draw, beyond: Doubles) -> TaskSet:
    """A task set of drawn tasks.

    Args:
        config: numbers of tasks of each part.
        key: name of the task's numbers in its parameters.
        draw: a number of tasks of the distribution, ``[count, F]``, one after the other.
        beyond: ``[n_ood_tasks, F]`` tasks beyond it.
    """
    train, test = (np.random.default_rng([config.task_seed, part]) for part in (TRAIN, TEST))
    inside = [draw(train, config.n_tasks), draw(test, config.n_test_tasks)]
    features = np.concatenate([*inside, beyond]).astype(np.float32)
    counts = {
        "train": config.n_tasks, "test": config.n_test_tasks, "ood": config.n_ood_tasks
    }  # fmt: skip
    return TaskSet(
        params=[{key: [float(x) for x in row]} for row in features],
        features=features,
        names=[f"{part} {i}" for part, count in counts.items() for i in range(count)],
        n_train=config.n_tasks,
        n_test=config.n_test_tasks,
    ).with_validation(config)


def signed(values: int) -> Draw:
    """Draws tasks ``[count, values]``, uniform in [-1, 1]."""
    return lambda rng, count: rng.uniform(-1, 1, (count, values))


def one_positive(count: int, values: int) -> Doubles:
    """``[count, values]`` of -1 but for one 1 in each row; then two, then three, and so on."""
    rows = np.full((count, values), -1.0)
    for row in range(count):
        size = 1 + row // values % values
        rows[row, (row + np.arange(size)) % values] = 1.0
    return rows
