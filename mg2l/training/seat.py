"""One process per folder, also on storage that many machines share.

A file lock is freed by the system however its process ends, but some file systems do not know it,
and others keep it to one machine. So a seat is a lock and a lease: a file ``.seat-<n>`` that only
one process can create (``O_EXCL``), and whose time it renews. The highest ``n`` is in force. One
who takes over a seat that is free, or whose holder is dead, creates ``n + 1``; two who try at once
cannot both succeed, and a holder who was only suspended finds that it has lost its seat.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import socket
import threading
import time
from pathlib import Path
from typing import IO, Any

from mg2l.core.files import FileError, read_json

LOCK, SEAT, FREE = ".lock", ".seat-", ".free"

HEARTBEAT = 10.0
"""Between two renewals of a lease [s]."""

EXPIRES = 60.0
"""Without a renewal after which the holder of a lease on another machine counts as dead [s]."""

ABANDONED = 3600.0
"""Age at which a lease needs no watching, however much the machines' clocks differ [s]."""

WHO = {"machine": str, "pid": int, "start": str, "inode": int}
"""What a lease holds."""

_watched: dict[Path, tuple[int, float]] = {}
"""Leases of other machines: their time when first seen, and when that was on our clock."""


def take_lock(path: Path) -> IO[bytes]:
    """Lock a file, made where there is none, until it is closed or the process ends.

    Raises:
        BlockingIOError: another process holds it.
        OSError: it cannot be made, or is a link.
    """
    # Never followed nor emptied: a folder that came from elsewhere may hold any link.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise
    except OSError:
        pass  # a file system without locks
    return file


class Seat:
    """The right to write into a folder, held until `close` or the end of the process.

    Args:
        folder: exists.

    Attributes:
        lost: whether another process took over, as this one was silent for longer than `EXPIRES`.

    Raises:
        BlockingIOError: another process holds it. Where that is on another machine, this is known
            only when its lease is renewed, or is not for `EXPIRES`.
        OSError: nothing can be written there.
    """

    def __init__(self, folder: Path) -> None:
        self.lost = False
        self._lock = take_lock(folder / LOCK)
        self._ended = threading.Event()
        try:
            self._lease = _claim(folder)
        except BaseException:
            self._lock.close()
            raise
        threading.Thread(
            target=self._keep, args=(HEARTBEAT,), daemon=True, name="mg2l-seat"
        ).start()

    def _keep(self, interval: float) -> None:
        while not self.lost and not self._ended.wait(interval):
            self.renew()

    def renew(self) -> None:
        """Renew the lease, or find that it is `lost`."""
        try:
            os.utime(self._lease)
            self.lost = _last(self._lease.parent) != self._lease
        except FileNotFoundError:
            self.lost = True
        except OSError:
            pass  # of a server that does not answer; the next renewal may

    def close(self) -> None:
        """Give the seat up; can be repeated."""
        if not self._ended.is_set():
            self._ended.set()
            if not self.lost and self._lease.exists():
                with contextlib.suppress(OSError):  # then it expires
                    _free(self._lease).touch()
            self._lock.close()

    def __enter__(self) -> Seat:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def taken(folder: Path) -> bool:
    """Whether a process holds the seat of a folder, or may hold it on another machine."""
    try:
        take_lock(folder / LOCK).close()
    except BlockingIOError:
        return True
    except OSError:
        return False  # there is no lock, and none can be made
    last = _last(folder)
    return last is not None and _holder(last) != "dead"


def _free(lease: Path) -> Path:
    """The file by which the holder of a lease gives it up."""
    return lease.with_name(lease.name + FREE)


def _last(folder: Path) -> Path | None:
    """The lease in force."""
    names = [name for name in os.listdir(folder) if re.fullmatch(rf"{SEAT}\d{{8,18}}", name)]
    return folder / max(names, key=_number) if names else None


def _number(name: str) -> int:
    return int(name.removeprefix(SEAT).removesuffix(FREE))


def _claim(folder: Path) -> Path:
    """Create the next lease, once the one in force is free or its holder dead."""
    while True:
        last = _last(folder)
        holder = "dead" if last is None else _holder(last)
        if holder == "alive":
            raise BlockingIOError(f"{last} is held")
        if holder == "unknown":
            time.sleep(0.2)
            continue
        number = 1 if last is None else _number(last.name) + 1
        mine = folder / f"{SEAT}{number:08d}"
        try:
            file = os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            continue
        try:
            with os.fdopen(file, "w") as text:
                json.dump(_identity(text.fileno()), text)
        except OSError:  # a lease that names nobody would have to expire
            mine.unlink(missing_ok=True)
            raise
        if _last(folder) != mine:  # it was taken, given up, and taken again meanwhile
            mine.unlink()
            continue
        for name in os.listdir(folder):
            if re.fullmatch(rf"{SEAT}\d{{8,18}}({FREE})?", name) and _number(name) < number:
                (folder / name).unlink(missing_ok=True)
        return mine


def _holder(lease: Path) -> str:
    """``dead``, ``alive``, or ``unknown`` as long as it must be watched."""
    if _free(lease).exists():
        return "dead"
    try:
        who = read_json(lease, WHO, inside=lease.parent)
        if who["machine"] == _machine():
            same = who["inode"] == lease.stat().st_ino
            return "alive" if same and _start(who["pid"]) == who["start"] else "dead"
    except (FileError, FileNotFoundError):
        pass  # just being written or replaced, or by whomever
    try:
        now = lease.stat().st_mtime_ns
    except FileNotFoundError:
        return "unknown"  # replaced meanwhile
    if time.time() - now / 1e9 > ABANDONED:
        return "dead"
    first, since = _watched.setdefault(lease, (now, time.monotonic()))
    if first != now:
        del _watched[lease]
        return "alive"
    return "dead" if time.monotonic() - since > EXPIRES else "unknown"


def _identity(lease: int) -> dict[str, Any]:
    """Who this process is; ``inode`` distinguishes its lease from that of a folder's copy."""
    pid, inode = os.getpid(), os.fstat(lease).st_ino
    return {"machine": _machine(), "pid": pid, "start": _start(pid), "inode": inode}


def _machine() -> str:
    """Scope of process ids: a machine since its start, or a container on it."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"


def _start(pid: int) -> str:
    """When a process began, in ticks since the machine's start; '' where it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]
