"""Sub-environments in Ray actors collect bit for bit what they collect here."""

from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from cluster_helpers import ray_cluster
from method_helpers import tiny_config

from mg2l.core.cluster import ATTEMPTS, connect
from mg2l.core.schema import ConfigError
from mg2l.envs import registry
from mg2l.training import env_actors, loop
from mg2l.training.learner import Learner
from mg2l.training.random_state import random_state, set_random_state

CPU = torch.device("cpu")
CHOICES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "continuous, latents inferred here": ("mg2l", "mpe-spread", {}),
    "latents inferred step by step": ("varibad", "mpe-spread", {}),
    "memory, discrete actions": ("rl2", "mpe-prey", {}),
    "held latents": ("oracle", "mpe-spread", {"conditioning": "film"}),
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with ray_cluster(3) as found:
        yield found
        import ray

        ray.shutdown()


def config(algo: str, env: str, count: int, **more: Any) -> Any:
    more = {
        "n_ae_rollout_threads": 4,
        "n_training_threads": 1,
        "rollout_threads_divisor": 1,
        **more,
    }
    return tiny_config(algo, env, env_actors=count, **more)


def train(learner: Learner, first: int = 0, until: int = 2) -> list[dict[str, Any]]:
    found = []
    if first == 0:
        learner.prepare()
    for iteration in range(first, until):
        row = loop.iterate(learner, iteration)
        found.append({k: v for k, v in row.items() if "time/" not in k and "_per_s" not in k})
    return found


def same(left: dict[str, Any], right: dict[str, Any]) -> None:
    """Random streams and environments' states are the same."""
    torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)


def test_no_cluster(monkeypatch):
    monkeypatch.setattr("ray.init", Mock(side_effect=ConnectionError("nobody listens")))
    with pytest.raises(ConfigError, match="env_actors=2: no Ray cluster answers there: nobody"):
        loop.build(config("mappo", "mpe-spread", 2), CPU)


@pytest.mark.parametrize("failures", [1, ATTEMPTS])
def test_a_driver_that_does_not_start_is_started_again(monkeypatch, failures):
    """A head that is busy answers, but its driver misses Ray's 30 s."""
    error = ConnectionAbortedError("Initialization failure from server:\nTraceback\nNo: in time\n")
    init = Mock(side_effect=[*[error] * failures, None])
    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("mg2l.core.cluster.PAUSE", 0)
    if failures == ATTEMPTS:
        with pytest.raises(
            ConfigError, match="--on: the Ray cluster cannot start a driver: No: in time"
        ):
            connect("ray://nowhere:1", "--on")
    else:
        connect("ray://nowhere:1", "--on")
        assert init.call_count == failures + 1


@pytest.mark.ci
@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_equal_to_local_collection_also_after_a_kill(cluster, choice):
    algo, env, more = choice
    local = loop.build(config(algo, env, 0, **more), CPU)
    own = train(local)
    hosted = loop.build(config(algo, env, 2, **more), CPU)
    rows = train(hosted, until=1)
    assert isinstance(hosted.env, env_actors.HostedEnv)
    hosted.env.ray.kill(hosted.env.actors[1], no_restart=False)
    rows += train(hosted, first=1)
    assert rows == own
    same(hosted.env.state_dict(), local.env.state_dict())
    for name, stream in local.generators.items():
        if isinstance(stream, torch.Generator):
            other = hosted.generators[name]
            assert isinstance(other, torch.Generator)
            assert torch.equal(stream.get_state(), other.get_state())
    here, there = (each.collect(each.draw_tasks()).held_latent for each in (local, hosted))
    assert (here is None) == (there is None) == (algo != "oracle")
    if here is not None and there is not None:
        assert torch.equal(here, there)
    hosted.close()
    local.close()


@pytest.mark.ci
def test_a_run_continues_with_any_number_of_actors(cluster):
    local = loop.build(config("mappo", "mpe-spread", 0), CPU)
    own = train(local, until=3)
    local.close()
    hosted = loop.build(config("mappo", "mpe-spread", 2), CPU)
    rows = train(hosted, until=1)
    for count in (0, 3):
        state, random = hosted.state_dict(), random_state(hosted.generators)
        hosted.close()
        hosted = loop.build(config("mappo", "mpe-spread", count), CPU)
        hosted.load_state_dict(state)
        set_random_state(random, hosted.generators)
        rows += train(hosted, len(rows), len(rows) + 1)
    hosted.close()
    assert rows == own


def test_more_actors_than_sub_environments():
    with pytest.raises(ConfigError, match="env_actors=5 must be at most the 4 sub-environments"):
        loop.build(config("mappo", "mpe-spread", 5), CPU)
    with pytest.raises(ConfigError, match="env_actors=2 must be at most n_ae_rollout_threads=1"):
        loop.build(config("mg2l", "mpe-spread", 2, n_ae_rollout_threads=1), CPU)


def test_a_part_is_split_and_padded():
    assert env_actors.parts(5, 2) == [slice(0, 3), slice(3, 5)]
    seeds = np.random.SeedSequence(3).spawn(5)
    whole = registry.make("mpe-hunting", 5, 3)
    part = slice(3, 5)
    padded = env_actors.PaddedEnv(registry.make("mpe-hunting", 2, seeds[part]), 5, part)
    ids = np.arange(5) % 2
    first, own = whole.reset(None, ids)[0], padded.reset(None, ids)[0]
    assert own.shape == first.shape
    np.testing.assert_array_equal(own[part], first[part])
    assert [padded.place(k) for k in range(3, 5)] == [whole.place(k) for k in range(3, 5)]
    assert padded.place(1) == padded.place(4)  # of which it is a copy
    layout = whole.action_layout
    actions = np.zeros((5, whole.num_agents, *layout.shape), layout.dtype)
    for left, right in zip(whole.step(actions)[:4], padded.step(actions)[:4], strict=True):
        assert left.shape == right.shape
        np.testing.assert_array_equal(left[part], right[part])
