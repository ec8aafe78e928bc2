"""Stopping a run between iterations when it is asked to end."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class GracefulStop:
    """Turns the first SIGINT (Ctrl-C) or SIGTERM into a request; a second one acts at once.

    The training loop looks at ``requested`` after each iteration, writes a checkpoint and ends
    with ``exit_code``. Outside the main thread, where Python takes no signals, it does nothing.

    >>> with GracefulStop() as stop:
    ...     while not stop.requested:
    ...         break
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._before: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether the run was asked to end."""
        return self.signal_number is not None

    @property
    def exit_code(self) -> int:
        """Exit status by the shell's custom: 130 after SIGINT, 143 after SIGTERM, else 0."""
        return 128 + self.signal_number if self.signal_number is not None else 0

    def __enter__(self) -> GracefulStop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            self._restore()
            os.kill(os.getpid(), number)  # now with the handler from before
            return
        self.signal_number = number
        # os.write, as a handler may interrupt a print that is under way
        os.write(2, b"\nstopping after this iteration; once more stops at once\n")
