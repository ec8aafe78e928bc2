"""What foreign environments give: spaces, infos, seeds, and what is refused in one line."""

import random
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.spaces.utils import flatdim, flatten

from mg2l.core.schema import ConfigError
from mg2l.envs import adapters
from mg2l.envs.adapters.worker import flat, process, width
from mg2l.envs.adapters.worker.infos import limits, masks
from mg2l.envs.adapters.worker.players import player
from mg2l.envs.adapters.worker.spaces import Act, InterfaceError
from mg2l.envs.base import EnvError

PLAIN: list[Any] = [
    spaces.Box(-1, 1, (), np.float32),
    spaces.Box(-1, 1, (2, 3), np.float64),
    spaces.Box(0, 255, (2, 2, 3), np.uint8),
    spaces.Box(-5, 5, (3,), np.int64),
    spaces.Discrete(4),
    spaces.Discrete(4, start=-2),
    spaces.MultiDiscrete([3, 4]),
    spaces.MultiDiscrete([3, 4], start=[1, 0]),
    spaces.MultiDiscrete(np.array([[2, 3], [4, 1]]), start=np.array([[-1, 5], [0, 2]])),
    spaces.MultiBinary(3),
    spaces.MultiBinary([2, 3]),
    spaces.Text(5, min_length=0),
]
NESTED: list[Any] = [
    spaces.Tuple([PLAIN[1], PLAIN[5], PLAIN[8]]),
    spaces.Dict({"z": PLAIN[7], "a": spaces.Tuple([PLAIN[9], spaces.Dict(b=PLAIN[2])])}),
    spaces.Dict({"observation": PLAIN[1], "rest": spaces.Dict(action_mask=PLAIN[9], x=PLAIN[4])}),
    spaces.OneOf([PLAIN[1], PLAIN[5], PLAIN[7]]),
]


@pytest.mark.parametrize("space", [*PLAIN, *NESTED], ids=str)
def test_observations_are_as_flat_as_gymnasiums(space):
    space.seed(0)
    assert width(space) == flatdim(space)
    for _ in range(20):
        value = space.sample()
        np.testing.assert_array_equal(
            flat(space, value), np.asarray(flatten(space, value), np.float32)
        )


def test_a_mask_beside_an_observation_is_no_part_of_it():
    inner = spaces.MultiDiscrete([2, 3], start=[4, 5])
    for key in ("action_mask", "avail_actions"):
        space = spaces.Dict({"observation": inner, key: spaces.MultiBinary(4)})
        assert flat(space, {"observation": [5, 5], key: [1] * 4}).tolist() == [0, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("space", "value", "message"),
    [
        (PLAIN[1], np.zeros(5), "5 numbers, its space has 6"),
        (PLAIN[1], "text", "a str that is no array of numbers"),
        (PLAIN[4], 4, "4, which is outside of its space"),
        (PLAIN[4], -1, "-1, which is outside"),
        (PLAIN[7], [0, 0], r"\[0, 0\], which is outside"),
        (PLAIN[7], [1], "1 numbers, its space has 2"),
        (PLAIN[9], [0, 1], "2 numbers, its space has 3"),
        (NESTED[0], (np.zeros(6), 0), "2 parts, its space has 3 parts"),
        (NESTED[1], {"z": [1, 0]}, "a Dict without the key 'a'"),
        (NESTED[1], np.zeros(3), "a ndarray, its space is a Dict"),
        (spaces.Sequence(PLAIN[4]), (1,), "spaces must be one of .*, got Sequence"),
        (spaces.Graph(PLAIN[0], None), None, "spaces must be one of .*, got Graph"),
    ],
)
def test_observations_outside_of_their_space_are_refused(space, value, message):
    with pytest.raises(InterfaceError, match=message):
        flat(space, value)


def test_actions_are_scaled_where_they_have_bounds():
    largest = np.finfo(np.float32).max
    low, high = np.array([[0, -2, -largest, 0], [4, np.inf, largest, 1e10]], np.float32)
    act = Act(spaces.Box(low, high))
    assert act(np.array([0.5, 0.5, 0.5, 0.5])).tolist() == [3, 0.5, 0.5, 0.5]
    assert act(np.array([-1.0, -9.0, -9.0, -9.0, 7.0])).tolist() == [0, -2, -9, 0]
    assert Act(spaces.Box(0, 255, (2,), np.uint8))(np.array([-1.0, 1.0])).tolist() == [0, 255]
    env = adapted(lambda: Team(actions=spaces.Box(low, high)))
    low, high = np.array([[-1, -2, -np.inf, 0], [1, np.inf, np.inf, np.inf]], np.float32)
    assert env.action_spaces[0] == spaces.Box(low, high)
    env.close()


MASKS = [[0, 1, 0], [1, 0, 1]]


