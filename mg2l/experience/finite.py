"""Stopping at the first loss that is not a finite number.

On the CPU a loss is checked where it is computed. To read it from a GPU would be to wait for all
work that is queued there, so that in a block of `checked_together` the losses stay on the device
until its end, where all of them are read at once.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mg2l.core.errors import RunError
from mg2l.experience.replay import Context

HELD_BYTES = 1 << 28
"""Bytes of batches that are held for losses not read yet; then they are read sooner."""

FEW = 4096
"""Numbers up to which a value is held as it is, rather than its sum."""


class NonFiniteLossError(RunError, RuntimeError):
    """A loss is NaN or infinite: the run cannot continue.

    Attributes:
        term: name of the loss.
        value: what it was.
        batch: the tensors that it was computed from.
    """

    def __init__(self, term: str, value: Tensor, batch: dict[str, Tensor]) -> None:
        super().__init__(f"{term} is {value.tolist()}")
        self.term, self.value, self.batch = term, value, batch


class _Unread:
    """Losses on a device, and the batches that they were computed from."""

    def __init__(self) -> None:
        self.checks: list[tuple[str, Tensor, Mapping[str, Any]]] = []
        self.sizes: dict[int, int] = {}

    def add(self, term: str, value: Tensor, batch: Mapping[str, Any]) -> None:
        self.checks.append((term, value if value.numel() <= FEW else value.sum(), batch))
        self.sizes |= {id(x): x.nbytes for x in batch.values() if isinstance(x, Tensor)}
        if sum(self.sizes.values()) > HELD_BYTES:
            self.read()

    def read(self) -> None:
        checks, self.checks, self.sizes = self.checks, [], {}
        if not checks:
            return
        numbers = torch.cat([value.flatten() for _, value, _ in checks])
        flags = numbers.isfinite().cpu().split([value.numel() for _, value, _ in checks])
        for (term, value, batch), finite in zip(checks, flags, strict=True):
            if not bool(finite.all()):
                raise NonFiniteLossError(term, value, _held(batch))


_unread: _Unread | None = None


@contextlib.contextmanager
def checked_together() -> Iterator[None]:
    """A block at whose end losses on a device are read, in one copy.

    Raises:
        NonFiniteLossError: the first of them that is NaN or infinite, also in place of an error
            that came after it.
    """
    global _unread
    before, _unread = _unread, _Unread()
    try:
        try:
            yield
        finally:
            _unread.read()
    finally:
        _unread = before


def require_finite(term: str, value: Tensor, batch: Mapping[str, Any]) -> None:
    """Check that a loss is finite.

    Args:
        term: its name.
        value: the loss, of any shape.
        batch: what it was computed from; of it, tensors and contexts are kept.

    Raises:
        NonFiniteLossError: an element of ``value`` is NaN or infinite; on a device other than the
            CPU, the block of `checked_together` raises it.
    """
    if value.requires_grad:
        value = value.detach()
    if not value.is_floating_point():
        return
    if _unread is not None and value.device.type != "cpu":
        _unread.add(term, value, batch)
        return
    if math.isfinite(float(value.sum())):  # as nearly always, and sooner known
        return
    if not bool(torch.isfinite(value).all()):
        raise NonFiniteLossError(term, value, _held(batch))


def _held(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        name: (x.gather() if isinstance(x, Context) else x).detach()
        for name, x in batch.items()
        if isinstance(x, (Tensor, Context))
    }
