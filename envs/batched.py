"""The base of families that step many instances of a simulator."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import ArrayLike, NDArray

from mg2l.envs.base import (
    BoolArray,
    FloatArray,
    Info,
    Space,
    StepResult,
    Streams,
    TaskSet,
    VectorEnv,
)


class BatchedEnv(VectorEnv):
    """Tasks, clocks, seeding and saved state of ``N`` sub-environments (see ``VectorEnv``).

    Agents share one space, or each has its own. A family defines how episodes begin (``_begin``),
    are stepped (``_advance``), observed (``_observe``) and drawn (``render``), and what must be
    saved beyond tasks, clocks and streams (``_simulation``, ``_restore``). Where agents can die,
    ``_alive`` returns those alive; where the simulator has limits of its own, ``_cut`` returns
    whose episode they end.
    """

    def __init__(
        self,
        tasks: TaskSet,
        num_envs: int,
        num_agents: int,
        observation: Box | Sequence[Box],
        actions: Space | Sequence[Space],
        max_ep_len: int,
        seed: int,
    ) -> None:
        self.tasks = tasks
        self.num_envs, self.num_agents = num_envs, num_agents
        self.max_ep_len = max_ep_len
        seen = (observation,) * num_agents if isinstance(observation, Box) else observation
        acting = actions if isinstance(actions, Sequence) else (actions,) * num_agents
        self.observation_spaces, self.action_spaces = tuple(seen), tuple(acting)
        self.task_ids = np.arange(num_envs) % tasks.n_train
        self._streams = Streams(num_envs, seed)
        self._clock = np.zeros(num_envs, np.int64)
        self._started = False

    # What a family defines.

    @abstractmethod
    def _begin(self, env_ids: NDArray[np.int64]) -> None:
        """Begin an episode of each one's task, drawn from ``_streams.generators[env_id]`` only."""

    @abstractmethod
    def _advance(self, actions: NDArray[Any]) -> tuple[FloatArray, BoolArray]:
        """Step every sub-environment with ``actions``; returns rewards and terminated, ``[N, A]``.

        Actions are in their spaces, as `ActionLayout.within` gives them.
        """

    @abstractmethod
    def _observe(self) -> FloatArray:
        """A new array ``[N, A, obs]``."""

    @abstractmethod
    def _simulation(self) -> dict[str, NDArray[Any]]:
        """State of the simulators: arrays whose shapes depend only on the environment."""

    @abstractmethod
    def _restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Restore what ``_simulation`` returned; tasks, clocks and streams are restored already."""

    def _alive(self) -> BoolArray | None:
        """``[N, A]`` a new array of the agents alive, or None where none can die."""
        return None

    def _cut(self) -> BoolArray | None:
        """``[N, A]`` whose episode the simulator itself cut off in this step, or None."""
        return None

    # The contract.

    @property
    def clock(self) -> NDArray[np.int64]:
        """``[N]`` steps of each sub-environment's episode so far."""
        clock: NDArray[np.int64] = self._clock.copy()
        return clock

    def reset(
        self, seed: int | Sequence[int] | None = None, task_ids: ArrayLike | None = None
    ) -> tuple[FloatArray, Info]:
        """See ``VectorEnv.reset``."""
        if task_ids is not None:
            self._set_tasks(task_ids)
        if seed is not None:
            self._streams.seed(seed)
        self._started = True
        self._clock[:] = 0
        self._begin(np.arange(self.num_envs))
        return self._observe(), self._info()

    def step(self, actions: ArrayLike) -> StepResult:
        """See ``VectorEnv.step``."""
        chosen = np.asarray(actions)
        shape = (self.num_envs, self.num_agents, *self.action_layout.shape)
        if chosen.shape != shape:
            raise ValueError(f"actions must have shape {shape}, got {chosen.shape}")
        if not self._started:
            raise RuntimeError("call reset() before the first step")
        rewards, terminated = self._advance(self.action_layout.within(chosen))
        self._clock += 1
        late, cut = (self._clock >= self.max_ep_len)[:, None], self._cut()
        truncated = ~terminated & (late if cut is None else late | cut)
        final_obs = obs = self._observe()
        over = np.flatnonzero((terminated | truncated).all(axis=1))
        if len(over):
            self._clock[over] = 0
            self._begin(over)
            obs = self._observe()
        return obs, rewards, terminated, truncated, {"final_obs": final_obs, **self._info()}

    def state_dict(self) -> dict[str, Any]:
        """See ``VectorEnv.state_dict``."""
        return {
            **self._simulation(),
            "clock": self._clock.copy(),
            "task_ids": self.task_ids.copy(),
            "streams": self._streams.state(),
            "started": self._started,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See ``VectorEnv.load_state_dict``."""
        held = self._simulation()
        expected = {*held, "clock", "task_ids", "streams", "started"}
        if set(state) != expected:
            raise ValueError(f"state must have the keys {sorted(expected)}, got {sorted(state)}")
        given = {name: np.asarray(state[name]) for name in (*held, "clock")}
        for name, value in given.items():
            target = held.get(name, self._clock)
            if value.shape != target.shape:
                raise ValueError(f"{name} must have shape {target.shape}, got {value.shape}")
        self._streams.load(state["streams"])
        self._set_tasks(state["task_ids"])
        self._clock[:] = given.pop("clock")
        self._started = bool(state["started"])
        if self._started:
            self._restore({name: np.array(value) for name, value in given.items()})

    def _info(self) -> Info:
        alive = self._alive()
        return {} if alive is None else {"active": alive}
