"""Small environments with other packages' interfaces, for the tests of ``mg2l.envs.adapters``."""

import os
import random
import signal
import time
from typing import Any

import numpy as np
from gymnasium import spaces

TRAIN = [{"goal": 0.0}, {"goal": 0.5}, {"goal": 1.0}]
TEST = [{"goal": 0.25}]


class Walkers:
    """PettingZoo's parallel interface: walkers on a line, paid for being near a hidden goal."""

    possible_agents: tuple[str, ...] = ("left", "right")

    def __init__(self, goal: float, limit: int = 50) -> None:
        self.goal, self.limit = goal, limit
        self.agents: list[str] = []

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Box(-np.inf, np.inf, (2 if agent == "left" else 3,), np.float32)

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Box(0.0, 2.0 if agent == "left" else 4.0, (1,), np.float32)

    def _see(self) -> dict[str, np.ndarray]:
        return {
            "left": np.array([self.x["left"], self.time], np.float32),
            "right": np.array([self.x["right"], self.x["left"], self.time], np.float32),
        }

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[Any, Any]:
        self.rng = np.random.default_rng(seed)
        x = self.rng.normal(size=len(self.possible_agents))
        self.x = dict(zip(self.possible_agents, x, strict=True))
        self.time = 0
        self.agents = list(self.possible_agents)
        return self._see(), {name: {} for name in self.agents}

    def step(self, actions: dict[str, Any]) -> tuple[Any, ...]:
        assert set(actions) == set(self.agents)
        for name, action in actions.items():
            assert self.action_space(name).contains(action), action
            self.x[name] += 0.1 * (float(action[0]) - 1) + 0.01 * self.rng.normal()
        self.time += 1
        rewards = {name: -abs(self.x[name] - self.goal) for name in self.agents}
        over = self.time >= self.limit
        flags = dict.fromkeys(self.agents, False), dict.fromkeys(self.agents, over)
        seen = {name: self._see()[name] for name in self.agents}
        infos: dict[str, Any] = {name: {} for name in self.agents}
        if over:
            self.agents = []
        return seen, rewards, *flags, infos

    def render(self) -> np.ndarray:
        picture = np.zeros((8, 8, 3), np.uint8)
        picture[0] = np.frombuffer(np.float64(self.x["left"]).tobytes(), np.uint8)[:, None]
        return picture


def make_walkers(params: dict[str, Any]) -> Walkers:
    """Walkers on a line."""
    return Walkers(**params)


class Blind(Walkers):
    """Made without a render mode."""

    def render(self) -> Any:
        return None


def make_blind(params: dict[str, Any]) -> Blind:
    return Blind(**params)


class Mortals(Walkers):
    """``Walkers`` with discrete, masked actions, one of whom leaves after three steps."""

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        n = int(self.action_space(agent).n)
        return spaces.Dict(
            {
                "observation": spaces.Discrete(4),
                "action_mask": spaces.MultiBinary(n),
            }
        )

    def action_space(self, agent: str) -> Any:
        return spaces.Discrete(3 if agent == "left" else 5)

    def _masked(self) -> dict[str, Any]:
        seen = {}
        for name in self.agents:
            mask = np.ones(self.action_space(name).n, np.int8)
            mask[self.time % 3] = 0
            seen[name] = {"observation": min(self.time, 3), "action_mask": mask}
        return seen

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[Any, Any]:
        super().reset(seed)
        return self._masked(), {}

    def step(self, actions: dict[str, Any]) -> tuple[Any, ...]:
        assert set(actions) == set(self.agents)
        for name, action in actions.items():
            assert action != self.time % 3
            assert 0 <= action < self.action_space(name).n
        self.time += 1
        acting = self.agents
        dies = {name: name == "left" and self.time == 3 for name in acting}
        over = self.time >= 6
        self.agents = [] if over else [name for name in acting if not dies[name]]
        seen = self._masked()
        for name in acting:
            if name not in seen:
                seen[name] = {"observation": 3, "action_mask": np.ones(1)}
        return seen, dict.fromkeys(acting, 1.0), dies, dict.fromkeys(acting, over), {}


def make_mortals(params: dict[str, Any]) -> Mortals:
    return Mortals(**params)


