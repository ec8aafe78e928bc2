"""The contract of ``mg2l.envs.base``, checked on every registered family."""

import dataclasses
import json

import numpy as np
import pytest
from adapted_envs import TEST, TRAIN, make_walkers
from gymnasium.spaces import Box, Discrete

from mg2l.envs import adapters, registry
from mg2l.envs.base import EnvConfig, TaskSet, VectorEnv

N, LENGTH = 5, 7


def build(name, num_envs=N, seed=0, length=LENGTH) -> VectorEnv:
    config = dataclasses.replace(registry.config_class(name)(), max_ep_len=length)
    return registry.make(config, num_envs, seed)


def draw_actions(env, rng, scale=1.0):
    space = env.action_spaces[0]
    if isinstance(space, Discrete):
        return rng.integers(space.n, size=(env.num_envs, env.num_agents))
    shape = (env.num_envs, env.num_agents, *space.shape)
    return rng.uniform(scale * space.low, scale * space.high, shape).astype(np.float32)


def play(env, steps, rng):
    return [env.step(draw_actions(env, rng)) for _ in range(steps)]


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        for x, y in zip(a[:4], b[:4], strict=True):
            np.testing.assert_array_equal(x, y)
        np.testing.assert_array_equal(a[4]["final_obs"], b[4]["final_obs"])


@pytest.fixture(params=[*registry.names(), "adapted"])
def name(request):
    if request.param == "adapted":
        adapters.register("adapted", make_walkers, TRAIN, TEST)
    return request.param


def test_spaces_shapes_and_dtypes(name):
    env = build(name)
    agents = env.num_agents
    assert len(env.observation_spaces) == len(env.action_spaces) == agents
    assert all(isinstance(space, Box) for space in env.observation_spaces)
    shape = (N, agents, env.observation_width)
    obs, info = env.reset()
    assert set(info) <= {"action_mask", "active"}
    rng = np.random.default_rng(0)
    for _ in range(2 * LENGTH):
        assert obs.shape == shape
        assert obs.dtype == np.float32
        for agent in (0, -1):
            space = env.observation_spaces[agent]
            assert all(space.contains(row[: space.shape[0]]) for row in obs[:, agent])
            assert not obs[:, agent, space.shape[0] :].any()
        obs, rewards, terminated, truncated, info = env.step(draw_actions(env, rng))
        assert info["final_obs"].shape == shape
        assert set(info) <= {"final_obs", "action_mask", "active"}
        for array, dtype in ((rewards, np.float32), (terminated, bool), (truncated, bool)):
            assert array.shape == (N, agents)
            assert array.dtype == dtype
        assert np.isfinite(obs).all()
        assert np.isfinite(rewards).all()
    env.close()


def test_same_seed_repeats_exactly(name):
    first, second = build(name, seed=3), build(name, seed=3)
    np.testing.assert_array_equal(first.reset()[0], second.reset()[0])
    one = play(first, 3 * LENGTH, np.random.default_rng(0))
    assert_same(one, play(second, 3 * LENGTH, np.random.default_rng(0)))
    first.reset(seed=3)
    assert_same(one, play(first, 3 * LENGTH, np.random.default_rng(0)))


def test_reset_without_seed_continues(name):
    env = build(name)
    first, _ = env.reset(seed=0)
    second, _ = env.reset()
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, env.reset(seed=0)[0])
    np.testing.assert_array_equal(second, env.reset()[0])


def test_sub_environments_and_seeds_differ(name):
    env = build(name)
    obs, _ = env.reset(seed=0, task_ids=np.zeros(N, int))
    other, _ = env.reset(seed=1, task_ids=np.zeros(N, int))
    starts = np.concatenate([obs, other]).reshape(2 * N, -1)
    assert len(np.unique(starts, axis=0)) == 2 * N


def test_equal_seeds_begin_alike(name):
    env = build(name)
    tasks = np.zeros(N, int)
    obs, _ = env.reset(seed=[7, *range(1, N - 1), 7], task_ids=tasks)
    np.testing.assert_array_equal(obs[0], obs[-1])
    assert len(np.unique(obs.reshape(N, -1), axis=0)) == N - 1
    np.testing.assert_array_equal(obs, env.reset(seed=[7, *range(1, N - 1), 7])[0])
    with pytest.raises(ValueError, match=rf"seed must be one or {N} integers, got shape \(2,\)"):
        env.reset(seed=[1, 2])


def test_a_sub_environment_is_the_same_among_any_number(name):
    few, many = build(name, num_envs=2), build(name, num_envs=N)
    few.reset(seed=9, task_ids=np.zeros(2, int))
    many.reset(seed=9, task_ids=np.zeros(N, int))
    rng = np.random.default_rng(0)
    for _ in range(2 * LENGTH):
        actions = draw_actions(many, rng)
        some, all_ = few.step(actions[:2]), many.step(actions)
        for x, y in zip(some[:4], all_[:4], strict=True):
            np.testing.assert_array_equal(x, y[:2])