@pytest.mark.parametrize(
    "info",
    [
        {"action_mask": MASKS},
        {"action_masks": np.array(MASKS)},
        {"avail_actions": tuple(np.array(MASKS))},
        {"action_mask": {"a": MASKS[0], "b": MASKS[1]}},
        {"a": {"action_mask": MASKS[0]}, "b": {"action_mask": MASKS[1]}},
        [{"action_mask": mask} for mask in MASKS],
        np.array([{"action_mask": mask} for mask in MASKS]),
        {"agent_0": {"action_mask": MASKS[0]}, "agent_1": {"action_mask": MASKS[1]}},
        {**{str(i): {"action_mask": MASKS[i]} for i in range(2)}, "time": 3, "sums": {"x": 1}},
        {"action_mask": {"agent_0": MASKS[0], "agent_1": MASKS[1]}},
        {"action_mask": torch.tensor(MASKS)},
    ],
)
def test_masks_in_infos(info):
    assert [list(mask) for mask in masks([0, 0], info, ["a", "b"])] == MASKS


def test_masks_elsewhere():
    beside = [{"observation": 0, "action_mask": mask} for mask in MASKS]
    assert masks(beside, {"action_mask": [[1, 1, 1]] * 2}, [0, 1]) == MASKS
    assert masks([0, 0], {"action_mask": MASKS[0]}, [0, 1]) == [MASKS[0]] * 2
    assert masks([0, 0], {"action_mask": [None, MASKS[1]]}, [0, 1]) == [None, MASKS[1]]
    assert masks([0, 0], {1: {"action_mask": MASKS[1]}}, [0, 1]) == [None, MASKS[1]]
    assert masks([0, 0], {"other": 1}, [0, 1]) == masks([0, 0], None, [0, 1]) == [None, None]
    with pytest.raises(InterfaceError, match="action_mask of 3 agents in its info, expected 2"):
        masks([0, 0], {"action_mask": [MASKS[0]] * 3}, [0, 1])
    with pytest.raises(InterfaceError, match=r"of \['red'\] in its info, expected the agents"):
        masks([0, 0], {"action_mask": {"red": MASKS[0]}}, [0, 1])


@pytest.mark.parametrize("name", ["TimeLimit.truncated", "bad_transition"])
def test_time_limits_in_infos(name):
    agents = ["a", "b"]
    assert limits({name: True}, agents) == [True, True]
    assert limits({name: [True, False]}, agents) == [True, False]
    assert limits({name: {"b": True}}, agents) == [False, True]
    assert limits({name: {"a": False, "b": True}}, [0, 1]) == [False, True]
    assert limits([{name: False}, {name: np.bool_(True)}], agents) == [False, True]
    assert limits({"a": {name: 1}, "b": {}}, agents) == [True, False]
    assert limits({"episode_limit": 100}, agents) == limits({}, agents) == [False, False]


class Team:
    """Gymnasium's interface for two agents; tests replace what they are about."""

    def __init__(self, actions=None, **answers):
        self.observation_space = spaces.Tuple([spaces.Box(-9, 9, (2,))] * 2)
        self.action_space = spaces.Tuple([actions or spaces.Discrete(3)] * 2)
        self.answers = answers

    def reset(self, seed: Any = None, options: Any = None) -> Any:
        return self.answers.get("start", (np.zeros((2, 2)), {}))

    def step(self, actions):
        seen = self.answers.get("seen", np.ones((2, 2)))
        usual = (
            seen,
            self.answers.get("rewards", 1.0),
            self.answers.get("over", False),
            False,
            self.answers.get("info", {}),
        )
        return self.answers.get("result", usual)


def adapted(make, **keys):
    config = adapters.AdapterConfig(n_workers=1, **keys)
    tasks = adapters.task_set([{"k": 0.0}], [], config)
    return adapters.AdaptedEnv("team", lambda params: make(), tasks, config, 1, 0)


