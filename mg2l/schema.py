"""Building blocks of the configuration schema: bounded fields and the section base class.

A section is a dataclass whose fields carry their meaning as the string literal below them,
their bounds in the field's metadata, and their choices in a ``Literal`` type.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints


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
        low = f"[{self.ge:g}" if self.ge is not None else f"({self.gt:g}" if self.gt is not None else "(-inf"
        high = f"{self.le:g}]" if self.le is not None else f"{self.lt:g})" if self.lt is not None else "inf)"
        return f"{low}, {high}"


def bounded(
    default: Any,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> Any:
    """A field with ``default`` whose value (or each element of it) must lie in the interval given."""
    metadata = {"bounds": Bounds(ge, gt, le, lt)}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Section:
    """Base of every group of the configuration: checks bounds and choices of its own fields.

    Raises:
        ValueError: a value is out of its bounds or not one of its choices; the message names the
            field, what came and what was expected.
    """

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for item in fields(self):
            value = getattr(self, item.name)
            if get_origin(hints[item.name]) is Literal and value not in get_args(hints[item.name]):
                choices = ", ".join(str(choice) for choice in get_args(hints[item.name]))
                raise ValueError(f"{item.name} must be one of {choices}; got {value!r}")
            bounds = item.metadata.get("bounds")
            if bounds is None:
                continue
            for number in value if isinstance(value, list) else [value]:
                if number not in bounds:
                    raise ValueError(f"{item.name} must be in {bounds}, got {value}")
