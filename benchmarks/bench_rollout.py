"""Environment steps per second, whole ``step`` with observations and rewards, one thread.

``pytest benchmarks/bench_rollout.py --benchmark-columns=min,median``: an environment step is one
sub-environment's; ``extra_info`` holds the rate of the fastest round and the bar it must clear.
"""

import time
from typing import Any

import numpy as np
import pytest

from mg2l.envs import registry
from mg2l.envs.particle import Bodies
from mg2l.envs.particle import simulator as native

BARS = {("mpe-spread", 32): 300_000, ("mpe-spread", 4096): 3_000_000}


@pytest.mark.parametrize("num_envs", [32, 4096])
@pytest.mark.parametrize("name", ["mpe-spread", "mpe-hunting"])
def test_env_step(benchmark, name, num_envs):
    env = registry.make(name, num_envs, seed=0)
    env.reset()
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (num_envs, env.num_agents, 2)).astype(np.float32)

    def episode():  # a round holds every part of an episode, its end included
        for _ in range(env.max_ep_len):
            env.step(actions)

    benchmark.pedantic(episode, rounds=15, warmup_rounds=2)
    rate = num_envs * env.max_ep_len / benchmark.stats.stats.min
    bar = BARS.get((name, num_envs), 0)
    benchmark.extra_info.update(env_steps_per_s=round(rate), bar=bar)
    assert rate >= bar, f"{rate:,.0f} env steps/s, bar {bar:,}"


@pytest.mark.parametrize("num_envs", [32, 256])
@pytest.mark.parametrize("name", ["rware-layout", "rware-station", "lbf-types"])
def test_grid_step(benchmark, name, num_envs):
    """Whole ``step`` in C++, beside the package's own environments under the same actions."""
    pytest.importorskip("lbforaging" if name == "lbf-types" else "rware")
    section: Any = registry.config_class(name)
    rng = np.random.default_rng(0)
    actions = rng.integers(5, size=(100, num_envs, section().n_agents))
    rates = {}
    for simulator in ("package", "native"):
        env = registry.make(section(simulator=simulator), num_envs, seed=0)
        env.reset()
        few = actions[: 2 if simulator == "package" else None]

        def walk(env=env, few=few):
            for action in few:
                env.step(action)

        start = time.perf_counter()
        walk()
        rates[simulator] = len(few) * num_envs / (time.perf_counter() - start)
    benchmark.pedantic(walk, rounds=15, warmup_rounds=2)
    rate = num_envs * len(actions) / benchmark.stats.stats.median
    benchmark.extra_info.update(
        env_steps_per_s=round(rate), package=round(rates["package"]), bar=300_000
    )
    assert rate >= 300_000, f"{rate:,.0f} env steps/s, bar 300,000"


ROBOT_BARS = {"mujoco-cheetah-dir": 60_000, "mujoco-hopper-param": 25_000}  # on two threads


@pytest.mark.parametrize("num_envs", [32, 256])
@pytest.mark.parametrize("name", [n for n in registry.names() if n.startswith("mujoco-")])
def test_robot_step(benchmark, name, num_envs):
    """Whole ``step`` of robots, beside the simulator alone under the same actions."""
    env: Any = registry.make(name, num_envs, seed=0)
    env.reset()
    rng = np.random.default_rng(0)
    shape = (50, num_envs, env.num_agents, *env.action_spaces[0].shape)
    actions = rng.uniform(-1, 1, shape).astype(np.float32)

    def walk():
        for action in actions:
            env.step(action)

    def simulate():
        for action in actions:
            env.simulator.step(action.reshape(num_envs, -1))

    alone = []
    for _ in range(3):
        start = time.perf_counter()
        simulate()
        alone.append(time.perf_counter() - start)
    env.reset()
    benchmark.pedantic(walk, rounds=8, warmup_rounds=1)
    rate = num_envs * len(actions) / benchmark.stats.stats.min
    bar = ROBOT_BARS.get(name, 0) if num_envs == 32 else 0
    benchmark.extra_info.update(
        env_steps_per_s=round(rate), bar=bar, simulator_share=min(alone) / benchmark.stats.stats.min
    )
    assert rate >= bar, f"{rate:,.0f} env steps/s, bar {bar:,}"


@pytest.mark.parametrize("num_envs", [32, 4096])
@pytest.mark.parametrize("path", ["native", "numpy"])
def test_physics(benchmark, path, num_envs):
    """The physics step alone, three colliding bodies: C++ against batched NumPy."""
    bodies = Bodies.uniform(3, 3.0, size=0.1, max_speed=1.0, collides=True)
    rng = np.random.default_rng(0)
    position = rng.uniform(-1, 1, (num_envs, 3, 2))
    actions = rng.uniform(-1, 1, position.shape)
    velocity = np.zeros_like(position)
    reached = []
    for step in (native_step, numpy_step):
        pos, vel = position.copy(), velocity.copy()
        for _ in range(20):
            step(pos, vel, actions, bodies)
        reached.append(pos)
    np.testing.assert_allclose(reached[0], reached[1], rtol=0, atol=1e-9)

    step = native_step if path == "native" else numpy_step
    benchmark.pedantic(
        step, (position, velocity, actions, bodies), rounds=40, iterations=20, warmup_rounds=2
    )
    benchmark.extra_info["env_steps_per_s"] = round(num_envs / benchmark.stats.stats.min)


def native_step(position, velocity, actions, bodies):
    native.step(
        position, velocity, actions, actions[:, :0],
        bodies.acceleration, bodies.size, bodies.max_speed, bodies.collides,
    )  # fmt: skip


def numpy_step(position, velocity, actions, bodies):
    """The same step for bodies that all collide, as one would write it in NumPy."""
    force = np.clip(actions, -1, 1) * bodies.acceleration[:, None]
    for wall in (1.2, -1.2):
        offset = position - wall
        push = softplus_force(np.abs(offset) - (bodies.size[:, None] + 0.2))
        force += np.copysign(push, offset)
    delta = position[:, :, None] - position[:, None]
    distance = np.sqrt(np.square(delta).sum(-1)) + np.eye(len(bodies))
    push = softplus_force(distance - (bodies.size[:, None] + bodies.size))
    force += (delta * (push / distance)[..., None]).sum(2)
    velocity *= 0.75
    velocity += 0.1 * force
    speed = np.sqrt(np.square(velocity).sum(-1))
    velocity *= np.minimum(1.0, bodies.max_speed / np.maximum(speed, 1e-300))[..., None]
    position += 0.1 * velocity


def softplus_force(gap):
    return np.logaddexp(0.0, -gap / 1e-3) * (1e-3 * 100.0)
