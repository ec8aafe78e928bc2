"""The contract of every environment: many copies stepped at once, tasks, complete seeding."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import ArrayLike, NDArray

from mg2l.core.schema import Section, bounded
from mg2l.envs.actions import ActionLayout
from mg2l.envs.actions import Space as Space

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]
Info = dict[str, Any]
StepResult = tuple[FloatArray, FloatArray, BoolArray, BoolArray, Info]


class EnvError(RuntimeError):
    """An environment that cannot go on, whoever steps it.

    The first line of its message says which, where and why; what follows is detail, such as the
    traceback of another process.
    """


@dataclass
class EnvConfig(Section):
    """Keys that every environment family has; a family derives from it and adds its own."""

    max_ep_len: int = bounded(100, ge=1, le=1_000_000)
    """Steps after which an episode is truncated."""

    n_agents: int = bounded(2, ge=1, le=1000)
    """Agents of the team."""

    n_tasks: int = bounded(0, ge=0, le=1_000_000)
    """Tasks to train on; 0 is all that the family has."""

    task_seed: int = bounded(0, ge=0, le=2**32 - 1)
    """Seed of the choice of training tasks, where fewer than all are trained on."""


@dataclass(frozen=True, eq=False)
class TaskSet:
    """The tasks of an environment, in three parts.

    Training tasks come first, then held-out tasks of the same distribution (``test``), then tasks
    beyond it (``ood``).

    Raises:
        ValueError: the lengths differ, a task occurs twice, or there is no training task.
    """

    params: Sequence[dict[str, Any]]
    """What makes each task, in the family's own words."""

    features: FloatArray
    """``[K, task_dim]``: each task as numbers, what an oracle is given."""

    names: Sequence[str]
    """A short name of each task, unique."""

    n_train: int
    """Tasks ``0 .. n_train - 1`` are for training."""

    n_test: int | None = None
    """Tasks after them that are held out, of the same distribution; None is all others. What is
    left lies beyond the distribution."""

    def __post_init__(self) -> None:
        count = len(self.params)
        if len(self.names) != count or len(self.features) != count or self.features.ndim != 2:
            raise ValueError(
                f"params, names and features must have one row per task, got {count}, "
                f"{len(self.names)} and {self.features.shape}"
            )
        if len(set(self.names)) != count:
            raise ValueError("task names must be unique: train and test tasks share none")
        if not 1 <= self.n_train <= count:
            raise ValueError(f"n_train must be in [1, {count}], got {self.n_train}")
        left = count - self.n_train
        if self.n_test is not None and not 0 <= self.n_test <= left:
            raise ValueError(f"n_test must be in [0, {left}], got {self.n_test}")

    def __len__(self) -> int:
        return len(self.params)

    @property
    def task_dim(self) -> int:
        """Length of a task's features."""
        return int(self.features.shape[1])

    @property
    def train_ids(self) -> NDArray[np.int64]:
        """``[n_train]`` ids of the training tasks."""
        return np.arange(self.n_train)

    @property
    def test_ids(self) -> NDArray[np.int64]:
        """``[n_test]`` ids of the held-out tasks of the same distribution."""
        end = len(self) if self.n_test is None else self.n_train + self.n_test
        return np.arange(self.n_train, end)

    @property
    def ood_ids(self) -> NDArray[np.int64]:
        """Ids of the tasks beyond the distribution that is trained on."""
        return np.arange(self.n_train + len(self.test_ids), len(self))

    @property
    def parts(self) -> dict[str, NDArray[np.int64]]:
        """Ids by part: ``train``, and those of ``test`` and ``ood`` that are not empty."""
        parts = {"train": self.train_ids, "test": self.test_ids, "ood": self.ood_ids}
        return {name: ids for name, ids in parts.items() if len(ids)}


