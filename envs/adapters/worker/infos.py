"""Action masks, time limits and final observations from infos, in all known conventions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .spaces import MASKS, InterfaceError

LIMITS = ("TimeLimit.truncated", "bad_transition", "episode_limit")
"""Names of the flag that a time limit, not the task, has ended an episode."""
FINALS = ("final_observation", "final_obs", "terminal_observation")
"""Names of the observation before an automatic reset."""


def masks(seen: Sequence[Any], info: Any, agents: Sequence[Any]) -> list[Any]:
    """The action mask of each agent, or None: beside its observation, else in the infos."""
    reported = _reported(info, MASKS, agents, rows=True)
    return [_beside(one, other) for one, other in zip(seen, reported)]  # noqa: B905


def limits(info: Any, agents: Sequence[Any]) -> list[bool]:
    """Whether a time limit has ended each agent's episode."""
    reported = _reported(info, LIMITS, agents, rows=False)
    return [value is not None and flag(value) and bool(value == 1) for value in reported]


def finals(seen: Sequence[Any], info: Any, agents: Sequence[Any]) -> list[Any]:
    """The observations that an episode has ended with, where the environment has begun another."""
    reported = _reported(info, FINALS, agents, rows=False)
    return [one if other is None else other for one, other in zip(seen, reported)]  # noqa: B905


def allowed(mask: Any, counts: Sequence[int]) -> Any:
    """Which options of an agent's choices a mask of numbers or flags allows, ``[options]`` bool.

    Args:
        mask: an entry per option, choice after choice, or a sequence with the entries of each.
        counts: options of each choice. One of which no option is allowed may be anything.

    Raises:
        InterfaceError: it is of another size, or holds what is no number or not finite.
    """
    if isinstance(mask, (list, tuple)) and any(np.ndim(part) for part in mask):
        mask = np.concatenate([np.ravel(part) for part in mask])
    entries, options = np.ravel(mask), sum(counts)
    if entries.size != options:
        raise InterfaceError(f"an action mask of {entries.size} entries, it has {options} actions")
    if entries.dtype.kind not in "biu":
        try:
            entries = entries.astype(np.float64)
        except (TypeError, ValueError):
            raise InterfaceError("an action mask that does not hold numbers") from None
        if not np.isfinite(entries).all():
            raise InterfaceError("an action mask that is not finite, expected 0 or 1 per action")
    row = entries != 0
    for part in np.split(row, np.cumsum(counts)[:-1]):
        part |= not part.any()
    return row


def number(value: Any) -> float:
    """A reward, which may lie in an array of one number.

    Raises:
        InterfaceError: it is none, or several.
    """
    try:
        numbers = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise InterfaceError(f"a reward of {value!r}, expected a number") from None
    if value is None or numbers.size != 1:
        count = "none" if value is None else f"{numbers.size} numbers"
        raise InterfaceError(f"a reward of {count}, expected one number")
    return float(numbers.item())


def flag(value: Any) -> bool:
    """A flag, which may lie in an array of one.

    Raises:
        InterfaceError: it is none, or several.
    """
    if np.size(value) != 1:
        raise InterfaceError(f"{np.size(value)} flags, expected one")
    return bool(np.asarray(value).item())


def each(value: Any, agents: Sequence[Any], what: str) -> list[Any]:
    """One value for all agents, or one of each: in their order, or by their names.

    Raises:
        InterfaceError: there are more or less.
    """
    if isinstance(value, Mapping):
        if set(value) != set(agents):
            raise InterfaceError(
                f"{what} by agent {list(value)}, expected the agents {list(agents)}"
            )
        return [value[agent] for agent in agents]
    if np.isscalar(value) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return [value] * len(agents)
    if not hasattr(value, "__len__") or len(value) != len(agents):
        came = len(value) if hasattr(value, "__len__") else type(value).__name__
        raise InterfaceError(f"{came} {what} for {len(agents)} agents")
    return list(value)


def _beside(seen: Any, otherwise: Any) -> Any:
    if isinstance(seen, Mapping):
        return next((seen[name] for name in MASKS if name in seen), otherwise)
    return otherwise


def _reported(info: Any, names: Sequence[str], agents: Sequence[Any], rows: bool) -> list[Any]:
    """Each agent's value in infos, under the first of ``names`` that they have, or None.

    Args:
        info: one ``Mapping`` for all, which holds values for all or for each, or infos of each
            agent by its name or number; or a sequence of the agents' infos.
        names: names of the value.
        agents: names or numbers of the agents.
        rows: an agent's value is a row of numbers, not a number.
    """
    own = _own(info, names, agents)
    for name in names:
        if any(name in one for one in own):
            return [one.get(name) for one in own]
        if isinstance(info, Mapping) and info.get(name) is not None:
            return _spread(info[name], name, agents, rows)
    return [None] * len(agents)


def _own(info: Any, names: Sequence[str], agents: Sequence[Any]) -> list[Mapping[str, Any]]:
    """The agents' own infos; empty ones where there are none."""
    if isinstance(info, Mapping):
        found: list[Any] = [info.get(agent) for agent in agents]
        if not any(isinstance(one, Mapping) for one in found):
            found = [one for one in info.values() if isinstance(one, Mapping)]
            holding = [one for one in found if any(name in one for name in names)]
            found = holding if len(holding) == len(agents) else found
    else:
        found = list(info) if isinstance(info, (list, tuple, np.ndarray)) else []
    if len(found) != len(agents):
        return [{}] * len(agents)
    return [one if isinstance(one, Mapping) else {} for one in found]


def _spread(value: Any, name: str, agents: Sequence[Any], rows: bool) -> list[Any]:
    if isinstance(value, Mapping):
        return _by_name(value, name, agents)
    if hasattr(value, "__array__"):
        value = np.asarray(value)
    several = isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim)
    if not several or (rows and (len(value) == 0 or _is_number(value[0]))):
        return [value] * len(agents)
    if len(value) != len(agents):
        raise InterfaceError(f"{name} of {len(value)} agents in its info, expected {len(agents)}")
    return list(value)


def _by_name(value: Mapping[Any, Any], name: str, agents: Sequence[Any]) -> list[Any]:
    """Values by the agents' names, or in their order where an environment has names of its own."""
    if not value or any(agent in value for agent in agents):
        return [value.get(agent) for agent in agents]
    if len(value) != len(agents):
        raise InterfaceError(
            f"{name} of {list(value)} in its info, expected the agents {list(agents)}"
        )
    return list(value.values())


def _is_number(value: Any) -> bool:
    return value is not None and np.ndim(value) == 0