def test_final_obs_is_the_real_next_observation(name):
    """At the time limit an endless twin shows where the step really led."""
    env, twin = build(name), build(name, length=4 * LENGTH)
    np.testing.assert_array_equal(env.reset(seed=1)[0], twin.reset(seed=1)[0])
    rng = np.random.default_rng(2)
    alive = np.ones(N, bool)
    cut = 0
    for step in range(1, LENGTH + 1):
        actions = draw_actions(env, rng)
        obs, rewards, terminated, truncated, info = env.step(actions)
        real, real_rewards, *_ = twin.step(actions)
        over = (terminated | truncated).all(axis=1)
        np.testing.assert_array_equal(info["final_obs"][~over], obs[~over])
        np.testing.assert_array_equal(rewards[alive], real_rewards[alive])
        at_limit = alive & truncated.all(axis=1) & ~terminated.any(axis=1)
        cut += at_limit.sum()
        assert step == LENGTH or not at_limit.any()
        np.testing.assert_array_equal(info["final_obs"][at_limit], real[at_limit])
        assert all(not np.array_equal(obs[n], real[n]) for n in np.flatnonzero(at_limit))
        alive &= ~over
    assert not alive.any()
    assert cut > 0


def test_episodes_begin_again_after_a_reset(name):
    """The auto-reset restarts the clock: limits fall on multiples of the length."""
    env = build(name)
    env.reset()
    results = play(env, 3 * LENGTH, np.random.default_rng(0))
    clock = np.zeros(N, int)
    for _, _, terminated, truncated, _ in results:
        clock += 1
        over = (terminated | truncated).all(axis=1)
        np.testing.assert_array_equal(over[clock == LENGTH], True)
        clock[over] = 0


def test_state_dict_round_trip_through_json(name):
    env, rng = build(name), np.random.default_rng(0)
    env.reset(seed=5, task_ids=np.arange(N) % len(env.tasks))
    play(env, LENGTH + 3, rng)
    state = env.state_dict()
    frozen = json.loads(
        json.dumps(state, default=lambda value: {"a": value.tolist(), "d": str(value.dtype)})
    )
    thawed = {
        key: np.array(v["a"], v["d"]).reshape(np.shape(state[key])) if isinstance(v, dict) else v
        for key, v in frozen.items()
    }
    expected = play(env, 3 * LENGTH, np.random.default_rng(7))
    other = build(name, seed=99)
    other.load_state_dict(thawed)
    np.testing.assert_array_equal(other.task_ids, env.task_ids)
    assert_same(expected, play(other, 3 * LENGTH, np.random.default_rng(7)))
    # A state is a copy: stepping on changed neither the dict nor what it restores.
    env.load_state_dict(state)
    assert_same(expected, play(env, 3 * LENGTH, np.random.default_rng(7)))
    np.testing.assert_array_equal(env.reset()[0], other.reset()[0])


def test_state_of_another_environment_is_refused(name):
    state = build(name, num_envs=N + 1).state_dict()
    with pytest.raises(ValueError, match="shape"):
        build(name).load_state_dict(state)
    with pytest.raises(ValueError, match="keys"):
        build(name).load_state_dict({"foreign": 1})


def test_tasks(name):
    env = build(name)
    tasks = env.tasks
    assert tasks.features.shape == (len(tasks), tasks.task_dim)
    assert tasks.features.dtype == np.float32
    assert len(tasks.train_ids) == tasks.n_train >= 2
    assert len(tasks.test_ids) >= 1
    assert not set(tasks.train_ids) & set(tasks.test_ids)
    assert len(np.unique(tasks.features, axis=0)) == len(tasks)
    again = build(name).tasks
    np.testing.assert_array_equal(tasks.features, again.features)
    assert list(tasks.names) == list(again.names)
    assert set(env.task_ids) <= set(tasks.train_ids)


def test_task_ids_are_kept_and_matter(name):
    env = build(name)
    for task in range(len(env.tasks)):
        env.reset(seed=0, task_ids=np.full(N, task))
        play(env, LENGTH + 1, np.random.default_rng(0))
        assert (env.task_ids == task).all()
        env.reset()
        assert (env.task_ids == task).all()
    # In what they pay, or where pay is rare in what they show; where deliveries are, after a while.
    pair = [build(name, seed=0, length=100) for _ in range(2)]
    for task, env in enumerate(pair):
        env.reset(task_ids=np.full(N, task))
    streams = [np.random.default_rng(0) for _ in pair]
    for _ in range(300):
        steps = [play(env, LENGTH, rng) for env, rng in zip(pair, streams, strict=True)]
        if any((a[i] != b[i]).any() for i in (0, 1) for a, b in zip(*steps, strict=True)):
            return
    pytest.fail("tasks 0 and 1 show and pay the same")


