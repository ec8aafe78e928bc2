"""TensorBoard's event files, written by the calling thread.

TensorBoard's own ``EventFileWriter``, and torch's ``SummaryWriter`` over it, write in a thread of
their own, where a full disk ends in a traceback that cannot be caught.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mg2l.core.files import write_all


class EventFile:
    """A new file of events in a folder.

    Args:
        folder: made if missing.
        purge_step: iteration from which on events of earlier files are hidden, None for none.

    Raises:
        OSError: it cannot be written; so do all methods.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        # Imported here, so that a run without TensorBoard does not wait for it.
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        folder.mkdir(exist_ok=True)
        now = time.time_ns()
        name = f"events.out.tfevents.{now // 10**9:010}.{socket.gethostname()}.{os.getpid()}.{now}"
        self.path = folder / name
        self._file = self.path.open("xb", buffering=0)
        self._records = RecordWriter(self)
        self._write(file_version="brain.Event:2", step=purge_step or 0)
        if purge_step is not None:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(session_log=start, step=purge_step)

    def _write(self, **what: object) -> None:
        event = self._event(wall_time=time.time(), **what)
        self._records.write(event.SerializeToString())

    def log(self, numbers: Mapping[str, float], iteration: int) -> None:
        """See `Tracker.log`."""
        summary = self._summary()
        for tag, value in numbers.items():
            if tag != "iteration":  # is the step
                summary.value.add(tag=tag, simple_value=value)
        self._write(summary=summary, step=iteration)

    def write(self, data: bytes) -> None:
        """The interface that TensorBoard's ``RecordWriter`` needs."""
        write_all(self._file.fileno(), data)

    def close(self) -> None:
        """See `Tracker.close`."""
        self._file.close()


def start(folder: Path, iteration: int, config: Mapping[str, Any]) -> EventFile:
    """Events of a run in its folder ``tensorboard``."""
    return EventFile(folder / "tensorboard", iteration + 1 if iteration else None)
