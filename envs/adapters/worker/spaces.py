"""Spaces of gymnasium, of gym and of packages that imitate them, recognised by class names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

KINDS = ("Box", "Discrete", "MultiDiscrete", "MultiBinary", "Text", "Tuple", "Dict", "OneOf")
MASKS = ("action_mask", "action_masks", "avail_actions", "available_actions")
"""Names of an action mask, beside an observation or in an info."""
LARGEST = 1e6
"""Bounds of actions that are larger count as none."""


class InterfaceError(Exception):
    """An environment that does not do what its interface or its spaces say, in one line."""


def kind(space: Any) -> str:
    """One of ``KINDS``.

    Raises:
        InterfaceError: it is a space of another kind.
    """
    for base in type(space).__mro__:
        if base.__name__ in KINDS:
            return base.__name__
    if isinstance(space, (list, tuple)):
        return "Tuple"
    if isinstance(space, Mapping):
        return "Dict"
    raise InterfaceError(f"spaces must be one of {', '.join(KINDS)}, got {type(space).__name__}")


def width(space: Any) -> int:
    """Numbers of a flat observation."""
    return _width(_seen(space))


def flat(space: Any, value: Any) -> NDArray[np.float32]:
    """An observation as ``[width(space)]`` numbers, those of ``gymnasium.spaces.utils.flatten``.

    What is discrete becomes one-hot. Of a ``Dict`` of an observation and an action mask the mask
    is left out.

    Raises:
        InterfaceError: the observation is not one of the space: its size differs, or a discrete
            part is out of range.
    """
    return _flat(_seen(space), value)


def _seen(space: Any) -> Any:
    """A space without the action mask beside an observation (PettingZoo's convention)."""
    if kind(space) != "Dict":
        return space
    parts = _parts(space)
    kept = {key: part for key, part in parts.items() if key not in MASKS}
    return kept if 0 < len(kept) < len(parts) else space


def _parts(space: Any) -> Any:
    return getattr(space, "spaces", space)


def _width(space: Any) -> int:
    name = kind(space)
    if name == "Discrete":
        return int(space.n)
    if name == "MultiDiscrete":
        return int(np.sum(space.nvec))
    if name == "Text":
        return int(space.max_length)
    if name == "Tuple":
        return sum(map(_width, _parts(space)))
    if name == "Dict":
        return sum(map(_width, _parts(space).values()))
    if name == "OneOf":
        return 1 + max(map(_width, _parts(space)))
    return math.prod(space.shape)


def _flat(space: Any, value: Any) -> NDArray[np.float32]:
    name = kind(space)
    if name in ("Discrete", "MultiDiscrete"):
        sizes = np.ravel(space.n if name == "Discrete" else space.nvec).astype(np.int64)
        return _one_hot(sizes, getattr(space, "start", 0), value)
    if name == "Text":
        return _characters(space, value)
    if name == "Tuple":
        parts = _parts(space)
        if not hasattr(value, "__len__") or len(value) != len(parts):
            came = f"{len(value)} parts" if hasattr(value, "__len__") else str(value)
            raise InterfaceError(f"{came}, its space has {len(parts)} parts")
        return _joined([_flat(s, v) for s, v in zip(parts, value)])  # noqa: B905
    if name == "Dict":
        if not isinstance(value, Mapping):
            raise InterfaceError(f"a {type(value).__name__}, its space is a Dict")
        missing = [key for key in _parts(space) if key not in value]
        if missing:
            raise InterfaceError(f"a Dict without the key {missing[0]!r} of its space")
        return _joined([_flat(s, value[key]) for key, s in _parts(space).items()])
    if name == "OneOf":
        which, chosen = value
        part = _flat(_parts(space)[which], chosen)
        row = np.full(_width(space), part[0] if len(part) else 0, np.float32)
        row[0], row[1 : 1 + len(part)] = which, part
        return row
    numbers = _numbers(value)
    if numbers.size != _width(space):
        raise InterfaceError(f"{numbers.size} numbers, its space has {_width(space)}")
    return numbers.astype(np.float32)


def _one_hot(sizes: NDArray[np.int64], start: Any, value: Any) -> NDArray[np.float32]:
    numbers = _numbers(value)
    if numbers.size != sizes.size:
        raise InterfaceError(f"{numbers.size} numbers, its space has {sizes.size}")
    at = numbers - np.ravel(start)
    if not ((at >= 0) & (at < sizes) & (at == np.floor(at))).all():
        raise InterfaceError(f"{np.asarray(value).tolist()}, which is outside of its space")
    one_hot = np.zeros(int(sizes.sum()), np.float32)
    one_hot[np.cumsum(sizes) - sizes + at.astype(np.int64)] = 1
    return one_hot


def _characters(space: Any, value: Any) -> NDArray[np.float32]:
    if len(value) > space.max_length:
        raise InterfaceError(f"{len(value)} characters, its space at most {space.max_length}")
    row = np.full(space.max_length, len(space.character_set), np.float32)
    row[: len(value)] = [space.character_index(character) for character in value]
    return row


def _joined(rows: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.concatenate(rows) if rows else np.zeros(0, np.float32)


def _numbers(value: Any) -> NDArray[Any]:
    try:
        return np.asarray(value, np.float64).ravel()
    except (TypeError, ValueError):
        raise InterfaceError(f"a {type(value).__name__} that is no array of numbers") from None


def described(space: Any) -> tuple[Any, ...]:
    """An action space as ``("box", low, high)``, with large bounds as infinite, or as its choices.

    These are ``("discrete", n)`` or ``("choices", counts)``.

    Raises:
        InterfaceError: it is of another kind.
    """
    counts = choices(space)
    if kind(space) == "Discrete":
        return "discrete", counts[0]
    if counts:
        return "choices", counts
    return "box", *(bound.tolist() for bound in _bounds(space))


def choices(space: Any) -> list[int]:
    """Options of each choice of an action; none of a ``Box``.

    Raises:
        InterfaceError: it is a space of another kind.
    """
    name = kind(space)
    if name == "Discrete":
        return [int(space.n)]
    if name == "MultiDiscrete":
        return [int(n) for n in np.ravel(space.nvec)]
    if name == "MultiBinary":
        return [2] * math.prod(np.atleast_1d(space.shape).tolist())
    if name == "Box":
        return []
    raise InterfaceError(
        f"action spaces must be Box, Discrete, MultiDiscrete or MultiBinary, got {name}"
    )


def _bounds(space: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    low, high = (np.ravel(bound).astype(np.float64) for bound in (space.low, space.high))
    return np.where(low < -LARGEST, -np.inf, low), np.where(high > LARGEST, np.inf, high)


class Act:
    """Turns a row of the shared actions into an action of one agent's space.

    Choices count from 0. A number that has both bounds comes in ``[-1, 1]``, from the lower to the
    upper; another comes as it is, and is clipped.
    """

    def __init__(self, space: Any) -> None:
        self.choices, self.single = choices(space), kind(space) == "Discrete"
        if self.choices:
            start = 0 if kind(space) == "MultiBinary" else getattr(space, "start", 0)
            self.start = np.ravel(start).astype(np.int64)
        if self.single:
            return
        self.shape, self.dtype = space.shape, np.dtype(space.dtype)
        if self.choices:
            return
        self.low, self.high = _bounds(space)
        bounded = np.isfinite(self.low) & np.isfinite(self.high)
        low, high = np.where(bounded, self.low, -1), np.where(bounded, self.high, 1)
        self.scale, self.centre = (high - low) / 2, (high + low) / 2

    def __call__(self, row: NDArray[Any]) -> Any:
        if self.choices:
            chosen = np.ravel(row)[: len(self.choices)].astype(np.int64) + self.start
            return int(chosen[0]) if self.single else chosen.reshape(self.shape).astype(self.dtype)
        action = self.centre + row[: len(self.low)] * self.scale
        action = np.minimum(np.maximum(action, self.low), self.high)
        if self.dtype.kind in "iu":
            action = np.rint(action)
        return action.reshape(self.shape).astype(self.dtype)
