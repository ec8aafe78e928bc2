"""A worker process of ``mg2l.envs.adapters``: makes and steps copies of a foreign environment.

Run as a script, it imports NumPy and what the environment's factory needs: no torch, no mg2l.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import mmap
import pickle
import random
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
Layout = dict[str, tuple[str, tuple[int, ...]]]
"""Name to dtype and shape of each array in the memory that all processes share."""


def arrays_in(memory: mmap.mmap, layout: Layout) -> Arrays:
    """The arrays of a layout, one after the other in shared memory."""
    arrays, offset = {}, 0
    for name, (dtype, shape) in layout.items():
        arrays[name] = np.ndarray(shape, dtype, memory, offset)
        offset += padded(arrays[name].nbytes)
    return arrays


def padded(size: int) -> int:
    """``size`` [bytes] up to whole cache lines."""
    return -(-size // 64) * 64


def size_of(layout: Layout) -> int:
    """Bytes that ``arrays_in`` needs."""
    sizes = (np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in layout.values())
    return sum(map(padded, sizes))


# Spaces of gymnasium, of gym and of packages that imitate them, told apart by the names of classes.


def kind(space: Any) -> str:
    """``Box``, ``Discrete``, ``MultiDiscrete``, ``MultiBinary``, ``Tuple`` or ``Dict``.

    Raises:
        TypeError: it is a space of another kind.
    """
    known = ("Box", "Discrete", "MultiDiscrete", "MultiBinary", "Tuple", "Dict")
    for base in type(space).__mro__:
        if base.__name__ in known:
            return base.__name__
    if isinstance(space, (list, tuple)):
        return "Tuple"
    raise TypeError(f"spaces must be one of {', '.join(known)}, got {type(space).__name__}")


def _seen(space: Any) -> Any:
    """A space without the action mask beside the observation (PettingZoo's convention)."""
    if kind(space) == "Dict" and set(space.spaces) == {"observation", "action_mask"}:
        return space.spaces["observation"]
    return space


def width(space: Any) -> int:
    """Numbers of a flat observation."""
    space = _seen(space)
    name = kind(space)
    if name == "Discrete":
        return int(space.n)
    if name == "MultiDiscrete":
        return int(np.sum(space.nvec))
    if name == "Tuple":
        return sum(map(width, getattr(space, "spaces", space)))
    if name == "Dict":
        return sum(map(width, space.spaces.values()))
    return math.prod(space.shape)


def flat(space: Any, value: Any) -> NDArray[np.float32]:
    """An observation as ``[width(space)]`` numbers; what is discrete becomes one-hot."""
    if _seen(space) is not space:
        space, value = _seen(space), value["observation"]
    name = kind(space)
    if name == "Discrete":
        one_hot = np.zeros(int(space.n), np.float32)
        one_hot[int(value) - int(getattr(space, "start", 0))] = 1
        return one_hot
    if name == "MultiDiscrete":
        ends = np.cumsum(np.ravel(space.nvec))
        one_hot = np.zeros(int(ends[-1]), np.float32)
        one_hot[ends - np.ravel(space.nvec) + np.ravel(value)] = 1
        return one_hot
    if name == "Tuple":
        parts = getattr(space, "spaces", space)
        return np.concatenate([flat(s, v) for s, v in zip(parts, value)])  # noqa: B905
    if name == "Dict":
        return np.concatenate([flat(s, value[key]) for key, s in space.spaces.items()])
    return np.asarray(value, np.float32).ravel()


def described(space: Any) -> tuple[Any, ...]:
    """An action space as ``("discrete", n)`` or ``("box", low, high)``.

    Raises:
        TypeError: it is neither.
    """
    name = kind(space)
    if name == "Discrete":
        return "discrete", int(space.n)
    if name == "Box":
        return "box", np.ravel(space.low).tolist(), np.ravel(space.high).tolist()
    raise TypeError(f"action spaces must be Box or Discrete, got {name}")


class Act:
    """Turns a row of the shared actions into an action of one agent's space.

    Continuous actions come as shares of the space's width, in ``[-1, 1]``, where it is bounded.
    """

    def __init__(self, space: Any) -> None:
        self.discrete = kind(space) == "Discrete"
        if self.discrete:
            self.start = int(getattr(space, "start", 0))
            return
        self.shape, self.dtype = space.shape, space.dtype
        low, high = (np.ravel(bound).astype(np.float64) for bound in (space.low, space.high))
        self.bounded = bool(np.isfinite(low).all() and np.isfinite(high).all())
        self.low, self.size = low, len(low)
        self.half = (high - low) / 2 if self.bounded else np.ones_like(low)

    def __call__(self, row: NDArray[Any]) -> Any:
        if self.discrete:
            return int(row) + self.start
        action = row[: self.size]
        if self.bounded:
            action = self.low + (action + 1) * self.half
        return action.reshape(self.shape).astype(self.dtype)


class Player:
    """One foreign environment, whatever its interface; agents are numbered."""

    observations: list[Any]
    actions: list[Any]

    def __init__(self, env: Any) -> None:
        self.env = env

    def reset(self, seed: int) -> tuple[list[Any], list[Any]]:
        """Begin an episode: observations, and action masks or None, of every agent."""
        raise NotImplementedError

    def step(self, actions: list[Any]) -> tuple[list[Any], ...]:
        """Observations, rewards, terminated, truncated and masks of every agent."""
        raise NotImplementedError

    def present(self) -> list[bool]:
        """Which agents are there to act."""
        return [True] * len(self.actions)

    def render(self) -> Any:
        """A picture, if the environment makes any."""
        return self.env.render()


class Parallel(Player):
    """PettingZoo's parallel interface; agents may leave."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.names = list(env.possible_agents)
        self.observations = [env.observation_space(name) for name in self.names]
        self.actions = [env.action_space(name) for name in self.names]

    def reset(self, seed: int) -> tuple[list[Any], list[Any]]:
        """See ``Player.reset``."""
        seen, info = self.env.reset(seed=seed)
        return [seen.get(name) for name in self.names], self._masks(seen, info)

    def step(self, actions: list[Any]) -> tuple[list[Any], ...]:
        """See ``Player.step``."""
        living = set(self.env.agents)
        chosen = {n: a for n, a in zip(self.names, actions) if n in living}  # noqa: B905
        seen, rewards, terminated, truncated, info = self.env.step(chosen)
        return (
            [seen.get(name) for name in self.names],
            [rewards.get(name, 0.0) for name in self.names],
            [bool(terminated.get(name)) for name in self.names],
            [bool(truncated.get(name)) for name in self.names],
            self._masks(seen, info),
        )

    def present(self) -> list[bool]:
        """See ``Player.present``."""
        living = set(self.env.agents)
        return [name in living for name in self.names]

    def _masks(self, seen: Mapping[str, Any], info: Mapping[str, Any]) -> list[Any]:
        return [_mask(seen.get(name), info.get(name)) for name in self.names]


class Together(Player):
    """Gymnasium and classic gym with a space per agent, in both of gym's interfaces."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.observations = list(getattr(env.observation_space, "spaces", env.observation_space))
        self.actions = list(getattr(env.action_space, "spaces", env.action_space))
        plain = getattr(env, "unwrapped", env)
        self.takes_seed = "seed" in inspect.signature(plain.reset).parameters

    def reset(self, seed: int) -> tuple[list[Any], list[Any]]:
        """See ``Player.reset``."""
        if self.takes_seed:
            seen, _ = self.env.reset(seed=seed)
        else:
            if hasattr(self.env, "seed"):
                self.env.seed(seed)
            seen = self.env.reset()
        return list(seen), [_mask(one) for one in seen]

    def step(self, actions: list[Any]) -> tuple[list[Any], ...]:
        """See ``Player.step``."""
        seen, rewards, *over, info = self.env.step(tuple(actions))
        count = len(self.actions)
        if len(over) == 1:
            done = _each(over[0], count)
            cut = isinstance(info, Mapping) and bool(info.get("TimeLimit.truncated", False))
            over = [[d and not cut for d in done], [d and cut for d in done]]
        terminated, truncated = (list(map(bool, _each(flag, count))) for flag in over)
        masks = [_mask(one) for one in seen]
        return list(seen), _each(rewards, count), terminated, truncated, masks


def _mask(*places: Any) -> Any:
    """The action mask of an agent: beside its observation, else in its info, else None."""
    for place in places:
        if isinstance(place, Mapping) and "action_mask" in place:
            return place["action_mask"]
    return None


def _each(value: Any, count: int) -> list[Any]:
    """One value for all agents, or one of each."""
    return [value] * count if np.ndim(value) == 0 else list(value)


def player(env: Any) -> Player:
    """Tell the interface of an environment.

    Raises:
        TypeError: it has none of those that are known.
    """
    if hasattr(env, "possible_agents") and hasattr(env, "observation_space"):
        return Parallel(env)
    spaces = (getattr(env, "observation_space", None), getattr(env, "action_space", None))
    if all(space is not None and kind(space) == "Tuple" for space in spaces):
        return Together(env)
    raise TypeError(
        "make(params) must return a PettingZoo parallel environment, or one of gymnasium or gym "
        f"whose observation and action spaces are tuples or lists, got {type(env).__name__}"
    )


class Chance:
    """States of ``random`` and ``numpy.random``, for environments that draw from these.

    Each copy has its own: copies in one process neither share nor disturb each other's chance.
    """

    def __init__(self, seed: int) -> None:
        self.numpy = np.random.MT19937(seed)
        self.python = random.Random(seed).getstate()

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Draw from these states in the meantime."""
        np.random.set_bit_generator(self.numpy)  # type: ignore[attr-defined]  # stubs lack it
        random.setstate(self.python)
        yield
        self.python = random.getstate()


class Worker:
    """Copies of the environment, in one process.

    Args:
        make: the factory.
        index: of the worker.
    """

    def __init__(self, make: Callable[[dict[str, Any]], Any], index: int) -> None:
        self.make, self.index = make, index
        self.players: dict[int, tuple[int, Player, list[Act]]] = {}
        self.chance: dict[int, Chance] = {}
        self.spaces: Any = None
        self.shared: Arrays = {}

    def describe(self, params: dict[str, Any]) -> Any:
        """Widths of the agents' observations and their action spaces."""
        with Chance(0).used():
            made = player(self.make(params))
        spaces = _spaces(made)
        _close(made)
        return spaces

    def attach(self, memory: mmap.mmap, layout: Layout, spaces: Any) -> None:
        """Share arrays with the other processes."""
        self.shared, self.spaces = arrays_in(memory, layout), spaces

    def begin(self, copies: Sequence[tuple[int, int, dict[str, Any], int]]) -> None:
        """Begin episodes: copy, number of its task, the task's parameters, seed."""
        for copy, task, params, seed in copies:
            self._turn_to(copy)
            held = self.players.get(copy)
            if held is None or held[0] != task:
                if held is not None:
                    _close(held[1])
                # By its number, not by the episode: a resumed run makes it anew.
                with Chance(task).used():
                    made = player(self.make(params))
                if _spaces(made) != self.spaces:
                    raise ValueError("its spaces differ from those of the first task")
                held = self.players[copy] = (task, made, [Act(space) for space in made.actions])
            self.chance[copy] = Chance(seed)
            with self.chance[copy].used():
                seen, masks = held[1].reset(seed)
            for name in ("rewards", "terminated", "truncated"):
                self.shared[name][copy] = 0
            self.shared["alive"][copy] = held[1].present()
            self._write(copy, held[1], seen, masks)

    def step(self) -> None:
        """Step the copies that are marked, with the shared actions."""
        shared = self.shared
        for copy, (_, made, acts) in self.players.items():
            if not shared["stepping"][copy]:
                continue
            self._turn_to(copy)
            rows = shared["actions"][copy]
            actions = [act(row) for act, row in zip(acts, rows)]  # noqa: B905
            with self.chance[copy].used():
                seen, rewards, terminated, truncated, masks = made.step(actions)
            acted = shared["alive"][copy] != 0
            self._flag(copy, np.array(terminated), np.array(truncated), np.array(made.present()))
            shared["rewards"][copy] = np.where(acted, rewards, 0)
            known = acted | (shared["alive"][copy] != 0)
            self._write(copy, made, [s if k else None for s, k in zip(seen, known)], masks)  # noqa: B905

    def _turn_to(self, copy: int) -> None:
        """Tell the other side which copy is at work, and that it is another's turn."""
        self.shared["at"][self.index] = copy
        self.shared["beats"][self.index] += 1

    def _flag(
        self, copy: int, terminated: NDArray[Any], truncated: NDArray[Any], there: NDArray[Any]
    ) -> None:
        """Set the flags of a step; an agent's stay until the episode ends, with everybody's.

        Who has left without a flag came to the end of the task, and when nobody is left, so did
        those who never came.
        """
        rows = {name: self.shared[name][copy] for name in ("terminated", "truncated", "alive")}
        before = (rows["terminated"] | rows["truncated"]) != 0
        left = (rows["alive"] != 0) & ~there & ~truncated
        rows["terminated"] |= (terminated | left) & ~before
        rows["truncated"] |= truncated & ~terminated & ~before
        over = (rows["terminated"] | rows["truncated"]) != 0
        rows["alive"][:] = there & ~over
        if not rows["alive"].any():
            rows["terminated"] |= ~over

    def render(self, copy: int) -> Any:
        """Picture of a copy, or None."""
        picture = self.players[copy][1].render()
        return None if picture is None else np.asarray(picture)

    def _write(self, copy: int, made: Player, seen: list[Any], masks: list[Any]) -> None:
        rows = self.shared["obs"][copy]
        for row, space, value in zip(rows, made.observations, seen):  # noqa: B905
            if value is None:  # the agent has left
                row[:] = 0
                continue
            numbers = flat(space, value)
            row[: len(numbers)] = numbers
        if "mask" in self.shared:
            for row, space, mask in zip(self.shared["mask"][copy], made.actions, masks):  # noqa: B905
                row[: space.n] = 1 if mask is None else np.asarray(mask) != 0
                row[: space.n] |= not row[: space.n].any()


def _spaces(made: Player) -> list[Any]:
    return [[width(o), *described(a)] for o, a in zip(made.observations, made.actions)]  # noqa: B905


def _close(made: Player) -> None:
    if hasattr(made.env, "close"):
        made.env.close()


def main() -> None:
    """Answer what comes through the pipe until it is closed."""
    pipe, memory_file = Connection(int(sys.argv[1])), int(sys.argv[2])
    index = int(sys.argv[3])
    worker = None
    try:
        setup = pickle.loads(pipe.recv_bytes())
        sys.path[:] = setup["path"]
        worker = Worker(pickle.loads(setup["make"]), index)
        while True:
            request, *details = pipe.recv()
            if request == "attach":
                layout, spaces = details
                worker.attach(mmap.mmap(memory_file, size_of(layout)), layout, spaces)
                pipe.send(("done", None))
            else:
                pipe.send(("done", getattr(worker, request)(*details)))
    except (EOFError, KeyboardInterrupt, BrokenPipeError):
        pass  # the other side is gone
    except BaseException:
        pipe.send(("failed", traceback.format_exc()))


if __name__ == "__main__":
    main()
