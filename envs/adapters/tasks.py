"""Tasks of a foreign environment: what its factory is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mg2l.envs.base import EnvConfig, TaskSet
from mg2l.schema import ConfigError

Params = dict[str, Any]


def sample(
    draw: Callable[[np.random.Generator], Params], count: int, seed: int = 0
) -> list[Params]:
    """``count`` tasks from a distribution.

    Args:
        draw: ``draw(rng)`` gives a task's parameters.
        count: number of tasks.
        seed: of ``rng``.
    """
    rng = np.random.default_rng(seed)
    return [draw(rng) for _ in range(count)]


def task_set(train: Sequence[Params], test: Sequence[Params], config: EnvConfig) -> TaskSet:
    """Training tasks, as many as ``config`` asks for, and all test tasks.

    Features are the parameters: numbers as they are, anything else one-hot among its values.

    Raises:
        ValueError: there is no training task, tasks differ in their parameters' names, or two are
            equal.
        ConfigError: ``n_tasks`` is more than there are.
    """
    if not train:
        raise ValueError("train must hold at least one task, got none")
    if config.n_tasks > len(train):
        raise ConfigError(f"n_tasks must be at most {len(train)}, got {config.n_tasks}")
    order = np.arange(len(train))
    if 0 < config.n_tasks < len(train):
        order = np.random.default_rng(config.task_seed).permutation(len(train))[: config.n_tasks]
    params = [dict(train[i]) for i in sorted(order.tolist())] + [dict(task) for task in test]
    keys = list(params[0])
    for task in params:
        if list(task) != keys:
            raise ValueError(f"every task must have the parameters {keys}, got {list(task)}")
    columns = [_column([task[key] for task in params]) for key in keys]
    names = [", ".join(f"{key}={_shown(task[key])}" for key in keys) for task in params]
    return TaskSet(params, np.concatenate(columns, 1), names, len(order))


def _column(values: list[Any]) -> NDArray[np.float32]:
    """``[K, d]`` a parameter of all tasks as numbers."""
    try:
        numbers = np.array(values, np.float32)
        return numbers.reshape(len(values), -1)
    except (TypeError, ValueError):
        shown = [_shown(value) for value in values]
        distinct = sorted(set(shown))
        return np.eye(len(distinct), dtype=np.float32)[[distinct.index(text) for text in shown]]


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
