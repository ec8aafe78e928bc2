"""Two sequences of work that do not depend on each other, in turns or at the same time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

_ENDED = object()


def take_turns(*works: Iterator[None]) -> None:
    """Advance each by one, again and again, until all have ended."""
    left = list(works)
    while left:
        left = [work for work in left if next(work, _ENDED) is not _ENDED]


class SideBySide:
    """A block in which two sequences of work run at the same time, on half of the threads each.

    Where both take turns with all threads, these wait for the slowest of them at every call, on a
    busy machine for long, and all but one are idle between calls. Operators release the GIL.
    Results are those of taking turns with half of the threads.
    """

    def __enter__(self) -> SideBySide:
        self._threads = torch.get_num_threads()
        self._half = self._threads // 2
        torch.set_num_threads(self._threads - self._half)  # here; the worker has the others
        self._worker = ThreadPoolExecutor(
            1, initializer=torch.set_num_threads, initargs=(self._half,)
        )
        return self

    def run(self, one: Iterator[None], two: Iterator[None]) -> None:
        """Do both; raises what ``two`` does, or else what ``one`` does."""
        other = self._worker.submit(_finish, one)
        _finish(two)
        other.result()

    def both(self, function: Callable[[Any], Any], items: Sequence[Any]) -> tuple[Any, Any]:
        """``function`` of each of two items, on half of the threads each."""
        one, two = items
        recorded = torch.is_grad_enabled()  # of this thread

        def there() -> Any:
            with torch.set_grad_enabled(recorded):
                return function(two)

        other = self._worker.submit(there)
        return function(one), other.result()

    def __exit__(self, *error: Any) -> None:
        self._worker.shutdown()
        torch.set_num_threads(self._threads)


def _finish(work: Iterator[None]) -> None:
    deque(work, maxlen=0)
