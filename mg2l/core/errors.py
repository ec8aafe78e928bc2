"""Errors that a command reports in one line, by what they say about the run."""

from __future__ import annotations


class UserError(Exception):
    """Something that was asked for and cannot be done: exit status 2."""


class RunError(Exception):
    """Something that failed in the middle of work: exit status 1."""


def out_of_memory(error: BaseException) -> str | None:
    """One line about a failed allocation on any device; None for other errors."""
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and "allocate" in str(error)
    ):
        return str(error).strip().partition("\n")[0]
    return None
