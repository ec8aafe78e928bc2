"""Sub-environments in a worker process, and the loop that answers requests."""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import socket as sockets
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import infos, spaces
from .channel import TOKEN, Channel, ChannelClosedError, hidden
from .memory import Arrays, Layout, arrays_in, mapped, size_of
from .players import Outcome, Player, player
from .randomness import Randomness, replace_entropy, seed_unseeded
from .spaces import Act, InterfaceError
from .team import Team


class SubEnv:
    """One sub-environment and the state of its episode.

    Attributes:
        task: number of its task.
        player: the environment.
        acts: each agent's conversion of shared actions.
        randomness: the episode's random state.
        step: steps of the episode so far.
        gone: ``[A]`` bool, agents that have left.
    """

    def __init__(self, task: int, made: Player) -> None:
        self.task, self.player = task, made
        self.acts = [Act(space) for space in made.actions]
        self.randomness = Randomness(0)
        self.step = 0
        self.gone = np.zeros(len(self.acts), np.bool_)


class Worker:
    """Sub-environments, in one process.

    Args:
        make: the pickled factory.
        team: names of the agents that are the team; None is all.
        others: the pickled policy of the others.
        index: index of the worker.
    """

    def __init__(self, make: bytes, team: Sequence[Any] | None, others: bytes, index: int) -> None:
        self._make, self._team, self._others, self.index = make, team, others, index
        self.envs: dict[int, SubEnv] = {}
        self.spaces: Any = None
        self.shared: Arrays = {}

    @functools.cached_property
    def make(self) -> Callable[[dict[str, Any]], Any]:
        """The factory."""
        made: Callable[[dict[str, Any]], Any] = pickle.loads(self._make)
        return made

    @functools.cached_property
    def others(self) -> Any:
        """The policy of agents that are not of the team, or None."""
        return pickle.loads(self._others)

    def _made(self, params: dict[str, Any]) -> Player:
        made = player(self.make(params))
        return made if self._team is None else Team(made, self._team, self.others)

    def describe(self, params: dict[str, Any]) -> Any:
        """Widths of the agents' observations and their action spaces."""
        with Randomness(0).used():
            made = self._made(params)
            described = describe_spaces(made)
            _close(made)
        return described

    def attach(self, memory: Any, layout: Layout, described: Any) -> None:
        """Share arrays with the other processes."""
        self.shared, self.spaces = arrays_in(memory, layout), described
        self.shared["pids"][self.index] = os.getpid()

    def begin(self, episodes: Sequence[tuple[int, int, dict[str, Any], int]]) -> None:
        """Begin episodes: sub-environment, number of its task, the task's parameters, seed."""
        for index, task, params, seed in episodes:
            self._turn_to(index)
            env = self.envs.get(index)
            if env is None or env.task != task:
                # By the task's number, not by the episode: a resumed run makes it again.
                with Randomness(task).used():
                    if env is not None:
                        _close(env.player)
                    made = self._made(params)
                if describe_spaces(made) != self.spaces:
                    raise InterfaceError(
                        f"its spaces differ from those of the first task: {describe_spaces(made)}, "
                        f"expected {self.spaces}"
                    )
                env = self.envs[index] = SubEnv(task, made)
            env.randomness, env.step = Randomness(seed), 0
            env.gone[:] = False
            with self._about(env), env.randomness.used():
                seed_unseeded(env.player.layers, seed)
                seen, masks = env.player.reset(seed)
                there = env.player.present()
            for name in ("rewards", "terminated", "truncated"):
                self.shared[name][index] = 0
            self.shared["alive"][index] = there
            self.shared["obs"][index] = 0
            self._write(index, [s if t else None for s, t in zip(seen, there)], masks)  # noqa: B905

    def step(self) -> None:
        """Step the sub-environments that are marked, with the shared actions."""
        shared = self.shared
        for index, env in self.envs.items():
            if not shared["stepping"][index]:
                continue
            self._turn_to(index)
            env.step += 1
            actions = [act(row) for act, row in zip(env.acts, shared["actions"][index])]  # noqa: B905
            with self._about(env), env.randomness.used():
                outcome = env.player.step(actions)
                there = np.array(env.player.present())
            acted = shared["alive"][index] != 0
            for agent in range(len(acted)):
                with self._about(env, agent):
                    reward = infos.number(outcome.rewards[agent]) if acted[agent] else 0.0
                shared["rewards"][index, agent] = reward
            self._flag(index, outcome, there)
            alive = shared["alive"][index] != 0
            shared["obs"][index][~acted & ~alive] = 0
            known = acted | alive
            seen = [s if k else None for s, k in zip(outcome.seen, known)]  # noqa: B905
            self._write(index, seen, outcome.masks)

    def render(self, index: int) -> Any:
        """Picture of a sub-environment, or why there is none."""
        with Randomness(0).used():
            try:
                picture = self.envs[index].player.render()
            except InterfaceError as error:
                return str(error)
            except Exception as error:
                return f"render() failed: {type(error).__name__}: {error}"
        array = np.asarray(picture) if isinstance(picture, (np.ndarray, list)) else None
        if array is None:
            return (
                f"render() gave {type(picture).__name__}, expected an array; make(params) must "
                "create it with render_mode='rgb_array'"
            )
        if array.ndim != 3 or array.shape[2] != 3 or not array.size:
            return f"render() gave an array {array.shape}, expected [height, width, 3]"
        return array.astype(np.uint8)

    def _turn_to(self, index: int) -> None:
        """Report which sub-environment is at work, and that the worker is alive."""
        self.shared["at"][self.index] = index
        self.shared["beats"][self.index] += 1

    def _flag(self, index: int, outcome: Outcome, there: NDArray[Any]) -> None:
        """Set the flags of a step; an agent's stay until the episode ends, with the last agent's.

        An agent that left without a flag has terminated; when none is left, so have those that
        never joined.
        """
        terminated, truncated = np.array(outcome.terminated), np.array(outcome.truncated)
        rows = {name: self.shared[name][index] for name in ("terminated", "truncated", "alive")}
        before = (rows["terminated"] | rows["truncated"]) != 0
        left = (rows["alive"] != 0) & ~there & ~truncated
        rows["terminated"] |= (terminated | left) & ~before
        rows["truncated"] |= truncated & ~terminated & ~before
        over = (rows["terminated"] | rows["truncated"]) != 0
        rows["alive"][:] = there & ~over
        if not rows["alive"].any():
            rows["terminated"] |= ~over
            return
        env = self.envs[index]
        env.gone |= over & ~there
        if (env.gone & there).any():
            with self._about(env, int((env.gone & there).argmax())):
                raise InterfaceError("back in the episode that it has left")

    def _write(self, index: int, seen: list[Any], masks: list[Any]) -> None:
        """Write observations, where one is None the one before, and masks."""
        env = self.envs[index]
        made = env.player
        for agent, (space, value) in enumerate(zip(made.observations, seen)):  # noqa: B905
            if value is not None:
                with self._about(env, agent, "an observation of "):
                    numbers = spaces.flat(space, value)
                self.shared["obs"][index, agent, : len(numbers)] = numbers
        if "mask" not in self.shared:
            return
        for agent, (act, mask) in enumerate(zip(env.acts, masks)):  # noqa: B905
            row = self.shared["mask"][index, agent, : sum(act.choices)]
            if mask is None or not self.shared["alive"][index, agent]:
                row[:] = 1
                continue
            with self._about(env, agent):
                row[:] = infos.allowed(mask, act.choices) if act.choices else 1

    @contextlib.contextmanager
    def _about(self, env: SubEnv, agent: int | None = None, what: str = "") -> Iterator[None]:
        """Add the agent and the step to an error's message."""
        try:
            yield
        except InterfaceError as error:
            where = f"at step {env.step}" if env.step else "at the reset"
            if agent is not None:
                name = env.player.names[agent]
                where = f"agent {agent}{'' if name == agent else f' ({name!r})'}, {where}"
            raise InterfaceError(f"{where}: {what}{error}") from None


