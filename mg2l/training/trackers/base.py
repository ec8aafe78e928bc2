"""The interface of trackers, and those that log to a service."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Protocol


class Tracker(Protocol):
    """Shows the metrics of a run."""

    def log(self, numbers: Mapping[str, float], iteration: int) -> None:
        """Log finite numbers by name, of an iteration.

        Raises:
            OSError: they cannot be written.
        """

    def close(self) -> None:
        """Write what is left and close."""


class ServiceTracker(ABC):
    """A tracker that may fail: training continues without it, and a line on stderr says so."""

    name: str

    def __init__(self) -> None:
        self._works = True

    def log(self, numbers: Mapping[str, float], iteration: int) -> None:
        """See `Tracker.log`."""
        self._attempt("log", lambda: self._log(numbers, iteration))

    def close(self) -> None:
        """See `Tracker.close`."""
        self._attempt("finish", self._finish)

    @abstractmethod
    def _log(self, numbers: Mapping[str, float], iteration: int) -> None: ...

    @abstractmethod
    def _finish(self) -> None: ...

    def _attempt(self, what: str, call: Callable[[], None]) -> None:
        if not self._works:
            return
        try:
            call()
        except Exception as error:
            self._works = False
            print(
                f"{self.name}: {what} failed: {reason(error)}; it gets no more metrics of this "
                "run, metrics.jsonl has them all",
                file=sys.stderr,
                flush=True,
            )


def reason(error: Exception) -> str:
    """An error of a package, in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
