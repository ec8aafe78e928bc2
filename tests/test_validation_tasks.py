"""Validation tasks: split off the training tasks, by a seed, and known to whatever uses parts."""

import numpy as np
import pytest
from adapted_envs import TEST, TRAIN, make_walkers
from method_helpers import tiny_learner

from mg2l.api import callbacks
from mg2l.core.schema import ConfigError
from mg2l.envs import TaskSet, adapters, registry
from mg2l.envs.base import EnvConfig
from mg2l.evaluation import measure
from mg2l.evaluation.meta_test import PeriodicTest
from mg2l.training import progress


def tasks(n_train=6, n_test=2):
    features = np.arange(10, dtype=np.float32)[:, None]
    names = [f"task {i}" for i in range(10)]
    return TaskSet([{"x": i} for i in range(10)], features, names, n_train, n_test)


def split(count, seed=0):
    return tasks().with_validation(EnvConfig(n_validation_tasks=count, task_seed=seed))


def test_validation_tasks_are_training_tasks_that_are_not_trained_on():
    found = split(2)
    assert {part: len(ids) for part, ids in found.parts.items()} == {
        "train": 4, "validation": 2, "test": 2, "ood": 2,
    }  # fmt: skip
    held = {part: found.features[ids, 0].tolist() for part, ids in found.parts.items()}
    assert sorted(held["train"] + held["validation"]) == [0, 1, 2, 3, 4, 5]
    assert held["train"] == sorted(held["train"])
    assert (held["test"], held["ood"]) == ([6, 7], [8, 9])
    for row, params, name in zip(found.features[:, 0], found.params, found.names, strict=True):
        assert params == {"x": row}
        assert name == f"task {int(row)}"


def test_a_seed_chooses_them():
    chosen = [frozenset(split(2, seed).names[4:6]) for seed in (0, 0, *range(1, 8))]
    assert chosen[0] == chosen[1]
    assert len(set(chosen)) > 3
    assert split(0).parts.keys() == {"train", "test", "ood"}


def test_something_is_left_to_train_on():
    with pytest.raises(ConfigError, match="must be below 6, the number of training tasks, got 6"):
        split(6)
    with pytest.raises(ValueError, match=r"n_validation must be in \[0, 1\], got 2"):
        TaskSet([{}] * 2, np.zeros((2, 1), np.float32), ["a", "b"], 1, 0, 2)


@pytest.mark.parametrize("name", [*registry.names(), "adapted"])
def test_every_family_sets_them_aside(name):
    if name == "adapted":
        adapters.register("adapted", make_walkers, TRAIN, TEST)
    section = registry.config_class(name)
    whole = registry.make(section(), 1)
    env = registry.make(section(n_validation_tasks=1), 2)
    before, after = whole.tasks, env.tasks
    assert after.n_train == before.n_train - 1
    assert sorted(after.names[: before.n_train]) == sorted(before.names[: before.n_train])
    assert list(after.names[before.n_train :]) == list(before.names[before.n_train :])
    where = [list(before.names).index(name) for name in after.names]
    np.testing.assert_array_equal(after.features, before.features[where])
    # What is played on the validation task is what was played on it as a training task.
    (task,) = after.validation_ids
    seen, _ = env.reset(seed=[3, 3], task_ids=[task, task])
    expected, _ = whole.reset(seed=[3], task_ids=[where[task]])
    np.testing.assert_array_equal(seen[0], expected[0])
    actions = np.zeros((2, env.num_agents, *env.action_layout.shape), env.action_layout.dtype)
    for _ in range(5):
        seen, paid, *_ = env.step(actions)
        expected, expected_pay, *_ = whole.step(actions[:1])
        np.testing.assert_array_equal(seen[0], expected[0])
        np.testing.assert_array_equal(paid[0], expected_pay[0])
    env.close()
    whole.close()


def test_a_family_that_cannot_says_so():
    class OwnConfig(EnvConfig):
        pass

    class Env:
        tasks = tasks()

        def close(self):
            pass

    registry.register("own", OwnConfig, lambda config, num_envs, seed: Env())  # type: ignore[arg-type,return-value]
    registry.make(OwnConfig(), 1)
    with pytest.raises(ConfigError, match="n_validation_tasks=2: env 'own' sets 0 tasks aside"):
        registry.make(OwnConfig(n_validation_tasks=2), 1)


def test_tuning_looks_at_validation_tasks_where_there_are_any():
    """So that held-out tasks are looked at only once, in the end."""
    learner = tiny_learner("mappo", "mpe-goals", n_tasks=4, n_validation_tasks=1, eval_shots=[0])

    class Training:
        pass

    training = Training()
    training.learner, training.config = learner, learner.config  # type: ignore[attr-defined]
    assert callbacks.default_metric(training) == "eval/validation_0_shots"  # type: ignore[arg-type]
    periodic = PeriodicTest(learner)
    metrics = periodic.measure()
    periodic.close()
    assert progress.tested_return(metrics) == metrics["eval/validation_0_shots"]
    assert {name.split("_")[0] for name in metrics if name.startswith("eval/")} == {
        "eval/train", "eval/validation", "eval/test", "eval/ood",
    }  # fmt: skip
    assert learner.tasks == 3
    found, _ = measure.evaluate(learner, None, [0], 1)
    assert {row["split"] for row in found["results"]} == {"train", "validation", "test", "ood"}
