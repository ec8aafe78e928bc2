"""Stopping a run at a loss that is NaN or infinite; the batch it was computed from is saved."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch

from mg2l.core.errors import RunError
from mg2l.core.files import WriteError, replacing
from mg2l.experience.finite import NonFiniteLossError
from mg2l.training import tree


class NonFiniteError(RunError, FloatingPointError):
    """A loss that is NaN or infinite.

    Attributes:
        iteration: iteration in which it occurred.
        term: name of the loss.
        path: the safetensors file that holds the batch.
    """

    def __init__(self, iteration: int, term: str, value: float, path: Path, where: str) -> None:
        super().__init__(f"iteration {iteration}: {term} is {value}; the run stops, {where}")
        self.iteration = iteration
        self.term = term
        self.path = path


def save_batch(error: NonFiniteLossError, iteration: int, folder: Path | str) -> NonFiniteError:
    """Save the batch of a loss in ``nonfinite-<iteration>.safetensors``.

    Returns:
        The error that stops the run, which says where the batch is.
    """
    values = error.value.flatten()
    value = float(values[~values.isfinite()][0])
    path = Path(folder) / f"nonfinite-{iteration:08d}.safetensors"
    metadata = {"term": error.term, "value": str(value)}
    data = safetensors.torch.save(tree.flatten(error.batch)[1], metadata)
    where = f"the batch is in {path}"
    try:
        with replacing(path) as partial:
            partial.write_bytes(data)
    except WriteError as failed:
        where = f"the batch is lost: {failed}"
    return NonFiniteError(iteration, error.term, value, path, where)
