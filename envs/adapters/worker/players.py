"""Foreign environments behind one interface."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import infos
from .spaces import InterfaceError, kind

_TURNS = "an environment in turns (AEC) becomes parallel by pettingzoo.utils.aec_to_parallel"


class Outcome(NamedTuple):
    """Result of a step, one entry per agent."""

    seen: list[Any]
    """Observations; None for an agent without one."""

    rewards: list[Any]
    terminated: list[bool]
    truncated: list[bool]
    masks: list[Any]


class Player:
    """One foreign environment, whatever its interface; agents are numbered.

    Attributes:
        names: names of the agents, for messages and for values by agent.
    """

    names: Sequence[Any]
    observations: list[Any]
    actions: list[Any]

    def __init__(self, env: Any) -> None:
        self.env = env
        self.layers = list(_layers(env))

    def reset(self, seed: int) -> tuple[list[Any], list[Any]]:
        """Begin an episode: observations, and action masks or None, of every agent."""
        raise NotImplementedError

    def step(self, actions: list[Any]) -> Outcome:
        """Step the agents that are present."""
        raise NotImplementedError

    def present(self) -> list[bool]:
        """Which agents are present and can act."""
        return [True] * len(self.actions)

    def render(self) -> Any:
        """Result of the environment's ``render``.

        Raises:
            InterfaceError: it has none.
        """
        render = getattr(self.env, "render", None)
        if render is None:
            raise InterfaceError(f"{type(self.env).__name__} has no render()")
        return render(mode="rgb_array") if _takes(render, "mode") else render()

    def _reset(self, seed: int) -> Any:
        """Result of ``reset``, after seeding everything that takes a seed."""
        for index, space in enumerate(self._spaces()):
            if hasattr(space, "seed"):
                space.seed(seed + index)
        resets = [layer.reset for layer in self.layers if hasattr(layer, "reset")]
        takers = [_takes(reset, "seed") or _takes_anything(reset) for reset in resets]
        if all(takers):
            # A reset that takes any argument may ignore the seed.
            if hasattr(self.env, "seed") and not _takes(resets[-1], "seed"):
                self.env.seed(seed)
            return self.env.reset(seed=seed)
        if hasattr(self.env, "seed"):
            self.env.seed(seed)
        elif takers[-1]:  # a wrapper stands between, whose reset takes no seed
            resets[-1](seed=seed)
        return self.env.reset()

    def _spaces(self) -> Iterator[Any]:
        """Spaces that an environment may draw samples from."""
        raise NotImplementedError

    def _over(self, over: Sequence[Any], info: Any) -> tuple[list[bool], list[bool]]:
        """Terminated and truncated, of these two, or of classic gym's one ``done``."""
        flags = [
            [infos.flag(one) for one in infos.each(self._agents(value), self.names, name)]
            for name, value in zip(("terminated", "truncated"), over)  # noqa: B905
        ]
        if len(flags) == 1:
            cut = infos.limits(info, self.names)
            flags = [[d and not c for d, c in zip(flags[0], cut)], [*map(min, flags[0], cut)]]  # noqa: B905
        return flags[0], flags[1]

    def _agents(self, value: Any) -> Any:
        return value


