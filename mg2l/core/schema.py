"""Building blocks of the configuration schema: bounded fields, their checks, and the section base.

A section is a dataclass whose fields carry their meaning as the string literal below them,
their bounds in the field's metadata, and their choices in a ``Literal`` type. ``keys`` reads all
of that back, so that help text, checks and files never repeat it.
"""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
import itertools
import math
import textwrap
import types
from collections.abc import Iterable
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mg2l.core.errors import UserError


class ConfigError(UserError, ValueError):
    """An invalid key or value; its message is one line for the user."""


MAX_INT = 2**31 - 1
"""Upper bound of an integer whose key states none."""

MAX_STEPS = 10**8
"""Steps that may be held or computed at once: no machine has the memory for more."""


@dataclass(frozen=True)
class Bounds:
    """Interval of the values that a number may take; ``None`` leaves a side open."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )

    def __str__(self) -> str:
        low = "(-inf"
        if self.ge is not None or self.gt is not None:
            low = f"[{_figure(self.ge)}" if self.ge is not None else f"({_figure(self.gt)}"
        high = "inf)"
        if self.le is not None or self.lt is not None:
            high = f"{_figure(self.le)}]" if self.le is not None else f"{_figure(self.lt)})"
        return f"{low}, {high}"


def _figure(bound: float | None) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def bounded(
    default: Any,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> Any:
    """A field with ``default`` whose value, or each element of it, must lie in the interval."""
    metadata = {"bounds": Bounds(ge, gt, le, lt)}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def check_steps(**factors: int) -> None:
    """Validate numbers, by their keys, whose product is a count of steps held or computed at once.

    Raises:
        ConfigError: there are more than `MAX_STEPS`.
    """
    if (steps := math.prod(factors.values())) > MAX_STEPS:
        shown = " x ".join(f"{name}={value}" for name, value in factors.items())
        raise ConfigError(f"{shown} is {steps} steps at once, more than {MAX_STEPS}")


def nearest(word: str, words: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` with the word of ``words`` most like ``word``, or nothing."""
    near = difflib.get_close_matches(word, list(words), n=1, cutoff=0.55)
    return f"; did you mean {near[0]!r}?" if near else ""


_ONE = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}
_MANY = {int: "integers such as [64, 64]", float: "numbers", bool: "true or false", str: "texts"}


def _typed(hint: Any, value: Any) -> Any:
    """``value`` as plain type ``hint``, else TypeError. Integers serve as floats."""
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 2**1023 else math.inf if value > 0 else -math.inf
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise TypeError
    return value


def _shown(value: Any) -> str:
    """A value within a message, cut short where it is long."""
    try:
        text = repr(value) if isinstance(value, str) else str(value)
    except ValueError:  # an integer of more digits than Python writes
        text = f"an integer of {value.bit_length()} bits"
    return text if len(text) <= 200 else f"{text[:200]}..."


def check_value(name: str, hint: Any, value: Any, bounds: Bounds | None = None) -> Any:
    """Validate the value of a field.

    Args:
        name: name of the field, for the message.
        hint: its type: ``bool``, ``int``, ``float``, ``str``, a list of one of them, a
            ``Literal``, or one of these ``| None``.
        value: the value to validate.
        bounds: interval of a number, or of each number of a list.

    Returns:
        The value; an integer given for a float is now a float.

    Raises:
        ConfigError: wrong type, not one of the choices, out of bounds, or not finite.
    """
    shown = _shown(value)
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (option for option in get_args(hint) if option is not type(None))
        if value is None:
            return None
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        if not any(value == choice and type(value) is type(choice) for choice in choices):
            listed = ", ".join(map(str, choices))
            hint_text = nearest(value, map(str, choices)) if isinstance(value, str) else ""
            raise ConfigError(f"{name} must be one of {listed}; got {shown}{hint_text}")
        return value
    try:
        if get_origin(hint) is list:
            (element,) = get_args(hint)
            expected = f"a list of {_MANY[element]}"
            value = [_typed(element, item) for item in _typed(list, value)]
        else:
            expected = _ONE[hint]
            value = _typed(hint, value)
    except TypeError:
        raise ConfigError(f"{name} must be {expected}, got {shown}") from None
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str) and "${" in item:
            raise ConfigError(f"{name} must not hold '${{', got {shown}: files alone interpolate")
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, float) and not math.isfinite(number):
            raise ConfigError(f"{name} must be finite, got {shown}")
        if bounds is not None and number not in bounds:
            raise ConfigError(f"{name} must be in {bounds}, got {shown}")
    return value


