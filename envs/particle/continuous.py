"""Tasks drawn from a continuous distribution: so many that none can be learned by heart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mg2l.core.schema import bounded
from mg2l.envs.base import EnvConfig, TaskSet
from mg2l.envs.particle.world import Doubles


@dataclass
class ContinuousConfig(EnvConfig):
    """How many tasks are drawn; ``task_seed`` draws them."""

    max_ep_len: int = bounded(50, ge=1, le=1_000_000)
    """Steps after which an episode is truncated."""

    n_tasks: int = bounded(40, ge=1, le=100_000)
    """Training tasks."""

    n_test_tasks: int = bounded(16, ge=0, le=100_000)
    """Held-out tasks of the same distribution."""

    n_ood_tasks: int = bounded(8, ge=0, le=100_000)
    """Tasks beyond that distribution."""


def continuous_tasks(
    config: ContinuousConfig, key: str, inside: Doubles, beyond: Doubles
) -> TaskSet:
    """A task set of drawn tasks.

    Args:
        config: how many there are of each part.
        key: what a task's numbers are called in its parameters.
        inside: ``[n_tasks + n_test_tasks, F]`` tasks of the distribution.
        beyond: ``[n_ood_tasks, F]`` tasks beyond it.
    """
    features = np.concatenate([inside, beyond]).astype(np.float32)
    counts = {
        "train": config.n_tasks, "test": config.n_test_tasks, "ood": config.n_ood_tasks
    }  # fmt: skip
    return TaskSet(
        params=[{key: [float(x) for x in row]} for row in features],
        features=features,
        names=[f"{part} {i}" for part, count in counts.items() for i in range(count)],
        n_train=config.n_tasks,
        n_test=config.n_test_tasks,
    )


def one_positive(count: int, values: int) -> Doubles:
    """``[count, values]`` of -1 but for one 1 in each row; then two, then three, and so on."""
    rows = np.full((count, values), -1.0)
    for row in range(count):
        size = 1 + row // values % values
        rows[row, (row + np.arange(size)) % values] = 1.0
    return rows