class Parallel(Player):
    """PettingZoo's parallel interface; agents may join and leave."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.names = list(env.possible_agents)
        if not self.names or len(set(self.names)) != len(self.names):
            raise InterfaceError(f"possible_agents must be names, all different, got {self.names}")
        if not (callable(env.observation_space) and callable(env.action_space)):
            raise InterfaceError("observation_space and action_space must be methods of an agent")
        self.observations = [env.observation_space(name) for name in self.names]
        self.actions = [env.action_space(name) for name in self.names]

    def reset(self, seed: int) -> tuple[list[Any], list[Any]]:
        """See ``Player.reset``."""
        result = self._reset(seed)
        # Before PettingZoo 1.23 there are no infos.
        seen, info = result if isinstance(result, tuple) and len(result) == 2 else (result, {})
        if not isinstance(seen, Mapping):
            raise InterfaceError(
                f"reset() must give observations and infos by agent, got {_named(result)}; {_TURNS}"
            )
        found = self._seen(seen, dict.fromkeys(self.names, True))
        return found, infos.masks(found, info, self.names)

    def step(self, actions: list[Any]) -> Outcome:
        """See ``Player.step``."""
        living = dict.fromkeys(self.env.agents, True)
        chosen = {n: a for n, a in zip(self.names, actions) if n in living}  # noqa: B905
        result = self.env.step(chosen)
        if not isinstance(result, tuple) or len(result) not in (4, 5):
            raise InterfaceError(_steps(result))
        if not all(isinstance(part, Mapping) for part in result[:-1]):
            raise InterfaceError(
                f"step() must give values by agent, got {_named(result)}; {_TURNS}"
            )
        seen, rewards, *over, info = result
        there = dict.fromkeys(self.env.agents, True)
        missing = [name for name in living if name in there and name not in rewards]
        if missing:
            raise InterfaceError(f"no reward of agent {missing[0]!r}")
        terminated, truncated = self._over(over, info)
        found = self._seen(seen, {**living, **there})
        if not there:
            found = infos.finals(found, info, self.names)
        return Outcome(
            found,
            [rewards.get(name, 0.0) for name in self.names],
            terminated,
            truncated,
            infos.masks(found, info, self.names),
        )

    def present(self) -> list[bool]:
        """See ``Player.present``."""
        unknown = [name for name in self.env.agents if name not in self.names]
        if unknown:
            raise InterfaceError(f"agent {unknown[0]!r} is not in possible_agents {self.names}")
        living = set(self.env.agents)
        return [name in living for name in self.names]

    def _seen(self, seen: Mapping[Any, Any], known: Mapping[Any, bool]) -> list[Any]:
        """Observations of the agents that have one, None for the others.

        Raises:
            InterfaceError: an agent that is present has none.
        """
        found = [seen.get(name) if name in known else None for name in self.names]
        for one, name, there in zip(found, self.names, self.present()):  # noqa: B905
            if there and one is None:
                raise InterfaceError(f"no observation of agent {name!r}")
        return found

    def _spaces(self) -> Iterator[Any]:
        for space in (self.env.observation_space, self.env.action_space):
            yield from map(space, self.names)

    def _agents(self, value: Any) -> Any:
        return {name: value.get(name) or False for name in self.names}


class Together(Player):
    """Gymnasium and classic gym with a space per agent, in both of gym's interfaces."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.observations = list(getattr(env.observation_space, "spaces", env.observation_space))
        self.actions = list(getattr(env.action_space, "spaces", env.action_space))
        seen, acting = len(self.observations), len(self.actions)
        if seen != acting or not seen:
            raise InterfaceError(
                f"there must be one observation space and one action space for each agent, "
                f"got {seen} and {acting}"
            )
        self.names = range(seen)

    def _spaces(self) -> Iterator[Any]:
        for layer in self.layers:
            for name in ("observation_space", "action_space"):
                space = getattr(layer, name, None)
                yield from space if isinstance(space, (list, tuple)) else (space,)

    def reset(self, seed: int) -> tuple[list[Any], list[Any]]:
        """See ``Player.reset``."""
        result = self._reset(seed)
        seen, info = result if _has_info(result) else (result, {})
        found = infos.each(seen, self.names, "observations")
        return found, infos.masks(found, info, self.names)

    def step(self, actions: list[Any]) -> Outcome:
        """See ``Player.step``."""
        result = self.env.step(tuple(actions))
        if not isinstance(result, tuple) or len(result) not in (4, 5):
            raise InterfaceError(_steps(result))
        seen, rewards, *over, info = result
        found = infos.each(seen, self.names, "observations")
        terminated, truncated = self._over(over, info)
        if all(map(max, terminated, truncated)):
            found = infos.finals(found, info, self.names)
        return Outcome(
            found,
            infos.each(rewards, self.names, "rewards"),
            terminated,
            truncated,
            infos.masks(found, info, self.names),
        )


def player(env: Any) -> Player:
    """Detect the interface of an environment.

    Raises:
        InterfaceError: it is none of those supported.
    """
    if hasattr(env, "agent_iter"):
        raise InterfaceError(f"make(params) returned {type(env).__name__}; {_TURNS}")
    if hasattr(env, "possible_agents") and hasattr(env, "observation_space"):
        return Parallel(env)
    spaces = (getattr(env, "observation_space", None), getattr(env, "action_space", None))
    if all(space is not None and not callable(space) for space in spaces) and all(
        kind(space) == "Tuple" for space in spaces
    ):
        return Together(env)
    raise InterfaceError(
        "make(params) must return a PettingZoo parallel environment, or one of gymnasium or gym "
        f"whose observation and action spaces are tuples or lists, got {_named(env)}"
    )


def _layers(env: Any) -> Iterator[Any]:
    """An environment and what its wrappers wrap, the outermost first."""
    seen: list[Any] = []
    while env is not None and not any(env is one for one in seen):
        seen.append(env)
        yield env
        held = getattr(env, "__dict__", {})
        env = held.get("env", held.get("aec_env", held.get("par_env")))


def _takes(function: Any, name: str) -> bool:
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def _takes_anything(function: Any) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def _has_info(result: Any) -> bool:
    """Whether this is observations and an info: two observations that are dicts are none."""
    if not isinstance(result, tuple) or len(result) != 2 or isinstance(result[0], Mapping):
        return False
    info = result[1]
    if isinstance(info, (list, tuple, np.ndarray)):
        return len(info) > 0 and all(isinstance(one, Mapping) for one in info)
    return info is None or isinstance(info, Mapping)


def _steps(result: Any) -> str:
    return (
        "step() must give observations, rewards, terminated, truncated and infos, or classic gym's "
        f"four, got {_named(result)}"
    )


def _named(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {', '.join(type(one).__name__ for one in value) or 'nothing'}"
    return "None" if value is None else f"a {type(value).__name__}"
