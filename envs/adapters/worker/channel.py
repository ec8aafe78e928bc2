"""Messages between a worker and the process that started it."""

from __future__ import annotations

import fcntl
import os
import pickle
import resource
import select
import socket
from collections.abc import Callable
from typing import Any

Wait = Callable[[int], None]
"""Waits until a socket is ready for an event of ``select.poll``; raises where that is too long."""
TOKEN = 16  # bytes
_LENGTH = 8  # bytes


class ChannelClosedError(EOFError):
    """The other end is closed."""


class BrokenChannelError(OSError):
    """Received something that is not a message: something else has written into the socket."""


class Channel:
    """Pickled messages through a socket; each starts with a token that others do not know.

    Args:
        end: one end of a pair of connected sockets.
        token: ``TOKEN`` bytes, the same at both ends.
        wait: called whenever the socket is not ready; without it the socket blocks.
        dumps: turns a message into bytes that ``pickle.loads`` reads.
    """

    def __init__(
        self,
        end: socket.socket,
        token: bytes,
        wait: Wait | None = None,
        dumps: Callable[[Any], bytes] = pickle.dumps,
    ) -> None:
        self.socket, self.token, self._wait, self._dumps = end, token, wait, dumps
        end.setblocking(wait is None)

    def send(self, message: Any) -> None:
        """Send a message."""
        content = self._dumps(message)
        rest = memoryview(self.token + len(content).to_bytes(_LENGTH, "big") + content)
        while rest:
            try:
                rest = rest[self.socket.send(rest) :]
            except BlockingIOError:  # noqa: PERF203
                self._ready(select.POLLOUT)

    def receive(self) -> Any:
        """The next message.

        Raises:
            ChannelClosedError: the other end is closed.
            BrokenChannelError: what was received is not a message.
        """
        head = self._bytes(TOKEN + _LENGTH)
        if head[:TOKEN] != self.token:
            raise BrokenChannelError("something else wrote into its socket")
        return pickle.loads(self._bytes(int.from_bytes(head[TOKEN:], "big")))

    def close(self) -> None:
        """Close this end."""
        self.socket.close()

    def _bytes(self, count: int) -> bytearray:
        content = bytearray()
        while len(content) < count:
            try:
                part = self.socket.recv(min(count - len(content), 1 << 20))
            except BlockingIOError:
                self._ready(select.POLLIN)
                continue
            if not part:
                raise ChannelClosedError
            content += part
        return content

    def _ready(self, event: int) -> None:
        assert self._wait is not None
        self._wait(event)


def hidden(descriptor: int) -> int:
    """Move a descriptor to a number that no stray write hits, and that is not inherited."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    start = 64 + int.from_bytes(os.urandom(2), "big") % max(1, min(most, 1024) - 192)
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, start)
    os.close(descriptor)
    return moved