class Old:
    """Gym 0.21: ``seed``, ``reset`` gives observations, ``step`` one ``done`` each."""

    observation_space: tuple[spaces.Space[Any], ...] = (spaces.Box(-9.0, 9.0, (2, 2)),) * 2
    action_space = (spaces.Discrete(2), spaces.Discrete(2))

    def __init__(self, goal: float) -> None:
        self.goal = goal

    def seed(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def reset(self) -> Any:
        self.time = 0
        return self.rng.normal(size=(2, 2, 2))

    def step(self, actions: Any) -> tuple[Any, ...]:
        self.time += 1
        info = {"TimeLimit.truncated": True} if self.goal > 0 else {}
        done = [self.time == 4] * 2
        return self.rng.normal(size=(2, 2, 2)), [float(a) for a in actions], done, info


class New(Old):
    """Gym 0.26 and gymnasium: ``reset(seed=)``, one reward and flag for all."""

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.seed(seed or 0)
        return tuple(super().reset()), {}

    def step(self, actions: Any) -> tuple[Any, ...]:
        seen, _, done, _ = super().step(actions)
        return tuple(seen), 2.0, done[0], False, {}


def make_old(params: dict[str, Any]) -> Old:
    return Old(**params)


def make_new(params: dict[str, Any]) -> New:
    return New(**params)


class Fragile(Walkers):
    """Crashes in its third step where the goal is 1: raises, or kills its process."""

    how = "raise"

    def step(self, actions: dict[str, Any]) -> tuple[Any, ...]:
        if self.goal == 1 and self.time == 2:
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ZeroDivisionError("the walker has tripped")
        return super().step(actions)


class Deadly(Fragile):
    how = "kill"


class Sleeper(Fragile):
    """Hangs where the others crash."""

    def step(self, actions: dict[str, Any]) -> tuple[Any, ...]:
        if self.goal == 1 and self.time == 2:
            time.sleep(600)
        return super().step(actions)


class Slow(Walkers):
    """Takes a fifth of a second for a step."""

    def step(self, actions: dict[str, Any]) -> tuple[Any, ...]:
        time.sleep(0.2)
        return super().step(actions)


class Stillborn(Walkers):
    def reset(self, seed: int | None = None, options: Any = None) -> tuple[Any, Any]:
        raise LookupError("no place to stand")


def make_fragile(params: dict[str, Any]) -> Fragile:
    return Fragile(**params)


def make_deadly(params: dict[str, Any]) -> Deadly:
    return Deadly(**params)


def make_sleeper(params: dict[str, Any]) -> Sleeper:
    return Sleeper(**params)


def make_slow(params: dict[str, Any]) -> Slow:
    return Slow(**params)


def make_sleeping(params: dict[str, Any]) -> Any:
    time.sleep(600)


def make_stillborn(params: dict[str, Any]) -> Stillborn:
    return Stillborn(**params)


def make_nothing(params: dict[str, Any]) -> Any:
    return object()


class Careless(Walkers):
    """Draws from the generators that all of a process share."""

    def _see(self) -> dict[str, np.ndarray]:
        seen = super()._see()
        seen["left"][1] = np.random.rand() + random.random()  # noqa: NPY002
        return seen


def make_careless(params: dict[str, Any]) -> Careless:
    return Careless(**params)


class Leavers(Walkers):
    """One leaves after two steps without a word, one never comes, one stays for four steps."""

    possible_agents = ("left", "right", "never")

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[Any, Any]:
        found = super().reset(seed)
        self.agents = ["left", "right"]
        return found

    def step(self, actions: dict[str, Any]) -> tuple[Any, ...]:
        self.limit = 99
        seen, rewards, no, _, infos = super().step(actions)
        self.agents = [["left", "right"], ["right"], []][min(self.time // 2, 2)]
        return seen, rewards, no, no, infos


def make_leavers(params: dict[str, Any]) -> Leavers:
    return Leavers(**params)


class Staggered(Old):
    """Done one after the other, each only said once; masks beside observations."""

    observation_space = (
        spaces.Dict({"observation": spaces.Discrete(9), "action_mask": spaces.MultiBinary(2)}),
    ) * 2

    def _masked(self) -> Any:
        return [{"observation": self.time, "action_mask": [i, 1]} for i in range(2)]

    def reset(self) -> Any:
        self.time = 0
        return self._masked()

    def step(self, actions: Any) -> tuple[Any, ...]:
        self.time += 1
        return self._masked(), [1.0, 1.0], [self.time == 2, self.time == 4], {}


def make_staggered(params: dict[str, Any]) -> Staggered:
    return Staggered(**params)


def make_gym(params: dict[str, Any]) -> Any:
    """The package gym 0.26 itself, with one of its wrappers."""
    import gym

    class Pair(gym.Env):
        observation_space = gym.spaces.Tuple([gym.spaces.Box(-9, 9, (2,))] * 2)
        action_space = gym.spaces.Tuple([gym.spaces.Discrete(2)] * 2)

        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            return tuple(self.np_random.random((2, 2))), {}

        def step(self, actions: Any) -> Any:
            return tuple(self.np_random.random((2, 2))), list(actions), False, False, {}

    return gym.wrappers.TimeLimit(Pair(), 3)
