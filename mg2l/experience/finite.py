"""Stopping at the first loss that is not a finite number."""

from __future__ import annotations

import torch
from torch import Tensor

from mg2l.experience.replay import Context


class NonFiniteLossError(RuntimeError):
    """A loss is NaN or infinite: the run cannot go on.

    Attributes:
        term: name of the loss.
        value: what it was.
        batch: the tensors that it was computed from.
    """

    def __init__(self, term: str, value: Tensor, batch: dict[str, Tensor]) -> None:
        super().__init__(f"{term} is {value.tolist()}")
        self.term, self.value, self.batch = term, value, batch


def require_finite(term: str, value: Tensor, batch: dict[str, Tensor | Context | None]) -> None:
    """Let a finite loss pass.

    Raises:
        NonFiniteLossError: an element of ``value`` is NaN or infinite.
    """
    if not bool(torch.isfinite(value).all()):
        held = {
            name: (x.gather() if isinstance(x, Context) else x).detach()
            for name, x in batch.items()
            if x is not None
        }
        raise NonFiniteLossError(term, value.detach(), held)
