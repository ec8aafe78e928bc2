"""Sub-environments of another package as a ``VectorEnv``."""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from numpy.typing import NDArray

from mg2l.core.distributed import world
from mg2l.core.schema import ConfigError, bounded
from mg2l.envs.adapters.workers import CrashError, RefusedError, Request, Workers
from mg2l.envs.base import BoolArray, EnvConfig, EnvError, FloatArray, Info, Space, TaskSet
from mg2l.envs.batched import BatchedEnv

Make = Callable[[dict[str, Any]], Any]
Others = Callable[[Any, Any, Any], Any]
_MAX_CRASHES = 3  # of one worker, without a step between them


@dataclass
class AdapterConfig(EnvConfig):
    """A third-party environment, in worker processes."""

    n_agents: int = bounded(0, ge=0, le=1000)
    """Agents; 0 is as many as the environment has, and another number must be that."""

    n_workers: int = bounded(0, ge=0, le=1024)
    """Worker processes; 0 is one per core, shared with torchrun's other processes."""

    timeout: float = bounded(60.0, gt=0, le=1e6)
    """Time limit for making, resetting or stepping one sub-environment; a slower worker has crashed
    [s]."""

    max_restarts: int = bounded(10, ge=0)
    """Restarts of a worker that one sub-environment may cause; its next crash ends the run."""


