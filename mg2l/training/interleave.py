"""Two sequences of work that do not depend on each other, in turns or at the same time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
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
        self._worker = ThreadPoolExecutor(1)
        return self

    def run(self, one: Iterator[None], two: Iterator[None]) -> None:
        """Do both; raises what ``two`` does, or else what ``one`` does."""
        half = self._threads // 2
        other = self._worker.submit(_finish, one, half)
        _finish(two, self._threads - half)
        other.result()

    def __exit__(self, *error: Any) -> None:
        self._worker.shutdown()
        torch.set_num_threads(self._threads)


def _finish(work: Iterator[None], threads: int) -> None:
    torch.set_num_threads(threads)  # of this thread
    deque(work, maxlen=0)
