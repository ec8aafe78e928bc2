"""How a process is asked to end: signals, and a closed output."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, TextIO

from mg2l.core.distributed import world

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """SIGTERM or SIGHUP came outside a block that ends gracefully."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def status_of(interrupt: KeyboardInterrupt) -> int:
    """Exit status by the shell's custom: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
    return 128 + getattr(interrupt, "number", signal.SIGINT)


def _handle_all(handler: Any, numbers: tuple[int, ...]) -> dict[int, Any]:
    """Install a handler; returns those from before. Only the main thread may.

    A SIGHUP that is ignored, as under ``nohup``, stays ignored.
    """
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    return before


def _give_back(before: dict[int, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)
    before.clear()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """A block in which SIGTERM and SIGHUP are raised like Ctrl-C, so that it can clean up.

    Raises:
        Interrupted: one came.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    before = _handle_all(interrupt, (signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        _give_back(before)


class Output:
    """Standard output that never raises: where it breaks, the rest goes nowhere.

    Its reader may have ended (``| head``), the terminal may have been closed, the disk may be full.
    Work that is under way is then finished.

    Attributes:
        broken: error of writing to it, None while it works.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.broken: OSError | None = None

    def write(self, text: str) -> int:
        """See ``io.TextIOBase``."""
        try:
            self._file.write(text)
        except UnicodeEncodeError:  # such as a file's name that is not UTF-8
            encoding = self._file.encoding
            self.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except OSError as error:
            self._break(error)
        return len(text)

    def flush(self) -> None:
        """See ``io.TextIOBase``."""
        try:
            self._file.flush()
        except OSError as error:
            self._break(error)

    def _break(self, error: OSError) -> None:
        if self.broken is None:
            self.broken = error
            # What is still in its buffer must go somewhere when the interpreter ends.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._file.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def broken_output() -> OSError | None:
    """Why standard output is closed, None while it works."""
    error = getattr(sys.stdout, "broken", None)
    return error if isinstance(error, OSError) else None


def output_status(error: OSError) -> int:
    """Exit status after it: 141 as after SIGPIPE where it was closed, 1 where a disk is full."""
    gone = error.errno in (errno.EPIPE, errno.EIO)
    return 128 + signal.SIGPIPE if gone else 1


class GracefulStop:
    """Turns the first signal to end, or a broken output, into a request; a second acts at once.

    The signals are SIGINT (Ctrl-C), SIGTERM and SIGHUP (a closed terminal). The training loop looks
    at ``requested`` after each iteration, writes a checkpoint and ends with ``exit_code``. Outside
    the main thread, where Python takes no signals, they are left alone.

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
        return self.signal_number is not None or broken_output() is not None

    @property
    def exit_code(self) -> int:
        """Exit status: 130 after SIGINT, 143 after SIGTERM, 129 after SIGHUP, or as of the output.

        0 where nothing was asked.
        """
        if self.signal_number is not None:
            return 128 + self.signal_number
        error = broken_output()
        return 0 if error is None else output_status(error)

    def __enter__(self) -> GracefulStop:
        self._before = _handle_all(self._handle, SIGNALS)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _give_back(self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None:
            _give_back(self._before)
            os.kill(os.getpid(), number)  # now with the handler from before
            return
        self.signal_number = number
        if not world.is_main:
            return
        with contextlib.suppress(OSError):  # of a terminal that is closed
            # os.write, as a handler may interrupt a print that is under way
            os.write(2, b"\nstopping after this iteration; once more stops at once\n")
