"""Faults put into a kernel's source on purpose."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple


class Mutation(NamedTuple):
    """A changed source."""

    name: str
    text: str
    """All of the changed file."""

    line: int
    """Where it changed, from 1."""


def replace(text: str, old: str, new: str, *, name: str, occurrence: int = 0) -> Mutation:
    """Replace one occurrence of ``old``.

    Args:
        text: The source.
        old: What to replace.
        new: What with.
        name: What the fault is called.
        occurrence: Which one, from 0, if ``old`` is there several times.

    Raises:
        ValueError: ``old`` is not there so often, or the text stays what it was: the mutation no
            longer fits the source, and would prove nothing.
    """
    starts = [match.start() for match in re.finditer(re.escape(old), text)]
    if occurrence >= len(starts):
        raise ValueError(f"{name}: {old!r} occurs {len(starts)} times in the source")
    start = starts[occurrence]
    mutated = text[:start] + new + text[start + len(old) :]
    if mutated == text:
        raise ValueError(f"{name}: the mutated source equals the original")
    return Mutation(name, mutated, text.count("\n", 0, start) + 1)


def delete_each(text: str, statement: str) -> Iterator[Mutation]:
    """The source without the first occurrence of a statement, without the second, and so on."""
    for occurrence in range(text.count(statement)):
        mutation = replace(text, statement, "", name="", occurrence=occurrence)
        yield mutation._replace(name=f"delete {statement} at line {mutation.line}")