def describe_spaces(made: Player) -> list[Any]:
    """Describe the spaces of an environment's agents in numbers and words."""
    described = []
    for name, seen, acting in zip(made.names, made.observations, made.actions):  # noqa: B905
        with _named(name):
            described.append([spaces.width(seen), *spaces.described(acting)])
    return described


@contextlib.contextmanager
def _named(name: Any) -> Iterator[None]:
    try:
        yield
    except InterfaceError as error:
        raise InterfaceError(f"agent {name!r}: {error}") from None


def _close(made: Player) -> None:
    if hasattr(made.env, "close"):
        made.env.close()


def serve(socket: int, memory_file: int, index: int) -> None:
    """Answer what comes through a socket until it is closed.

    Args:
        socket: descriptor of the socket.
        memory_file: descriptor of the shared memory.
        index: index of the worker.
    """
    end = sockets.socket(fileno=hidden(socket))
    memory_file = hidden(memory_file)
    channel = Channel(end, end.recv(TOKEN, sockets.MSG_WAITALL))
    # A process that the environment forks must neither answer nor hold the socket open.
    os.register_at_fork(after_in_child=channel.close)
    try:
        setup = channel.receive()
        sys.path[:] = setup["path"]
        replace_entropy()
        worker = Worker(setup["make"], setup["team"], setup["others"], index)
        status = "done"
        while status != "failed":
            status, answer = _answer(channel, worker, memory_file)
            channel.send((status, answer))
    except (ChannelClosedError, OSError):
        pass  # the other side is gone


def _answer(channel: Channel, worker: Worker, memory_file: int) -> tuple[str, Any]:
    """Status and answer to the next request: ``done``, ``refused`` or ``failed``."""
    try:
        request, *details = channel.receive()
        if request == "attach":
            layout, described = details
            worker.attach(mapped(memory_file, size_of(layout)), layout, described)
            return "done", None
        return "done", getattr(worker, request)(*details)
    except ChannelClosedError:
        raise
    except InterfaceError as error:
        return "refused", str(error)
    except BaseException:
        return "failed", traceback.format_exc()
