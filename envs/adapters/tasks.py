"""Tasks of a third-party environment: the parameters of its factory."""

from __future__ import annotations

import hashlib
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mg2l.core.schema import ConfigError
from mg2l.envs.base import EnvConfig, TaskSet

Params = dict[str, Any]
_LARGEST = 1e3  # numbers up to here are features as they are
_NARROWEST = 1e-2  # fraction of the largest that they must differ by


def sample(
    draw: Callable[[np.random.Generator], Params], count: int, seed: int = 0
) -> list[Params]:
    """``count`` tasks from a distribution.

    Args:
        draw: ``draw(rng)`` gives a task's parameters.
        count: number of tasks.
        seed: random seed of ``rng``.
    """
    rng = np.random.default_rng(seed)
    return [draw(rng) for _ in range(count)]


def task_set(train: Sequence[Params], test: Sequence[Params], config: EnvConfig) -> TaskSet:
    """Training tasks, as many as ``config`` asks for, and all test tasks.

    Features are the parameters. Finite numbers are used as they are where a network can distinguish
    them; standardised, where they are beyond 1000 or differ by less than a hundredth; by their
    ranks, standardised, where some are much closer than others. Anything else is one-hot among
    its values. A task without parameters has a feature that is 0.

    Raises:
        ConfigError: there is no training task, tasks differ in their parameters' names, two are
            equal, a parameter is an object that cannot be written as text, or ``n_tasks`` is more
            than there are.
    """
    if not train:
        raise ConfigError("train must hold at least one task, got none")
    if config.n_tasks > len(train):
        raise ConfigError(f"n_tasks must be at most {len(train)}, got {config.n_tasks}")
    order = np.arange(len(train))
    if 0 < config.n_tasks < len(train):
        order = np.random.default_rng(config.task_seed).permutation(len(train))[: config.n_tasks]
    params = [*(train[i] for i in sorted(order.tolist())), *test]
    for task in params:
        if not isinstance(task, Mapping):
            raise ConfigError(f"a task must be a dict of parameters, got {task!r}")
    keys = list(params[0])
    for task in params:
        if set(task) != set(keys):
            raise ConfigError(f"every task must have the parameters {keys}, got {list(task)}")
    values = {key: [_plain(key, task[key]) for task in params] for key in keys}
    columns = [_columns(column) for column in values.values()] or [np.zeros((len(params), 1))]
    texts = [[f"{key}={text}" for text in _texts(column)] for key, column in values.items()]
    names = [", ".join(row) for row in zip(*texts, strict=True)] or ["no parameters"] * len(params)
    features = np.concatenate(columns, 1).astype(np.float32)
    first: dict[tuple[float, ...], int] = {}  # 1, 1.0 and True are one value, as are 0 and -0.0
    for index, row in enumerate(map(tuple, features.tolist())):
        if first.setdefault(row, index) != index:
            raise ConfigError(f"tasks {first[row]} and {index} are the same: {names[index]}")
    tasks = TaskSet([dict(task) for task in params], features, names, len(order))
    return tasks.with_validation(config)


def _plain(key: str, value: Any) -> Any:
    """A parameter without arrays' types, so that it can be compared and written."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return {part: _plain(key, value[part]) for part in sorted(value, key=repr)}
    if isinstance(value, (list, tuple)):
        return [_plain(key, part) for part in value]
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    if " at 0x" in repr(value):
        raise ConfigError(
            f"parameter {key!r} must be None, a text, a number or a list of these, got {value!r}"
        )
    return value


def _columns(values: list[Any]) -> NDArray[np.float64]:
    """``[K, d]`` a parameter of all tasks."""
    if all(map(_is_number, values)):
        return _scaled(values)[:, None]
    shapes = {_shape(value) for value in values}
    if len(shapes) == 1 and None not in shapes and shapes != {()}:
        rows = [np.ravel(np.array(value, object)) for value in values]
        if all(_is_number(number) for row in rows for number in row):
            return np.stack([_scaled(list(column)) for column in zip(*rows, strict=True)], 1)
    texts = [repr(value) for value in values]
    distinct = sorted(set(texts))
    return np.eye(len(distinct))[[distinct.index(text) for text in texts]]


def _shape(value: Any) -> tuple[int, ...] | None:
    """Shape of nested lists; None where they are ragged or empty."""
    if not isinstance(value, (list, tuple)):
        return ()
    inner = {_shape(part) for part in value}
    shape = inner.pop() if len(inner) == 1 else None
    return None if shape is None else (len(value), *shape)


def _is_number(value: Any) -> bool:
    if not isinstance(value, numbers.Real):
        return False
    try:
        return bool(np.isfinite(float(value)))
    except OverflowError:
        return False


def _scaled(values: list[Any]) -> NDArray[np.float64]:
    """``[K]`` finite numbers, so that those which differ do so for a network."""
    distinct = sorted(set(values))
    # Differences are exact where the numbers themselves do not fit into a float.
    row = np.array([float(value - distinct[0]) for value in values])
    gaps = np.diff(np.unique(row))
    span, largest = row.max(), max(map(abs, map(float, distinct)))
    crowded = len(gaps) + 1 < len(distinct) or (gaps < 1e-3 * span / len(distinct) ** 2).any()
    if crowded or not np.isfinite(span):
        places = {value: place for place, value in enumerate(distinct)}
        row = np.array([places[value] for value in values], np.float64)
    elif largest <= _LARGEST and (span == 0 or span >= _NARROWEST * max(1, largest)):
        return np.array(values, np.float64)
    row /= row.max() or 1  # so that squares neither overflow nor vanish
    standardised: NDArray[np.float64] = (row - row.mean()) / (row.std() or 1)
    return standardised


def _texts(values: list[Any]) -> list[str]:
    """The values as short as they still differ."""
    exact = list(map(repr, values))
    short = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    short = [" ".join(text.split()) for text in short]
    texts = short if len(set(short)) == len(set(exact)) and all(short) else exact
    return [text if len(text) <= 60 else _abbreviated(text) for text in texts]


def _abbreviated(text: str) -> str:
    return f"{' '.join(text[:40].split())}... {hashlib.sha256(text.encode()).hexdigest()[:8]}"
