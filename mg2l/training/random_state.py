"""Every stream of random numbers of a run, taken and given back for checkpoints.

A stream on a GPU cannot continue on a CPU, nor the other way round: their generators are different
algorithms. A run that continues on another device draws from fresh streams there.
"""

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
        "devices": {
            name: stream.device.type for name, stream in (generators or {}).items()
            if isinstance(stream, torch.Generator)
        },
    }  # fmt: skip


def set_random_state(
    state: Mapping[str, Any],
    generators: Mapping[str, Generator] | None = None,
    *,
    fresh: tuple[int, int] = (0, 0),
) -> list[str]:
    """Take up what ``random_state`` gave.

    Args:
        state: what ``random_state`` gave.
        generators: further streams by name.
        fresh: the run's seed and the iterations done: streams whose state belongs to another kind
            of device are seeded with both and their name.

    Returns:
        Names of the streams that are fresh; ``cuda`` stands for torch's global streams of GPUs.

    Raises:
        ValueError: the names of the generators differ.
    """
    generators = generators or {}
    if set(generators) != set(state["generators"]):
        raise ValueError(
            f"generators must be {sorted(state['generators'])}, got {sorted(generators)}"
        )
    renewed = []
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        if len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])
        else:
            torch.cuda.manual_seed_all(_fresh_seed(fresh, "cuda"))
            renewed.append("cuda")
    np.random.set_state(state["numpy"])  # noqa: NPY002
    version, words, gauss = state["python"]
    random.setstate((version, tuple(int(word) for word in words), gauss))
    for name, stream in generators.items():
        saved = state["generators"][name]
        if not isinstance(stream, torch.Generator):
            stream.bit_generator.state = saved
        elif _fits(stream, saved, state.get("devices", {}).get(name)):
            stream.set_state(saved)
        else:
            stream.manual_seed(_fresh_seed(fresh, name))
            renewed.append(name)
    return renewed


def _fits(stream: torch.Generator, saved: torch.Tensor, device: str | None) -> bool:
    """Whether a state is of the stream's kind; checkpoints without devices tell by its size."""
    if device is not None and device != stream.device.type:
        return False
    return saved.numel() == stream.get_state().numel()


def _fresh_seed(fresh: tuple[int, int], name: str) -> int:
    entropy = [*fresh, *name.encode()]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)
