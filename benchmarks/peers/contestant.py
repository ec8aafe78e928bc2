"""One contestant: says it is ready, then does an iteration for every line it reads.

``python -m benchmarks.peers.contestant NAME HIDDEN MINIBATCHES`` writes JSON, a line each.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable


def main(name: str, hidden: str, minibatches: str) -> None:
    """Build, warm up, and iterate whenever asked to."""
    make = importlib.import_module(f"benchmarks.peers.{name}").make
    start = time.perf_counter()
    iterate: Callable[[], object] = make(int(hidden), int(minibatches))
    for _ in range(2):
        iterate()
    answer({"setup": time.perf_counter() - start})
    for _ in sys.stdin:
        start = time.perf_counter()
        iterate()
        answer({"iteration": time.perf_counter() - start})


def answer(value: dict[str, float]) -> None:
    """A line for the race."""
    sys.__stdout__.write(json.dumps(value) + "\n")  # type: ignore[union-attr]
    sys.__stdout__.flush()  # type: ignore[union-attr]


if __name__ == "__main__":
    lines = sys.stdout
    sys.stdout = sys.stderr  # keeps a library's own prints out of the answers
    main(*sys.argv[1:])
