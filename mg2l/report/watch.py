"""A report that follows its runs: ``python -m mg2l.report FOLDER --watch``."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FILES = ("metrics.jsonl", "evaluation.json", "probe.json")
"""Files of a run whose change changes the page."""

HOST = "127.0.0.1"
INTERVAL = 2.0
"""Seconds between two looks at the folders."""

Stamp = frozenset[tuple[str, int, int]]


def stamp(folders: Iterable[Path]) -> Stamp:
    """Paths, sizes and times of change of all files of runs below folders."""
    found = []
    for folder in folders:
        for base, _, names in os.walk(folder):
            for name in set(FILES) & set(names):
                path = Path(base, name)
                try:
                    held = path.stat()
                except OSError:  # removed meanwhile
                    continue
                found.append((str(path), held.st_size, held.st_mtime_ns))
    return frozenset(found)


class Watch:
    """Serves a page to this machine, and writes it again when its runs have changed.

    Args:
        folders: of the runs.
        page: the file that is served.
        write: writes it.
        port: to listen at; 0 is any free one.

    Raises:
        OSError: the port is taken.
    """

    def __init__(
        self, folders: Iterable[Path], page: Path, write: Callable[[], object], port: int
    ) -> None:
        self.folders, self.page, self.write = list(folders), page, write
        self.written = stamp(self.folders)
        self.version = 0
        watch = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/":
                    self.answer("text/html; charset=utf-8", watch.page.read_bytes())
                elif self.path == "/version":
                    self.answer("text/plain", str(watch.version).encode())
                else:
                    self.send_error(404)

            def answer(self, kind: str, data: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                """Log nothing about requests."""

        self.server = ThreadingHTTPServer((HOST, port), Handler)
        self.url = f"http://{HOST}:{self.server.server_port}/"
        self._ended = threading.Event()

    def look(self) -> bool:
        """Write the page again if a run has changed; whether it was."""
        now = stamp(self.folders)
        if now == self.written:
            return False
        self.write()
        self.written = now
        self.version += 1
        return True

    def run(self) -> None:
        """Serve until `stop`, or Ctrl-C."""
        thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        thread.start()
        try:
            while not self._ended.wait(INTERVAL):
                self.look()
        finally:
            self.server.shutdown()
            self.server.server_close()

    def stop(self) -> None:
        """End `run`."""
        self._ended.set()
