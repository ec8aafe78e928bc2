"""A return is one episode's, also where episodes end before the rollout does."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from gymnasium.spaces import Box, Discrete
from method_helpers import TINY
from numpy.typing import NDArray

from mg2l.config import files as loading
from mg2l.config.files import CONFIGS, load_config
from mg2l.envs import EnvConfig, TaskSet, registry
from mg2l.envs.batched import BatchedEnv
from mg2l.evaluation import measure
from mg2l.evaluation.meta_test import MetaTest, PeriodicTest
from mg2l.evaluation.video import VideoRenderer
from mg2l.experience.rollout import Rollout
from mg2l.training.learner import Learner
from mg2l.training.loop import iterate

LENGTHS = (3, 4, 7, 5, 10)  # of the episodes of each task; the last two are held out
ALGORITHMS = loading.available("algo")


@dataclass
class CountdownConfig(EnvConfig):
    """Episodes of a length that the task says."""

    max_ep_len: int = 12


class Countdown(BatchedEnv):
    """Agent i is paid i + 1 at every step; an episode of task k ends after ``LENGTHS[k]``."""

    def __init__(self, config: CountdownConfig, num_envs: int, seed: int = 0) -> None:
        tasks = TaskSet(
            params=[{"length": length} for length in LENGTHS],
            features=np.eye(len(LENGTHS), dtype=np.float32),
            names=[f"{length} steps" for length in LENGTHS],
            n_train=3,
        )
        box = Box(-np.inf, np.inf, (4,), np.float32)
        super().__init__(tasks, num_envs, 2, box, Discrete(3), config.max_ep_len, seed)

    def _begin(self, env_ids: NDArray[np.int64]) -> None:
        for env_id in env_ids:
            self._streams.generators[env_id].random()

    def _advance(self, actions: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        over = self._clock + 1 == np.array(LENGTHS)[self.task_ids]
        rewards = np.broadcast_to(np.array([1, 2], np.float32), (self.num_envs, 2)).copy()
        return rewards, over[:, None].repeat(2, 1)

    def _observe(self) -> NDArray[np.float32]:
        obs = np.zeros((self.num_envs, 2, 4), np.float32)
        obs[..., 0] = self._clock[:, None]
        obs[..., 1] = self.task_ids[:, None]
        return obs

    def _simulation(self) -> dict[str, NDArray[Any]]:
        return {}

    def _restore(self, state: dict[str, NDArray[Any]]) -> None:
        pass

    def render(self, index: int = 0) -> NDArray[np.uint8]:
        return np.full((60, 60, 3), 20 * int(self._clock[index]), np.uint8)


@pytest.fixture(autouse=True)
def countdown(registries):
    registry.register("countdown", CountdownConfig, Countdown)


def learner_of(algo: str, **values: Any) -> Learner:
    sizes = {**TINY, "max_ep_len": 12, "n_rollout_threads": 6, "data_chunk_length": 4}
    config = loading.load_config(algo=algo, env="countdown", overrides={**sizes, **values})
    learner = Learner(config, torch.device("cpu"))
    learner.prepare()
    return learner


@pytest.mark.parametrize("algo", ["mappo", "mg2l", "rl2"])
def test_training(algo):
    learner = learner_of(algo)
    steps = learner.config.rollout_envs * learner.config.rollout_steps
    before = learner.env_steps
    metrics = iterate(learner, 0)
    for task, value in metrics["return_by_task"].items():
        assert value == 1.5 * LENGTHS[int(task)]
    length = metrics["episode_length"]
    assert metrics["return"] == pytest.approx(1.5 * length)
    assert 3 <= length <= 7
    assert 0 <= metrics["unfinished"] < 0.5
    assert learner.env_steps - before >= steps


def rollout_of(rewards: list[list[float]], episode_start: list[list[int]]) -> Rollout:
    """A rollout of one agent, with only rewards and episode starts."""
    nothing: Any = None
    parts = dict.fromkeys(Rollout.__dataclass_fields__, nothing)
    parts["rewards"] = torch.tensor(rewards).t().unsqueeze(-1)
    parts["episode_start"] = torch.tensor(episode_start).bool().t()
    return Rollout(**parts)


def test_episodes_of_a_rollout():
    rollout = rollout_of(
        [[1, 2, 4, 8, 16], [1, 2, 4, 8, 16], [1, 2, 4, 8, 16]],
        [[1, 0, 1, 1, 0, 0], [1, 0, 0, 0, 0, 1], [1, 1, 0, 1, 0, 1]],
    )
    found = rollout.episodes()
    assert sorted(zip(*(x.squeeze().tolist() for x in found), strict=True)) == [
        (1, 1, 2), (3, 2, 0), (4, 1, 0), (6, 2, 2), (24, 2, 2), (31, 5, 1),
    ]  # fmt: skip
    assert rollout.episode(0).returns.squeeze().tolist() == [3, 31, 1]
    assert rollout.episode(0).lengths.tolist() == [2, 5, 1]
    with pytest.raises(ValueError, match="episode 1 has not ended in all environments"):
        rollout.episode(1)
    assert rollout.within(1).t().int().tolist() == [[1, 1, 0, 0, 0], [1] * 5, [1, 0, 0, 0, 0]]
    twice = rollout_of([[1, 2, 4], [1, 2, 4]], [[1, 0, 1, 1], [1, 1, 1, 0]])
    assert twice.episode(1).returns.squeeze().tolist() == [4, 2]


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_meta_test_of_every_algorithm(algo):
    """K shots are K episodes, and the one that counts is one episode."""
    learner = learner_of(algo)
    test = MetaTest(learner, range(5), 2, seed=3)
    expected = torch.tensor(LENGTHS).repeat_interleave(2)
    paid = expected.unsqueeze(1) * torch.tensor([1.0, 2.0])
    played = [test.play(shots) for shots in (0, 1, 2)]
    if test.infers:
        played.append(test.play_online())
    for episode in played:
        assert torch.equal(episode.lengths, expected)
        assert torch.equal(episode.returns, paid.double())
    returns, lengths = test.play_random()
    assert lengths.tolist() == expected.tolist()
    np.testing.assert_array_equal(returns, paid)
    test.close()


def test_contexts_of_a_shot_come_from_one_episode():
    """A sub-environment that ends early has not seen the steps that others took meanwhile."""
    learner = learner_of("mg2l")
    test = MetaTest(learner, range(5), 1, seed=0)
    with learner.isolated_rng(0):
        experience = test.explore(2)
    assert experience is not None
    assert experience.shape[:2] == (5, 2 * max(LENGTHS))
    clock = experience[:, :, 0, 0]
    for env_id, length in enumerate(LENGTHS):
        assert clock[env_id].max() == length - 1
        assert clock[env_id].unique().tolist() == list(range(length))
    mean = clock.mean(1)  # no step of an episode counts much more than another
    assert ((mean - (torch.tensor(LENGTHS) - 1) / 2).abs() < 0.7).all()


def test_a_rollout_stops_when_every_copy_has_ended():
    learner = learner_of("mappo")
    rollout = learner.collector.collect(24, np.array([0, 1, 2, 0, 0, 0]), None, episodes=1)
    assert len(rollout.rewards) == 7
    assert rollout.episode_start.shape == (8, 6)


def test_tests_in_the_course_of_training():
    learner = learner_of("varibad", eval_shots=[0, 1], eval_episodes=2)
    periodic = PeriodicTest(learner)
    found = periodic.measure()
    for shots in (0, 1):
        assert found[f"eval/train_{shots}_shots"] == pytest.approx(1.5 * np.mean(LENGTHS[:3]))
        assert found[f"eval/test_{shots}_shots"] == pytest.approx(1.5 * np.mean(LENGTHS[3:]))
    periodic.close()


@pytest.mark.parametrize("algo", ["mg2l", "varibad"])
def test_evaluation_and_its_table(algo, tmp_path):
    found, played = measure.evaluate(learner_of(algo), None, [0, 1], 2)
    held_out = [row for row in found["results"] if row["split"] == "test"]
    for row in held_out:
        assert row["episode_length"] == 7.5
        assert row["return"] == 1.5 * 7.5
        assert row["by_task"]["5 steps"]["return"] == 7.5
        assert [agent["return"] for agent in row["by_agent"]] == [7.5, 15]
    measure.write_csv(tmp_path / "evaluation.csv", 0, played)
    rows = list(csv.DictReader((tmp_path / "evaluation.csv").open()))
    for row in rows:
        length = int(row["task"].split()[0])
        assert int(row["length"]) == length
        assert float(row["return"]) == length * (1 + int(row["agent"]))
    json.dumps(found)


@pytest.mark.parametrize(
    ("algo", "phases"),
    [
        ("mg2l", [("exploring", 5), ("acting", 5)]),
        ("varibad", [("first episode", 5), ("second episode", 5)]),
        ("mappo", [("acting", 5)]),
    ],
)
def test_videos_show_the_episodes_that_count(algo, phases):
    held = VideoRenderer(learner_of(algo), 0).record(3)
    assert held.phases == phases
    steps = sum(length for _, length in phases)
    assert len(held.pictures) == len(held.rewards) == steps
    assert [int(picture[0, 0, 0]) // 20 for picture in held.pictures] == [*range(5)] * len(phases)


# Budgets.


@pytest.mark.parametrize("env", loading.available("env"))
def test_all_algorithms_take_as_many_steps_in_an_iteration(env):
    configs = {algo: load_config(algo=algo, env=env) for algo in ALGORITHMS}
    steps = {algo: c.rollout_envs * c.rollout_steps for algo, c in configs.items()}
    most = max(steps.values())
    assert min(steps.values()) >= 0.75 * most, steps  # a trial of six episodes is rarely a divisor
    assert all(steps[algo] == most for algo in ("mappo", "mg2l", "oracle"))


def test_no_algorithm_says_how_many_sub_environments_there_are():
    for path in (CONFIGS / "algo").glob("*.yaml"):
        assert "n_rollout_threads" not in yaml.safe_load(path.read_text())


@pytest.mark.parametrize(("threads", "left"), [(5, 1), (13, 2)])
def test_environments_are_divided_and_rounded_down(threads, left):
    config = load_config(algo="rl2", overrides=[f"n_rollout_threads={threads}"])
    assert config.rollout_envs == left
