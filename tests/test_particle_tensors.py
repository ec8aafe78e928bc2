"""Particle worlds compiled and on a device: the same as their NumPy, and what they cost."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest
import torch
from fake_device import worlds_iteration
from method_helpers import TINY

from mg2l.config import files as loading
from mg2l.core.transfer import to_device
from mg2l.envs import registry
from mg2l.envs.particle.spread import Spread
from mg2l.envs.particle.tensors import DeviceParticleEnv
from mg2l.envs.particle.world import ParticleEnv

FAMILIES = [
    *("mpe-spread", "mpe-hunting", "mpe-goals", "mpe-goals-joint", "mpe-weights", "mpe-hunting-4"),
]


def make(name: str, envs: int = 5, **values: Any) -> ParticleEnv:
    config = loading.load_config("default", "mappo", name, {"max_ep_len": 30, **values}).env
    env = registry.make(config, envs, 3)
    assert isinstance(env, ParticleEnv)
    return env


@pytest.mark.parametrize("name", FAMILIES)
def test_compiled_step_is_the_scenario_in_numpy(name: str) -> None:
    compiled, plain = make(name), make(name)
    assert compiled.compiled is not None
    plain.compiled = None
    rng = np.random.default_rng(0)
    first, second = compiled.reset(1)[0], plain.reset(1)[0]
    np.testing.assert_array_equal(first, second)
    for _ in range(35):
        actions = rng.uniform(-1.5, 1.5, (5, compiled.num_agents, 2))
        found, expected = compiled.step(actions), plain.step(actions)
        for a, b in zip(found[:4], expected[:4], strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(found[4]["final_obs"], expected[4]["final_obs"])
    np.testing.assert_array_equal(compiled.world.position, plain.world.position)


@pytest.mark.parametrize("name", FAMILIES)
def test_steps_with_tensors_are_steps_with_arrays(name: str, device: torch.device) -> None:
    """Over the end of an episode; to 1e-5, as a GPU rounds in other places."""
    arrays = make(name)
    tensors = DeviceParticleEnv(make(name), device)
    expected, found = arrays.reset(1)[0], tensors.reset(1)[0]
    np.testing.assert_array_equal(expected, found)
    rng, agents = np.random.default_rng(0), arrays.num_agents
    observations = torch.empty(expected.shape, device=device)
    rewards = torch.empty(expected.shape[:2], device=device)
    for _ in range(35):
        actions = rng.uniform(-1.5, 1.5, (5, agents, 2)).astype(np.float32)
        finals, over = tensors.step_tensors(to_device(actions, device), observations, rewards)
        obs, paid, _, truncated, info = arrays.step(actions)
        np.testing.assert_allclose(observations.cpu(), obs, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(rewards.cpu(), paid, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(over, truncated.all(1))
        if finals is not None:
            np.testing.assert_allclose(finals.cpu(), info["final_obs"], rtol=1e-5, atol=1e-5)
    assert set(tensors.state_dict()) == set(arrays.state_dict())
    restored = DeviceParticleEnv(make(name), device)
    restored.load_state_dict(tensors.state_dict())
    more = torch.empty_like(observations)
    given = to_device(actions, device)
    restored.step_tensors(given, more, rewards)
    tensors.step_tensors(given, observations, rewards)
    assert torch.equal(more, observations)


def test_scenario_derived_from_a_compiled_one_stays_in_numpy() -> None:
    class Mine(Spread):
        """Pays nothing."""

    env = make("mpe-spread")
    config = loading.load_config("default", "mappo", "mpe-spread", {}).env
    assert ParticleEnv(Mine(config), 2, 10).compiled is None  # type: ignore[arg-type]
    assert env.compiled is not None
    assert env.to(torch.device("cpu")) is env


def test_iteration_with_worlds_on_the_device_waits_for_no_action() -> None:
    """And learns from the same numbers as with worlds on the CPU."""
    values = {**TINY, "max_ep_len": 6, "episodes_per_task": 2}
    config = loading.load_config("default", "mg2l", "mpe-spread", values)

    with ProcessPoolExecutor(1, get_context("spawn")) as fresh:  # see test_device_budget.py
        here, expected = fresh.submit(worlds_iteration, config, False).result()
        there, found = fresh.submit(worlds_iteration, config, True).result()
    assert here["waits"] == 12
    assert not there["waits"]
    assert there["copies"] <= 25  # states where episodes begin, and fields of the whole rollout
    assert found == expected