def test_bad_task_ids(name):
    env = build(name)
    with pytest.raises(ValueError, match=r"shape \(5,\)"):
        env.reset(task_ids=[0])
    for wrong in (-1, len(env.tasks)):
        with pytest.raises(ValueError, match="task_ids must be in"):
            env.reset(task_ids=np.full(N, wrong))


def test_callers_arrays_are_untouched(name):
    env = build(name)
    ids = np.zeros(N, int)
    env.reset(task_ids=ids)
    actions = draw_actions(env, np.random.default_rng(0), scale=3.0)
    before = actions.copy()
    actions.flags.writeable = False
    for _ in range(LENGTH + 1):
        env.step(actions)
    np.testing.assert_array_equal(actions, before)
    ids[:] = len(env.tasks) - 1
    env.reset()
    assert (env.task_ids == 0).all()


def test_returned_arrays_are_the_callers(name):
    env, twin = build(name), build(name)
    rng, twin_rng = np.random.default_rng(0), np.random.default_rng(0)
    kept = [env.reset(seed=0)[0], twin.reset(seed=0)[0]]
    results = play(env, 1, rng)[0], play(twin, 1, twin_rng)[0]
    frozen = [kept[0].copy()] + [array.copy() for array in results[0][:4]]
    play(env, LENGTH, rng)
    for array, before in zip([kept[0], *results[0][:4]], frozen, strict=True):
        np.testing.assert_array_equal(array, before)
    # Scribbling over them changes nothing inside.
    kept[1][:] = np.nan
    for array in results[1][:2]:
        array[:] = np.nan
    assert_same(play(env, LENGTH, np.random.default_rng(1)), _after(twin, twin_rng))


def _after(twin, rng):
    play(twin, LENGTH, rng)
    return play(twin, LENGTH, np.random.default_rng(1))


def test_actions_are_clipped_to_the_space(name):
    env, twin = build(name), build(name)
    space = env.action_spaces[0]
    if not isinstance(space, Box):
        return
    env.reset(seed=0)
    twin.reset(seed=0)
    wild = draw_actions(env, np.random.default_rng(0), scale=5.0)
    assert (np.abs(wild) > 1).any()
    assert_same([env.step(wild)], [twin.step(np.clip(wild, space.low, space.high))])


def test_bad_actions(name):
    env = build(name)
    actions = draw_actions(env, np.random.default_rng(0))
    with pytest.raises(RuntimeError, match="reset"):
        env.step(actions)
    env.reset()
    with pytest.raises(ValueError, match="actions must have shape"):
        env.step(actions[:-1])
    if isinstance(env.action_spaces[0], Box):
        state = env.state_dict()
        actions[1, 0, 0] = np.nan
        with pytest.raises(ValueError, match="NaN"):
            env.step(actions)
        for key, value in env.state_dict().items():
            np.testing.assert_array_equal(value, state[key])


def test_render(name):
    env = build(name)
    env.reset(seed=0)
    first, second = env.render(0), env.render(1)
    assert first.dtype == np.uint8
    assert first.ndim == 3
    assert first.shape[2] == 3
    assert not np.array_equal(first, second)
    with pytest.raises(ValueError, match="index"):
        env.render(N)


def test_registry_refusals():
    with pytest.raises(ValueError, match=r"unknown env 'mpe-spred'.*did you mean 'mpe-spread'"):
        registry.config_class("mpe-spred")
    with pytest.raises(ValueError, match=r"unknown env 'chess'; choose one of .*mpe-hunting"):
        registry.make("chess", 1)
    with pytest.raises(ValueError, match="num_envs"):
        registry.make("mpe-spread", 0)
    with pytest.raises(ValueError, match="EnvConfig is the config of no env"):
        registry.make(EnvConfig(), 1)
    taken = registry.config_class("mpe-spread")
    with pytest.raises(ValueError, match="clashes with 'mpe-spread'"):
        registry.register("other", taken, lambda config, num_envs, seed: build("mpe-spread"))


def test_task_set_refusals():
    features = np.eye(2, dtype=np.float32)
    with pytest.raises(ValueError, match="one row per task"):
        TaskSet([{}], features, ["a", "b"], 1)
    with pytest.raises(ValueError, match="unique"):
        TaskSet([{}, {}], features, ["a", "a"], 1)
    with pytest.raises(ValueError, match="n_train"):
        TaskSet([{}, {}], features, ["a", "b"], 3)


@pytest.mark.parametrize("key", ["max_ep_len", "n_agents"])
def test_config_bounds(name, key):
    with pytest.raises(ValueError, match=key):
        registry.config_class(name)(**{key: -1})