def _bounds(item: Field[Any], hint: Any) -> Bounds | None:
    """Bounds of a field; no integer is without an upper one."""
    bounds: Bounds | None = item.metadata.get("bounds")
    if int in (hint, *get_args(hint)) and get_origin(hint) is not Literal:
        bounds = bounds or Bounds(ge=-MAX_INT)
        if bounds.le is None and bounds.lt is None:
            bounds = replace(bounds, le=MAX_INT)
    return bounds


def _is_section(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Section)


@dataclass
class Section:
    """Base of every group of the configuration: checks types, bounds and choices of its fields.

    Raises:
        ConfigError: (a ``ValueError``) a value has the wrong type, is out of its bounds or not one
            of its choices; the message names the field, what came and what was expected.
    """

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for item in fields(self):
            if not _is_section(hints[item.name]):
                value = getattr(self, item.name)
                bounds = _bounds(item, hints[item.name])
                setattr(self, item.name, check_value(item.name, hints[item.name], value, bounds))


@dataclass(frozen=True)
class Key:
    """One key of the schema."""

    name: str
    """Name of the field, unique over all groups."""

    group: str
    """Group that it belongs to, ``""`` for the run itself."""

    hint: Any
    default: Any
    bounds: Bounds | None
    help: str

    @property
    def path(self) -> str:
        """``group.name``, or the name alone."""
        return f"{self.group}.{self.name}" if self.group else self.name

    @property
    def kind(self) -> str:
        """Type, choices and bounds in words."""
        if get_origin(self.hint) is Literal:
            return " | ".join(map(str, get_args(self.hint)))
        text = self.hint.__name__ if isinstance(self.hint, type) else str(self.hint)
        if get_origin(self.hint) is list:
            text = f"list[{get_args(self.hint)[0].__name__}]"
        return f"{text} in {self.bounds}" if self.bounds is not None else text

    def check(self, value: Any) -> Any:
        """``check_value`` of this key."""
        return check_value(self.name, self.hint, value, self.bounds)


@functools.cache
def _docs(section: type) -> dict[str, str]:
    """Help of each field: the string literal below it, from the class that states it."""
    docs: dict[str, str] = {}
    for base in reversed(section.__mro__):
        if base in (object, Section):
            continue
        try:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except (OSError, TypeError, SyntaxError, ValueError):
            continue  # defined where no source is kept: its keys go without help
        body = tree.body if isinstance(tree, ast.ClassDef) else []
        for statement, below in itertools.pairwise(body):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
                and isinstance(below.value.value, str)
            ):
                docs[statement.target.id] = " ".join(below.value.value.split())
    return docs


def keys(section: type[Section], group: str = "") -> list[Key]:
    """The keys of a section, its groups' left out, in the order they are written."""
    cls: Any = section
    hints, docs = get_type_hints(section), _docs(cls)
    known = []
    for item in fields(section):
        if _is_section(hints[item.name]):
            continue
        default = item.default
        if item.default_factory is not MISSING:
            default = item.default_factory()
        bounds = _bounds(item, hints[item.name])
        known.append(
            Key(item.name, group, hints[item.name], default, bounds, docs.get(item.name, ""))
        )
    return known


def groups(section: type[Section]) -> dict[str, type[Section]]:
    """Groups of a section and their classes."""
    return {name: hint for name, hint in get_type_hints(section).items() if _is_section(hint)}