class AdaptedEnv(BatchedEnv):
    """``N`` sub-environments from a factory, in worker processes (see ``VectorEnv``).

    Action spaces: each agent's own, side by side as in `ActionLayout`: ``Box``, ``Discrete``,
    ``MultiDiscrete`` (flat, from 0) or ``MultiBinary`` (as two options per bit). A number that has
    both bounds, neither beyond a million, is in ``[-1, 1]`` and scaled to the agent's own; another
    is taken as it is, and clipped.

    Observation spaces: each agent's observation, flat, one-hot where it is discrete; zeros of an
    agent that has left. Action masks are taken from ``action_mask`` beside an observation, or from
    infos.

    Start: reset with a seed from the sub-environment's stream, which also seeds everything else
    that it may draw from: ``random``, ``numpy.random`` and torch, its spaces, and generators
    that it has made without a seed.

    End: as the environment says, an agent's flags staying until the episode ends with the last
    agent's; and truncated after ``max_ep_len`` steps. An agent that is not there yet is inactive
    and sees zeros until it joins; one that has left stays away. An episode whose worker crashes, or
    hangs for longer than ``timeout``, is truncated, with its last observation and no reward for the
    step.

    Saved state is each sub-environment's seed and its actions since: an episode is repeated to
    continue it, exactly as far as the environment is determined by its seed.

    Args:
        name: name of the family, for messages.
        make: ``make(params)`` gives an environment.
        tasks: its tasks.
        config: keys.
        num_envs: N.
        seed: the random seed.
        team: names of the agents that are the team; None is all.
        others: policy of the others, as ``adapters.register`` takes it.

    Raises:
        ConfigError: ``n_agents`` is another number than the team has.
        EnvError: the environment cannot be made; the message holds its traceback.
    """

    def __init__(
        self,
        name: str,
        make: Make,
        tasks: TaskSet,
        config: AdapterConfig,
        num_envs: int,
        seed: int,
        team: Sequence[Any] | None = None,
        others: Others | None = None,
    ) -> None:
        self.name = name
        cores = max(1, (os.cpu_count() or 1) // world.local_size)
        workers = min(config.n_workers or cores, num_envs)
        self.workers = Workers(make, workers, config.timeout, team, others)
        self._finalizer = weakref.finalize(self, Workers.close, self.workers)
        self._parts = np.array_split(np.arange(num_envs), workers)
        self._crashes = [0] * workers
        self._restarts, self._max_restarts = [0] * num_envs, config.max_restarts
        spaces = self._described(tasks)
        agents = len(spaces)
        if config.n_agents not in (0, agents):
            raise ConfigError(f"n_agents must be {agents} or 0 for {name}, got {config.n_agents}")
        observations = [Box(-np.inf, np.inf, (row[0],), np.float32) for row in spaces]
        actions = [_action_space(*row[1:]) for row in spaces]
        super().__init__(tasks, num_envs, agents, observations, actions, config.max_ep_len, seed)
        acting, flags = self.action_layout, (num_envs, agents)
        chosen = (*flags, *acting.shape)
        layout = {
            "obs": ("f4", (*flags, self.observation_width)),
            "rewards": ("f4", flags),
            "terminated": ("u1", flags),
            "truncated": ("u1", flags),
            "alive": ("u1", flags),
            "actions": (acting.dtype.str[1:], chosen),
            "stepping": ("u1", (num_envs,)),
            "at": ("i8", (workers,)),
            "beats": ("i8", (workers,)),
            "pids": ("i8", (workers,)),
        }
        if acting.choices:
            layout["mask"] = ("u1", (*flags, acting.options))
        self._shared = self.workers.attach(layout, spaces)
        self._shared["alive"][:] = 1
        self._seeds = np.zeros(num_envs, np.int64)
        dtype = self._shared["actions"].dtype
        self._past = np.zeros((num_envs, self.max_ep_len, *chosen[1:]), dtype)

    def _described(self, tasks: TaskSet) -> list[Any]:
        failed = f"{self.name}, task {tasks.names[0]!r}: the environment cannot be made"
        try:
            answers, crashes = self.workers.ask([(0, ("describe", tasks.params[0]))])
        except RefusedError as error:
            self.workers.close()
            raise EnvError(f"{failed}: {error}") from None
        if crashes:
            self.workers.close()
            raise EnvError(f"{failed}\n{crashes[0]}")
        spaces: list[Any] = answers[0]
        return spaces

    # Talking to the workers.

    def _ask(self, requests: list[tuple[int, Request]]) -> list[int]:
        """Ask workers; returns those that crashed, after saying so."""
        try:
            _, crashes = self.workers.ask(requests)
        except RefusedError as error:
            raise EnvError(f"{self._place(error.index)}: {error}") from None
        for crash in crashes:
            self._report(crash)
        return [crash.index for crash in crashes]

    def _place(self, worker: int) -> str:
        """Which sub-environment a worker is or was stepping."""
        return f"{self.name}, {self.place(int(self._shared['at'][worker]))}"

    def _report(self, crash: CrashError) -> None:
        env_id = int(self._shared["at"][crash.index])
        self._crashes[crash.index] += 1
        said = f"{self._place(crash.index)}: worker {crash.index} crashed"
        if self._crashes[crash.index] >= _MAX_CRASHES:
            raise EnvError(f"{said}, {_MAX_CRASHES} times without a step between\n{crash}")
        if self._restarts[env_id] == self._max_restarts:
            raise EnvError(
                f"{said}, after {self._max_restarts} restarts of it (max_restarts)\n{crash}"
            )
        self._restarts[env_id] += 1
        print(f"{said}; it is restarted, its episodes are truncated\n{crash}", file=sys.stderr)

    def _start(self, env_ids: NDArray[np.int64], seeds: NDArray[np.int64]) -> None:
        """Begin episodes; a worker that crashes is restarted and asked again."""
        self._seeds[env_ids] = seeds
        wanted, lost = set(env_ids.tolist()), set[int]()
        asked = list(range(len(self.workers)))
        while asked:
            requests: list[tuple[int, Request]] = []
            for index in asked:
                mine = [int(env_id) for env_id in self._parts[index] if env_id in wanted | lost]
                if mine:
                    requests.append((index, ("begin", [self._episode(env_id) for env_id in mine])))
            asked = self._ask(requests)
            # A new process has lost all its episodes, not only those that were to begin.
            lost |= {int(env_id) for index in asked for env_id in self._parts[index]} - wanted
        self._repeat(np.array(sorted(lost), np.int64))

    def _repeat(self, env_ids: NDArray[np.int64]) -> None:
        """Repeat restarted episodes up to the step where they were."""
        for step in range(int(self._clock[env_ids].max(initial=0))):
            self._shared["stepping"][:] = 0
            self._shared["stepping"][env_ids] = self._clock[env_ids] > step
            self._shared["actions"][:] = self._past[:, step]
            if self._ask([(index, ("step",)) for index in range(len(self.workers))]):
                raise EnvError(f"{self.name}: a worker crashed while episodes were repeated")

    def _episode(self, env_id: int) -> tuple[int, int, dict[str, Any], int]:
        task = int(self.task_ids[env_id])
        return env_id, task, self.tasks.params[task], int(self._seeds[env_id])

    # The hooks of BatchedEnv.

    def _begin(self, env_ids: NDArray[np.int64]) -> None:
        seeds = [int(self._streams.generators[env_id].integers(2**31)) for env_id in env_ids]
        self._start(env_ids, np.array(seeds, np.int64))

    def _advance(self, actions: NDArray[Any]) -> tuple[FloatArray, BoolArray]:
        shared = self._shared
        env_ids = np.arange(self.num_envs)
        self._past[env_ids, self._clock] = actions
        before = shared["obs"].copy()
        shared["actions"][:] = actions
        shared["stepping"][:] = 1
        crashed = self._ask([(index, ("step",)) for index in range(len(self.workers))])
        for index in range(len(self.workers)):
            if index not in crashed:
                self._crashes[index] = 0
                continue
            mine = self._parts[index]
            shared["obs"][mine] = before[mine]
            shared["rewards"][mine] = shared["terminated"][mine] = 0
            shared["truncated"][mine] = 1
        return shared["rewards"].copy(), shared["terminated"] != 0

    def _cut(self) -> BoolArray:
        return np.asarray(self._shared["truncated"] != 0)

    def _alive(self) -> BoolArray | None:
        return np.asarray(self._shared["alive"] != 0)

    def _observe(self) -> FloatArray:
        observed: FloatArray = self._shared["obs"].copy()
        return observed

    def _info(self) -> Info:
        info = super()._info()
        if "mask" in self._shared:
            info["action_mask"] = self._shared["mask"] != 0
        return info

    def _simulation(self) -> dict[str, NDArray[Any]]:
        return {"seeds": self._seeds.copy(), "past": self._past.copy()}

    def _restore(self, state: dict[str, NDArray[Any]]) -> None:
        self._past[:] = state["past"]
        env_ids = np.arange(self.num_envs)
        self._start(env_ids, state["seeds"])
        self._repeat(env_ids)

    def render(self, index: int = 0) -> NDArray[np.uint8]:
        """See ``VectorEnv.render``; the factory must make environments that render arrays.

        Raises:
            ConfigError: the environment gave no picture.
            EnvError: its process has ended.
            RuntimeError: ``reset`` was never called.
        """
        self._check_index(index)
        if not self._started:
            raise RuntimeError("call reset() before render()")
        part = next(i for i, part in enumerate(self._parts) if index in part)
        answers, crashes = self.workers.ask([(part, ("render", index))])
        if crashes:
            raise EnvError(f"{self.name}: render() failed\n{crashes[0]}")
        if not isinstance(answers[0], np.ndarray):
            raise ConfigError(f"{self.name} gave no picture: {answers[0]}")
        return answers[0]

    def close(self) -> None:
        """See ``VectorEnv.close``."""
        self._finalizer()


def _action_space(kind: str, *details: Any) -> Space:
    """The action space of an agent, from what ``worker.spaces.described`` returned."""
    if kind == "discrete":
        return Discrete(*details)
    if kind == "choices":
        return MultiDiscrete(*details)
    limits = np.array(details)
    scaled = np.isfinite(limits).all(0)
    low, high = np.where(scaled, [[-1.0], [1.0]], limits).astype(np.float32)
    return Box(low, high, dtype=np.float32)