class VectorEnv(ABC):
    """``N`` independent copies of a multi-agent environment, stepped together.

    Every copy has its own task and its own stream of random numbers: copy ``i`` under seed ``s``
    lives through the same episodes however many copies stand beside it. The first call is
    ``reset``. Returned arrays are the caller's: the next step does not touch them.

    Attributes:
        num_envs: copies ``N``.
        num_agents: agents ``A``.
        observation_spaces: one ``Box`` per agent. Arrays of observations are as wide as the widest;
            an agent's own numbers come first, and then zeros.
        action_spaces: one ``Box``, ``Discrete``, ``MultiDiscrete`` or ``MultiBinary`` per agent.
        tasks: the tasks a copy can be given.
        max_ep_len: steps after which an episode is truncated.
        task_ids: ``[N]`` int64, the task of each copy.
        image: height, width and channels of the image that an observation begins with, row by row
            and channels last, or None.
    """

    num_envs: int
    num_agents: int
    observation_spaces: tuple[Box, ...]
    action_spaces: tuple[Space, ...]
    tasks: TaskSet
    max_ep_len: int
    task_ids: NDArray[np.int64]
    image: tuple[int, int, int] | None = None

    @property
    def observation_width(self) -> int:
        """Of the widest observation, ``obs`` in the shapes below."""
        return max(int(space.shape[0]) for space in self.observation_spaces)

    @functools.cached_property
    def action_layout(self) -> ActionLayout:
        """How the agents' actions lie side by side."""
        return ActionLayout(self.action_spaces)

    @abstractmethod
    def reset(
        self, seed: int | Sequence[int] | None = None, task_ids: ArrayLike | None = None
    ) -> tuple[FloatArray, Info]:
        """Begin a new episode in every copy.

        Args:
            seed: seeds everything that is random, each copy with a stream of its own; or one seed
                for each of the N copies: copies of equal seeds see the same randomness. ``None``
                goes on with the streams as they are.
            task_ids: ``[N]`` int, the task of each copy; ``None`` keeps the tasks.

        Returns:
            ``obs`` ``[N, A, obs]`` float32, and an info that is empty or holds ``action_mask``
            and ``active`` as in ``step``.

        Raises:
            ValueError: ``task_ids`` is not ``[N]`` or names a task that does not exist, or there
                are neither one seed nor N.
        """

    @abstractmethod
    def step(self, actions: ArrayLike) -> StepResult:
        """Step every copy once; a copy whose episode ends begins its next one at once.

        Args:
            actions: ``[N, A, act]`` float, clipped to the action space, or ``[N, A]`` int64 where
                actions are discrete; in a team of several kinds as in `ActionLayout`. Not written
                to.

        Returns:
            ``obs`` ``[N, A, obs]`` float32: of a copy that has just ended, the first observation
            of its next episode. ``rewards`` ``[N, A]`` float32. ``terminated`` ``[N, A]`` bool:
            the task itself came to its end for the agent. ``truncated`` ``[N, A]`` bool: the time
            limit cut the episode. ``info``: ``final_obs`` ``[N, A, obs]``, the observation that
            the step really led to (where no episode ended it may be ``obs`` itself), and where
            the family has them ``action_mask`` ``[N, A, n]`` bool and ``active`` ``[N, A]`` bool
            (agents alive).

        Raises:
            ValueError: ``actions`` has another shape, or holds NaN.
            RuntimeError: ``reset`` was never called.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that a continuation bit for bit needs: numbers, strings and arrays only."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state that ``state_dict`` of an equal environment gave.

        Raises:
            ValueError: the state is of another environment or another number of copies.
        """

    @abstractmethod
    def render(self, index: int = 0) -> NDArray[np.uint8]:
        """Picture of copy ``index``, ``[height, width, 3]``; needs no display."""

    def close(self) -> None:  # noqa: B027  (most families hold nothing that must be freed)
        """Free what the environment holds outside Python."""


class Streams:
    """One stream of random numbers per environment copy.

    Copy ``i`` draws from child ``i`` of the seed, whatever the number of copies.
    """

    def __init__(self, count: int, seed: int | Sequence[int]) -> None:
        self.generators: list[np.random.Generator] = []
        self.count = count
        self.seed(seed)

    def seed(self, seed: int | Sequence[int]) -> None:
        """Start every stream anew, from one seed or from a seed for each.

        Raises:
            ValueError: there are neither one seed nor as many as streams.
        """
        if np.ndim(seed) == 0:
            children = np.random.SeedSequence(seed).spawn(self.count)
        elif np.shape(seed) == (self.count,):
            children = [np.random.SeedSequence(int(s)) for s in np.asarray(seed)]
        else:
            raise ValueError(
                f"seed must be one or {self.count} integers, got shape {np.shape(seed)}"
            )
        self.generators = [np.random.Generator(np.random.PCG64(child)) for child in children]

    def state(self) -> NDArray[np.int64]:
        """State of every stream: ``[count, 6]``, the words of PCG64 as int64."""
        rows = np.empty((self.count, 6), np.uint64)
        low = (1 << 64) - 1
        for row, generator in zip(rows, self.generators, strict=True):
            state = generator.bit_generator.state
            value, step = state["state"]["state"], state["state"]["inc"]
            row[:] = [
                value >> 64, value & low, step >> 64, step & low,
                state["has_uint32"], state["uinteger"],
            ]  # fmt: skip
        return rows.view(np.int64)

    def load(self, state: ArrayLike) -> None:
        """Take up what ``state`` gave.

        Raises:
            ValueError: it is the state of another number of streams.
        """
        rows = np.array(state, np.int64)
        if rows.shape != (self.count, 6):
            raise ValueError(f"streams must have shape ({self.count}, 6), got {rows.shape}")
        for row, generator in zip(rows.view(np.uint64), self.generators, strict=True):
            words = [int(word) for word in row]
            generator.bit_generator.state = {
                "bit_generator": "PCG64",
                "state": {
                    "state": (words[0] << 64) | words[1],
                    "inc": (words[2] << 64) | words[3],
                },
                "has_uint32": words[4],
                "uinteger": words[5],
            }
