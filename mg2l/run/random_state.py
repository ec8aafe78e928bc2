"""Every stream of random numbers of a run, taken and given back for checkpoints."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

Generator = np.random.Generator | torch.Generator


def random_state(generators: Mapping[str, Generator] | None = None) -> dict[str, Any]:
    """State of the global streams of torch (CPU and every GPU), NumPy and Python.

    Args:
        generators: further streams by name.

    Returns:
        A state that checkpoints can hold.
    """
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002  (libraries may draw from it)
    version, words, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": numpy_state,
        "python": [version, np.array(words, np.uint32), gauss],
        "generators": {
            name: stream.get_state() if isinstance(stream, torch.Generator)
            else stream.bit_generator.state
            for name, stream in (generators or {}).items()
        },
    }  # fmt: skip


def set_random_state(
    state: Mapping[str, Any], generators: Mapping[str, Generator] | None = None
) -> None:
    """Take up what ``random_state`` gave.

    Streams of GPUs are taken up where there are as many GPUs as there were.

    Raises:
        ValueError: the names of the generators differ.
    """
    generators = generators or {}
    if set(generators) != set(state["generators"]):
        raise ValueError(
            f"generators must be {sorted(state['generators'])}, got {sorted(generators)}"
        )
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    version, words, gauss = state["python"]
    random.setstate((version, tuple(int(word) for word in words), gauss))
    for name, stream in generators.items():
        if isinstance(stream, torch.Generator):
            stream.set_state(state["generators"][name])
        else:
            stream.bit_generator.state = state["generators"][name]