@pytest.mark.parametrize("rewards", [[[1.0], [2.0]], np.array([1, 2]), {0: 1.0, 1: [2.0]}])
def test_rewards_of_each_agent(rewards):
    env = adapted(lambda: Team(rewards=rewards))
    env.reset()
    assert env.step([[0, 0]])[1].tolist() == [[1, 2]]
    env.close()


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"seen": [np.zeros(2), np.zeros(3)]}, "agent 1, at step 1: an observation of 3 numbers, "),
        ({"seen": np.zeros((3, 2))}, "at step 1: 3 observations for 2 agents"),
        ({"start": None}, "at the reset: NoneType observations for 2 agents"),
        ({"start": ([[0, 0], [0]], {})}, "agent 1, at the reset: an observation of 1 numbers, "),
        ({"rewards": [1.0, 2.0, 3.0]}, "at step 1: 3 rewards for 2 agents"),
        ({"rewards": [1.0, [2.0, 3.0]]}, "agent 1, at step 1: a reward of 2 numbers, expected one"),
        ({"rewards": None}, "at step 1: NoneType rewards for 2 agents"),
        ({"over": [False]}, "at step 1: 1 terminated for 2 agents"),
        (
            {"info": {"action_mask": [[1, 1], [1, 1]]}},
            "agent 0, .* an action mask of 2 entries, it",
        ),
        (
            {"info": {"action_mask": [np.nan, 1, 1]}},
            "agent 0, .* an action mask that is not finite, ",
        ),
        (
            {"info": {"action_mask": ["yes", "no", "no"]}},
            "agent 0, .* an action mask that does not hold numbers",
        ),
        ({"result": None}, "at step 1: step.. must give .*, got None"),
        ({"result": (0, 0)}, "at step 1: step.. must give .*, got a tuple of int, int"),
    ],
)
def test_what_is_of_another_size_is_named(answers, message):
    env = adapted(lambda: Team(**answers))

    def play():
        env.reset()
        env.step([[0, 0]])

    with pytest.raises(EnvError, match=rf"^team, sub-environment 0, task 'k=0': {message}[^\n]*$"):
        play()
    env.close()


def single():
    return SimpleNamespace(observation_space=spaces.Box(0, 1), action_space=spaces.Discrete(2))


def uneven():
    env = Team()
    env.action_space = spaces.Tuple([spaces.Discrete(2)])
    return env


def turns():
    return SimpleNamespace(possible_agents=["a"], agent_iter=iter)


def twins():
    return SimpleNamespace(possible_agents=["a", "a"], observation_space=0, action_space=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (single, "make.params. must return a PettingZoo parallel environment, or"),
        (turns, "in turns .AEC. becomes parallel by pettingzoo.utils.aec_to_parallel"),
        (twins, "possible_agents must be names, all different, got"),
        (uneven, "one observation space and one action space for each agent, got 2 and 1"),
        (
            lambda: Team(spaces.Text(2)),
            "agent 0: action spaces must be Box, Discrete, MultiDiscrete or MultiBinary, got",
        ),
    ],
)
def test_environments_of_another_interface_are_refused(make, message):
    with pytest.raises(InterfaceError, match=message):
        process.describe_spaces(player(make()))


class Pool:
    """PettingZoo's interface: c joins at step ``late``, if that is not 0, and leaves at 4."""

    possible_agents = ("a", "b", "c")

    def __init__(self, late, back=False):
        self.late, self.back = late, back

    def observation_space(self, name):
        return spaces.Box(-9, 9, (1,))

    def action_space(self, name):
        return spaces.Discrete(2)

    def reset(self, seed=None, options=None):
        self.time, self.agents = 0, ["a", "b"]
        return {name: [7.0] for name in self.possible_agents}, {}

    def step(self, actions):
        assert set(actions) == set(self.agents)
        self.time += 1
        acted = self.agents
        here = 0 < self.late <= self.time < 4 or (self.back and self.time == 5)
        self.agents = ["a", "b", *(["c"] if here else [])]
        seen = {name: [float(self.time)] for name in {*acted, *self.agents}}
        no = dict.fromkeys(acted, False)
        return seen, dict.fromkeys(acted, 1.0), no, no, {}


def test_agents_of_a_pool_are_inactive_until_they_join():
    env = adapted(lambda: Pool(2), max_ep_len=6)
    obs, info = env.reset()
    seen, active, paid, ended = [obs[0, :, 0]], [info["active"][0]], [], []
    for _ in range(6):
        obs, rewards, terminated, _, info = env.step([[0, 0, 0]])
        seen.append(info["final_obs"][0, :, 0])
        active.append(info["active"][0])
        paid.append(rewards[0, 2])
        ended.append(terminated[0, 2])
    assert [row[2] for row in seen] == [0, 0, 2, 3, 4, 0, 0]
    assert [row[0] for row in seen] == [7, 1, 2, 3, 4, 5, 6]
    assert [bool(row[2]) for row in active] == [False, False, True, True, False, False, False]
    assert paid == [0, 0, 1, 1, 0, 0]
    assert ended == [False, False, False, True, True, True]
    assert obs[0, :, 0].tolist() == [7, 7, 0]  # the next episode
    env.close()
    env = adapted(lambda: Pool(2, back=True))
    env.reset()
    for _ in range(4):
        env.step([[0, 0, 0]])
    with pytest.raises(EnvError, match=r"agent 2 \('c'\), at step 5: back in the episode that it"):
        env.step([[0, 0, 0]])
    env.close()


