"""The contract of every environment: sub-environments stepped together, tasks, complete seeding."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import ArrayLike, NDArray

from mg2l.core.schema import ConfigError, Section, bounded
from mg2l.envs.actions import ActionLayout
from mg2l.envs.actions import Space as Space

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]
Info = dict[str, Any]
StepResult = tuple[FloatArray, FloatArray, BoolArray, BoolArray, Info]
Seed = int | Sequence[int] | Sequence[np.random.SeedSequence]
"""One seed for all sub-environments, each of which draws from a child of its own, or one for
each."""


PARTS = ("train", "validation", "test", "ood")
"""Parts of the tasks, in the order of their ids."""

VALIDATION_STREAM = 1
"""Second word of the seed that chooses validation tasks; families draw theirs from one word."""


class EnvError(RuntimeError):
    """An environment that cannot continue, whatever policy steps it.

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

    n_validation_tasks: int = bounded(0, ge=0, le=1_000_000)
    """Training tasks that are set aside to tune on, chosen by ``task_seed``: nothing is trained on
    them. ``n_tasks`` counts them."""


@dataclass(frozen=True, eq=False)
class TaskSet:
    """The tasks of an environment, in up to four parts.

    Training tasks come first, then those set aside to tune on (``validation``), then held-out
    tasks of the same distribution (``test``), then tasks beyond it (``ood``).

    Raises:
        ValueError: the lengths differ, a task occurs twice, or there is no training task.
    """

    params: Sequence[dict[str, Any]]
    """Parameters of each task, by the family's own names."""

    features: FloatArray
    """``[K, task_dim]``: each task as numbers, the input of an oracle."""

    names: Sequence[str]
    """A short name of each task, unique."""

    n_train: int
    """Tasks ``0 .. n_train - 1`` are for training."""

    n_test: int | None = None
    """Tasks after these two parts that are held out, of the same distribution; None is all others.
    What is left lies beyond the distribution."""

    n_validation: int = 0
    """Tasks right after those of training, of the same distribution, to tune on."""

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
        if not 0 <= self.n_validation <= count - self.n_train:
            raise ValueError(
                f"n_validation must be in [0, {count - self.n_train}], got {self.n_validation}"
            )
        left = count - self.n_train - self.n_validation
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
    def validation_ids(self) -> NDArray[np.int64]:
        """``[n_validation]`` ids of the tasks to tune on."""
        return np.arange(self.n_train, self.n_train + self.n_validation)

    @property
    def test_ids(self) -> NDArray[np.int64]:
        """``[n_test]`` ids of the held-out tasks of the same distribution."""
        begin = self.n_train + self.n_validation
        return np.arange(begin, len(self) if self.n_test is None else begin + self.n_test)

    @property
    def ood_ids(self) -> NDArray[np.int64]:
        """Ids of the tasks beyond the distribution that is trained on."""
        return np.arange(self.n_train + self.n_validation + len(self.test_ids), len(self))

    @property
    def parts(self) -> dict[str, NDArray[np.int64]]:
        """Ids by part: ``train``, and of `PARTS` those that are not empty."""
        return {name: ids for name in PARTS if len(ids := getattr(self, f"{name}_ids"))}

    def with_validation(self, config: EnvConfig) -> TaskSet:
        """The same tasks, ``n_validation_tasks`` of those of training set aside to tune on.

        Args:
            config: ``task_seed`` says which ones. Both groups keep their order.

        Raises:
            ConfigError: no task would be left to train on.
        """
        count = config.n_validation_tasks
        if not count:
            return self
        if count >= self.n_train:
            raise ConfigError(
                f"n_validation_tasks must be below {self.n_train}, the number of training tasks, "
                f"got {count}"
            )
        seed = np.random.SeedSequence([config.task_seed, VALIDATION_STREAM])
        drawn = np.random.default_rng(seed).permutation(self.n_train)
        order = [*np.sort(drawn[count:]), *np.sort(drawn[:count]), *range(self.n_train, len(self))]
        return TaskSet(
            [self.params[i] for i in order],
            self.features[order],
            [self.names[i] for i in order],
            self.n_train - count,
            self.n_test,
            count,
        )


