"""Teams whose agents differ in kind, for tests: a native yard, the same through an adapter, tag."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from numpy.typing import NDArray

from mg2l.envs.base import EnvConfig, Info, TaskSet
from mg2l.envs.batched import BatchedEnv

WIDTHS = (3, 4, 5)
SPACES = (Box(-1.0, 1.0, (2,), np.float32), Discrete(3), MultiDiscrete([2, 4]))
OPTIONS = 6


@dataclass
class YardConfig(EnvConfig):
    """A crane (Box), a belt (Discrete) and a lamp (MultiDiscrete)."""

    n_agents: int = 3
    masked: bool = True


class Yard(BatchedEnv):
    """All agents are paid for being at the task's goal; the belt and the lamp have masks."""

    def __init__(self, config: YardConfig, num_envs: int, seed: int = 0) -> None:
        self.config = config
        features = np.array([[0.0], [1.0], [0.5]], np.float32)
        tasks = TaskSet([{}] * 3, features, ["near", "far", "held out"], 2)
        seen = [Box(-np.inf, np.inf, (width,), np.float32) for width in WIDTHS]
        super().__init__(tasks, num_envs, 3, seen, SPACES, config.max_ep_len, seed)
        self.x = np.zeros((num_envs, 3))
        self.given: NDArray[Any] = np.zeros((num_envs, 3, 2))

    def _begin(self, env_ids: NDArray[np.int64]) -> None:
        for env_id in env_ids:
            self.x[env_id] = self._streams.generators[env_id].normal(size=3)

    def _advance(self, actions: NDArray[Any]) -> Any:
        self.given = actions
        assert not actions[:, 1, 1].any()  # padding of the belt
        reached = np.stack([actions[:, 0].sum(1), actions[:, 1, 0] - 1, actions[:, 2] @ [1, -0.5]])
        self.x = 0.5 * self.x + 0.5 * reached.T
        goal = self.tasks.features[self.task_ids]
        rewards = (-np.abs(self.x - goal)).astype(np.float32)
        return rewards, np.zeros(rewards.shape, bool)

    def _observe(self) -> Any:
        obs = np.zeros((self.num_envs, 3, max(WIDTHS)), np.float32)
        for agent, width in enumerate(WIDTHS):
            obs[:, agent, 0] = self.x[:, agent]
            obs[:, agent, 1 : width - 1] = self.x.mean(1, keepdims=True)
            obs[:, agent, width - 1] = self._clock / 10
        return obs

    def _info(self) -> Info:
        if not self.config.masked:
            return {}
        mask = np.zeros((self.num_envs, 3, OPTIONS), bool)
        mask[:, 1, :3] = np.arange(3) != self._clock[:, None] % 3
        mask[:, 2] = True
        mask[:, 2, 5] = False  # the fourth option of the lamp's second choice
        return {"action_mask": mask}

    def _simulation(self) -> Any:
        return {"x": self.x.copy()}

    def _restore(self, state: Any) -> None:
        self.x = state["x"]

    def render(self, index: int = 0) -> NDArray[np.uint8]:
        picture = np.zeros((16, 16, 3), np.uint8)
        picture[np.clip(8 + 4 * self.x[index], 0, 15).astype(int), :, 0] = 255
        return picture


class Workshop:
    """PettingZoo's parallel interface: one agent of each kind of action space."""

    possible_agents = ("crane", "belt", "lamp", "gates")

    def __init__(self, goal: float) -> None:
        self.goal, self.agents, self.acted = goal, [], {}  # type: ignore[var-annotated]
        self.action = {
            "crane": Box(0.0, np.array([2.0, 4.0], np.float32)),
            "belt": Discrete(3, start=5),
            "lamp": MultiDiscrete([2, 4], start=[1, 0]),
            "gates": MultiBinary((1, 2)),
        }

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return Box(-np.inf, np.inf, (1 + len(agent),), np.float32)

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self.action[agent]

    def _give(self) -> tuple[Any, Any]:
        seen = {
            name: np.full(1 + len(name), self.time + self.goal, np.float32) for name in self.agents
        }
        info: dict[str, Any] = {name: {} for name in self.agents}
        info["belt"]["action_mask"] = [0, 1, 1]
        info["lamp"]["action_mask"] = (np.array([0, 1]), np.array([1, 0, 0, 1]))
        return seen, info

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[Any, Any]:
        self.time, self.agents = 0, list(self.possible_agents)
        return self._give()

    def step(self, actions: dict[str, Any]) -> tuple[Any, ...]:
        for name, action in actions.items():
            assert self.action[name].contains(action), (name, action)
        self.time += 1
        numbers = {name: np.ravel(action).astype(float) for name, action in actions.items()}
        rewards = {
            name: float(row @ [10.0, 1.0][: len(row)]) + self.goal for name, row in numbers.items()
        }
        no = dict.fromkeys(self.agents, False)
        seen, info = self._give()
        return seen, rewards, no, no, info

    def render(self) -> NDArray[np.uint8]:
        return np.full((8, 8, 3), self.time, np.uint8)


def make_workshop(params: dict[str, Any]) -> Workshop:
    """One agent of each kind of action space."""
    return Workshop(**params)


def make_tag(params: dict[str, Any]) -> Any:
    """PettingZoo's simple_tag, in which the one that is chased has the task's speed."""
    from mpe2 import simple_tag_v3

    env = simple_tag_v3.parallel_env(render_mode="rgb_array", num_obstacles=1)
    env.unwrapped.world.agents[-1].max_speed = params["speed"]
    return env


def flee(agent: str, observation: NDArray[np.float32], space: Any) -> int:
    """Run from the first chaser, along the axis on which it is nearer."""
    dx, dy = observation[6:8]
    if abs(dx) > abs(dy):
        return 1 if dx > 0 else 2
    return 3 if dy > 0 else 4
