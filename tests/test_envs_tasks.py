"""Tasks of foreign environments: what makes them different, as an oracle reads it."""

from typing import Any, cast

import numpy as np
import pytest
import torch

from mg2l.core.schema import ConfigError
from mg2l.envs import adapters
from mg2l.envs.base import EnvConfig


def test_tasks():
    draw = adapters.sample(lambda rng: {"goal": float(rng.uniform()), "map": "a"}, 3, seed=1)
    assert draw == adapters.sample(
        lambda rng: {"goal": float(rng.uniform()), "map": "a"}, 3, seed=1
    )
    tasks = adapters.task_set(draw, [{"goal": 2.0, "map": "b"}], EnvConfig())
    assert tasks.n_train == 3
    np.testing.assert_allclose(tasks.features[:, 0], [*(task["goal"] for task in draw), 2.0])
    assert tasks.features[:, 1:].tolist() == [[1, 0]] * 3 + [[0, 1]]
    assert tasks.names[3] == "goal=2, map=b"
    chosen = adapters.task_set(draw, [], EnvConfig(n_tasks=2, task_seed=3))
    assert len(chosen) == 2
    with pytest.raises(ConfigError, match="n_tasks must be at most 3, got 4"):
        adapters.task_set(draw, [], EnvConfig(n_tasks=4))
    with pytest.raises(ValueError, match=r"every task must have the parameters \['goal', 'map'\]"):
        adapters.task_set(draw, [{"map": "b"}], EnvConfig())
    with pytest.raises(ValueError, match="at least one task"):
        adapters.task_set([], [], EnvConfig())


def features(*values):
    return adapters.task_set([{"x": value} for value in values], [], EnvConfig())


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.5, 2, True], [[0.5], [2], [1]]),
        ([-3.0, 1000.0], [[-3], [1000]]),
        ([None, 0.5], [[0, 1], [1, 0]]),
        ([float("inf"), 2.0], [[0, 1], [1, 0]]),
        ([float("nan"), 2.0, "nan"], [[0, 0, 1], [0, 1, 0], [1, 0, 0]]),
        (["nan", "inf"], [[0, 1], [1, 0]]),
        (["1", "2"], [[1, 0], [0, 1]]),
        ([None, "None"], [[0, 1], [1, 0]]),
        ([123456789, 123456790], [[-1], [1]]),
        ([2**70, 2**70 + 1], [[-1], [1]]),
        ([1.0000001, 1.0000002], [[-1], [1]]),
        ([1e-9, 2e-9], [[-1], [1]]),
        ([1e308, -1e308], [[1], [-1]]),
        ([0, 1, 1 + 1e-12], [[-(1.5**0.5)], [0], [1.5**0.5]]),
        ([[1, 2], [3, 4]], [[1, 2], [3, 4]]),
        ([[1, 2], [3]], [[1, 0], [0, 1]]),
        ([[1, None], [1, 2]], [[0, 1], [1, 0]]),
        ([np.array([1.0, 2.0]), np.array([1.0, 3.0])], [[1, 2], [1, 3]]),
        ([torch.tensor(1.0), torch.tensor(2.0)], [[1], [2]]),
        (["", " ", "a\nb", "a b"], np.eye(4)[[1, 0, 3, 2]]),
    ],
)
def test_features_of_tasks(values, expected):
    tasks = features(*values)
    np.testing.assert_allclose(tasks.features, expected, rtol=1e-6)
    assert len(set(tasks.names)) == len(values)


def test_tasks_without_features():
    assert features(3, 4).names == ["x=3", "x=4"]
    tasks = adapters.task_set([{}], [], EnvConfig())
    assert (list(tasks.names), tasks.features.tolist()) == (["no parameters"], [[0]])
    for call, message in [
        (lambda: features(1.5, 1.5), "tasks 0 and 1 are the same: x=1.5"),
        (lambda: features(1, 1.0), "tasks 0 and 1 are the same: x=1"),
        (lambda: features(0.0, -0.0), "tasks 0 and 1 are the same"),
        (lambda: features(True, 2, 1), "tasks 0 and 2 are the same"),
        (lambda: features((1, 2), [1, 2]), "tasks 0 and 1 are the same"),
        (lambda: features({"a": 1, "b": 2}, {"b": 2, "a": 1}), "tasks 0 and 1 are the same"),
        (lambda: adapters.task_set([{}, {}], [], EnvConfig()), "tasks 0 and 1 are the same"),
        (lambda: adapters.task_set([{"a": 1}, {}], [], EnvConfig()), "must have the parameters"),
        (
            lambda: adapters.task_set(cast("Any", [3]), [], EnvConfig()),
            "must be a dict of parameters, got 3",
        ),
        (lambda: features(object()), "parameter 'x' must be None, a text, a number or a list"),
    ]:
        with pytest.raises(ConfigError, match=message):
            call()
    big = adapters.task_set([{"x": list(range(99))}, {"x": list(range(98))}], [], EnvConfig())
    assert max(map(len, big.names)) < 70
