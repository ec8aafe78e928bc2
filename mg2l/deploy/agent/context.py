"""The transitions that an exported agent infers its task from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


class Context:
    """An agent's transitions: rows ``(o, a, r, o')``, the oldest overwritten when it is full.

    Args:
        capacity: rows kept.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.added = capacity, 0
        self.rows: list[Array] = []

    def add(self, row: Array) -> None:
        """Append a row ``[F]``."""
        if len(self.rows) < self.capacity:
            self.rows.append(row)
        else:
            self.rows[self.added % self.capacity] = row
        self.added += 1

    def draw(self, length: int, rng: np.random.Generator) -> Array:
        """``[length, F]``: rows drawn uniformly, with replacement.

        Raises:
            RuntimeError: there is none yet.
        """
        self._require_rows()
        return np.stack([self.rows[i] for i in rng.integers(len(self.rows), size=length)])

    def all(self) -> Array:
        """``[T, F]``: all rows, the oldest first.

        Raises:
            RuntimeError: there is none yet.
        """
        self._require_rows()
        first = self.added % len(self.rows)
        return np.stack(self.rows[first:] + self.rows[:first])

    def _require_rows(self) -> None:
        if not self.rows:
            raise RuntimeError("nothing was observed yet that the task could be inferred from")