class Drawing(Team):
    """Draws from everything; made without a seed."""

    def __init__(self):
        super().__init__()
        self.numpy, self.python = np.random.default_rng(), random.Random()
        self.legacy = np.random.RandomState()
        self.fixed = np.random.default_rng(3)
        self.observation_space = spaces.Tuple([spaces.Box(-99, 99, (8,))] * 2)

    def draw(self):
        import torch

        own = [self.numpy.normal(), self.python.random(), self.legacy.normal()]
        shared = [random.random(), np.random.rand(), torch.rand(()).item()]  # noqa: NPY002
        fresh = [np.random.default_rng().normal(), random.Random().random()]
        return tuple(np.array([*own, *shared, *fresh]) + i for i in range(2))

    def reset(self) -> Any:  # type: ignore[override]
        np.random.seed(None)  # noqa: NPY002
        return self.draw()

    def step(self, actions):
        sampled = self.action_space.sample()
        return self.draw(), list(map(float, sampled)), False, False, {}

    def render(self):
        return np.full((2, 2, 3), 255 * random.random() * np.random.rand())  # noqa: NPY002


def test_every_source_of_randomness_is_seeded():
    """Whatever else the worker has done: other episodes, other sub-environments, pictures."""

    def play(num_envs, before):
        config = adapters.AdapterConfig(n_workers=1)
        tasks = adapters.task_set([{"k": 0.0}], [], config)
        env = adapters.AdaptedEnv("draws", lambda params: Drawing(), tasks, config, num_envs, 0)
        for _ in range(before):
            env.reset(seed=1)
            env.step([[0, 0]] * num_envs)
            env.render(num_envs - 1)
        found = [env.reset(seed=5)[0][0]]
        for _ in range(3):
            obs, rewards, *_ = env.step([[0, 0]] * num_envs)
            found += [obs[0], rewards[0]]
            env.render(0)
        env.close()
        return np.concatenate([np.ravel(part) for part in found])

    alone = play(1, 0)
    assert len(np.unique(alone[:16])) == 16
    np.testing.assert_array_equal(alone, play(3, 2))


class Ignorant(Team):
    """Takes anything, and passes nothing on; classic gym's ``seed``."""

    def seed(self, seed):
        self.drawn = np.random.default_rng(seed).normal(size=(2, 2))

    def reset(self, **kwargs: Any) -> Any:  # type: ignore[override]
        return self.drawn, {}


class Passing:
    """A wrapper that hands on what it is given."""

    def __init__(self, env):
        self.env = env
        self.observation_space, self.action_space = env.observation_space, env.action_space

    def reset(self, **kwargs: Any) -> Any:
        return self.env.reset(**kwargs)


class Seeded(Team):
    rng: Any

    def reset(self, seed=None, options=None):
        self.rng = np.random.default_rng(self.rng if seed is None else seed)
        return self.rng.normal(size=(2, 2)), {}


class Deaf(Passing):
    def reset(self) -> Any:  # type: ignore[override]
        return self.env.reset()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Ignorant(),
        lambda: Passing(Seeded()),
        lambda: Deaf(Seeded()),
        lambda: Passing(Deaf(Seeded())),
    ],
)
def test_seeds_reach_the_environment(make):
    first, second = player(make()), player(make())
    np.testing.assert_array_equal(first.reset(5)[0], second.reset(5)[0])
    assert not np.array_equal(first.reset(5)[0], first.reset(6)[0])
    np.testing.assert_array_equal(first.reset(6)[0], second.reset(6)[0])


class Torchless(Team):
    """Without a picture."""


class Broken(Team):
    def render(self):
        raise OSError("no display")


class Texts(Team):
    def render(self):
        return "ascii"


class Classic(Team):
    def render(self, mode="human"):
        return np.full((4, 5, 3), 9, np.uint8) if mode == "rgb_array" else True


def test_pictures():
    for make, message in [
        (Torchless, "team gave no picture: Torchless has no render()"),
        (Broken, "team gave no picture: render() failed: OSError: no display"),
        (Texts, "team gave no picture: render() gave str, expected an array"),
    ]:
        env = adapted(make)
        env.reset()
        with pytest.raises(ConfigError, match=re.escape(message)):
            env.render()
        env.step([[0, 0]])
        env.close()
    env = adapted(Classic)
    env.reset()
    assert env.render().shape == (4, 5, 3)
    env.close()


def test_names_in_the_body_of_a_class_reach_workers():
    def make():
        class Pair(Team):
            limits = spaces.Tuple([spaces.Box(np.float32(0), np.float32(1), (1,))] * 2)
            drawn = [np.arange(2) for _ in range(2)]  # noqa: RUF012

            class Inner:
                value = flatdim(spaces.Discrete(3))

        return Pair()

    env = adapted(make)
    env.reset()
    env.close()