class VectorEnv(ABC):
    """``N`` independent sub-environments with several agents each, stepped together.

    Each has its own task and its own stream of random numbers: number ``i`` under seed ``s``
    plays the same episodes, however many others there are. The first call is
    ``reset``. Returned arrays are the caller's: the next step does not touch them.

    Attributes:
        num_envs: sub-environments ``N``.
        num_agents: agents ``A``.
        observation_spaces: one ``Box`` per agent. Arrays of observations are as wide as the widest;
            an agent's own numbers come first, and then zeros.
        action_spaces: one ``Box``, ``Discrete``, ``MultiDiscrete`` or ``MultiBinary`` per agent.
        tasks: the tasks that a sub-environment can be given.
        max_ep_len: steps after which an episode is truncated.
        task_ids: ``[N]`` int64, the task of each sub-environment.
        image: height, width and channels of the image that an observation begins with, row by row
            and channels last, or None.
        vectorised: whether a step of many sub-environments costs little more than one of a few.
        shared_reward: whether all agents get the same reward at every step, and end together.
        first_env: number of the first sub-environment among those of all processes of a run.
    """

    num_envs: int
    num_agents: int
    observation_spaces: tuple[Box, ...]
    action_spaces: tuple[Space, ...]
    tasks: TaskSet
    max_ep_len: int
    task_ids: NDArray[np.int64]
    image: tuple[int, int, int] | None = None
    vectorised: bool = False
    shared_reward: bool = False
    first_env: int = 0

    def place(self, env_id: int) -> str:
        """Name of a sub-environment in messages."""
        task = self.tasks.names[int(self.task_ids[env_id])]
        return f"sub-environment {self.first_env + env_id}, task {task!r}"

    @property
    def observation_width(self) -> int:
        """Width of the widest observation, ``obs`` in the shapes below."""
        return max(int(space.shape[0]) for space in self.observation_spaces)

    @functools.cached_property
    def action_layout(self) -> ActionLayout:
        """How the agents' actions lie side by side."""
        return ActionLayout(self.action_spaces)

    @abstractmethod
    def reset(
        self, seed: int | Sequence[int] | None = None, task_ids: ArrayLike | None = None
    ) -> tuple[FloatArray, Info]:
        """Begin a new episode in every sub-environment.

        Args:
            seed: seeds everything that is random, each sub-environment with its own stream; or N
                seeds, one each: equal seeds give the same randomness. ``None`` continues the
                streams as they are.
            task_ids: ``[N]`` int, the task of each sub-environment; ``None`` keeps the tasks.

        Returns:
            ``obs`` ``[N, A, obs]`` float32, and an info that is empty or holds ``action_mask``
            and ``active`` as in ``step``.

        Raises:
            ValueError: ``task_ids`` is not ``[N]`` or names a task that does not exist, or there
                are neither one seed nor N.
        """

    @abstractmethod
    def step(self, actions: ArrayLike) -> StepResult:
        """Step every sub-environment once; where an episode ends, the next one begins at once.

        Args:
            actions: ``[N, A, act]`` float, clipped to the action space, or ``[N, A]`` int64 where
                actions are discrete; in a team of several kinds as in `ActionLayout`. Not written
                to.

        Returns:
            ``obs`` ``[N, A, obs]`` float32: where an episode has just ended, the first
            observation of the next. ``rewards`` ``[N, A]`` float32. ``terminated`` ``[N, A]`` bool:
            the task itself ended for the agent. ``truncated`` ``[N, A]`` bool: the time
            limit cut the episode. ``info``: ``final_obs`` ``[N, A, obs]``, the observation that
            the step really led to (where no episode ended it may be ``obs`` itself), and where
            the family has them ``action_mask`` ``[N, A, n]`` bool and ``active`` ``[N, A]`` bool
            (agents alive).

        Raises:
            ValueError: ``actions`` has the wrong shape, or holds NaN.
            RuntimeError: ``reset`` was never called.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue bit for bit: numbers, strings and arrays only."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the ``state_dict`` of an equal environment.

        Raises:
            ValueError: the state is of another environment or another number of sub-environments.
        """

    @abstractmethod
    def render(self, index: int = 0) -> NDArray[np.uint8]:
        """Picture of sub-environment ``index``, ``[height, width, 3]``; needs no display."""

    def close(self) -> None:  # noqa: B027  (most families hold nothing that must be freed)
        """Free what the environment holds outside Python."""

    def to(self, device: Any) -> VectorEnv:
        """This environment, freshly built, as a `DeviceEnv` on a ``torch.device`` where it can be.

        Environments that step on the CPU return themselves.
        """
        return self

    def _set_tasks(self, task_ids: ArrayLike) -> None:
        ids = np.array(task_ids, np.int64)
        if ids.shape != (self.num_envs,):
            raise ValueError(f"task_ids must have shape ({self.num_envs},), got {ids.shape}")
        if ids.min() < 0 or ids.max() >= len(self.tasks):
            raise ValueError(f"task_ids must be in [0, {len(self.tasks)}), got {ids.tolist()}")
        self.task_ids = ids

    def _check_index(self, index: int) -> None:
        if not 0 <= index < self.num_envs:
            raise ValueError(f"index must be in [0, {self.num_envs}), got {index}")


class DeviceEnv(VectorEnv):
    """An environment that can also step with tensors of a device, on which it waits for nothing.

    Attributes:
        device: a ``torch.device``.
    """

    device: Any

    @abstractmethod
    def step_tensors(
        self, actions: Any, observations: Any, rewards: Any
    ) -> tuple[Any, NDArray[np.bool_]]:
        """A step in which episodes end only by truncation, which the host foresees.

        Args:
            actions: ``[N, A, act]`` or ``[N, A]`` tensor.
            observations: ``[N, A, obs]`` float32 tensor that is filled, as ``obs`` of `step`.
            rewards: ``[N, A]`` float32 tensor that is filled.

        Returns:
            ``final_obs`` where an episode has ended, or None where none has; and ``[N]`` bool,
            which have.
        """


class Streams:
    """One stream of random numbers per sub-environment.

    Stream ``i`` draws from child ``i`` of the seed, whatever the number of streams.
    """

    def __init__(self, count: int, seed: Seed) -> None:
        self.generators: list[np.random.Generator] = []
        self.count = count
        self.seed(seed)

    def seed(self, seed: Seed) -> None:
        """Restart every stream, from one seed or from a seed for each.

        Raises:
            ValueError: there are neither one seed nor as many as streams.
        """
        given: Any = seed
        if np.ndim(given) == 0:
            children = np.random.SeedSequence(given).spawn(self.count)
        elif np.shape(given) == (self.count,):
            children = [
                s if isinstance(s, np.random.SeedSequence) else np.random.SeedSequence(int(s))
                for s in given
            ]
        else:
            raise ValueError(
                f"seed must be one or {self.count} integers, got shape {np.shape(given)}"
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
        """Restore what `state` returned.

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
