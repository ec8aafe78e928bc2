"""A guard against losses that are NaN or infinite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from mg2l.core.errors import RunError
from mg2l.core.files import WriteError, replacing
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


def check_finite(
    terms: Mapping[str, Tensor | float],
    iteration: int,
    batch: Mapping[str, Any],
    folder: Path | str,
) -> None:
    """Stop the run at the first term that is not finite, and save the batch it came from.

    Costs one reduction and one wait for the device, however many terms there are.

    Args:
        terms: losses, gradient norms or the like by name, of any shape.
        iteration: for the message and the name of the file.
        batch: nested tensors that the terms were computed from.
        folder: where ``nonfinite-<iteration>.safetensors`` is written.

    Raises:
        NonFiniteError: a term holds a NaN or an infinity; the message names the first one.
    """
    if not terms:
        return
    tensors = {name: torch.as_tensor(value).detach() for name, value in terms.items()}
    device = next((value.device for value in tensors.values() if value.is_cuda), None)
    flags = torch.stack([value.isfinite().all().to(device) for value in tensors.values()]).tolist()
    if all(flags):
        return
    term = list(tensors)[flags.index(False)]
    values = tensors[term].flatten()
    value = float(values[~values.isfinite()][0])
    path = Path(folder) / f"nonfinite-{iteration:08d}.safetensors"
    data = safetensors.torch.save(tree.flatten(batch)[1], {"term": term, "value": str(value)})
    where = f"the batch is in {path}"
    try:
        with replacing(path) as partial:
            partial.write_bytes(data)
    except WriteError as error:
        where = f"the batch is lost: {error}"
    raise NonFiniteError(iteration, term, value, path, where)
