"""State of every random stream of a run, for checkpoints.

A stream on a GPU cannot continue on a CPU, nor the other way round: their generators are different
algorithms. A run that continues on another device draws from fresh streams there.

Of several processes, each has global streams of its own, that of its GPU among them; `generators`
are the same in all.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mg2l.core.distributed import world

Generator = np.random.Generator | torch.Generator

CPU = torch.device("cpu")

GLOBAL = ("torch", "cuda", "numpy", "python")
"""Streams that a process has but one of."""


def random_state(
    generators: Mapping[str, Generator] | None = None, device: torch.device = CPU
) -> dict[str, Any]:
    """State of the global streams of torch, NumPy and Python.

    Args:
        generators: further streams by name.
        device: GPU whose global stream is among them; the CPU for none.

    Returns:
        A state that checkpoints can hold.
    """
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002  (libraries may draw from it)
    version, words, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state(device)] if device.type == "cuda" else [],
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


def gather_random_state(state: dict[str, Any]) -> dict[str, Any]:
    """The result of `random_state`, with the global streams of all other processes."""
    if world.size == 1:
        return state
    everyone = world.gather_objects({name: state[name] for name in GLOBAL})
    return state | {"others": everyone[1:]}


def own_random_state(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """This process's part of what `gather_random_state` gave.

    With another number of processes than then, all continue with the main one's global streams.
    """
    others = state.get("others", [])
    if world.rank == 0 or world.size != 1 + len(others):
        return state
    return {**state, **others[world.rank - 1]}


def set_random_state(
    state: Mapping[str, Any],
    generators: Mapping[str, Generator] | None = None,
    device: torch.device = CPU,
    *,
    fresh: tuple[int, int] = (0, 0),
) -> list[str]:
    """Restore the result of ``random_state``.

    Args:
        state: what ``random_state`` gave.
        generators: further streams by name.
        device: see ``random_state``.
        fresh: the run's seed and the iterations done: streams whose state belongs to another kind
            of device are seeded with both and their name.

    Returns:
        Names of the streams that are fresh; ``cuda`` stands for torch's global stream of the GPU.

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
    if device.type == "cuda":
        saved = _of_gpu(state["cuda"], device)
        if saved is None:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(fresh_seed(fresh, "cuda"))
            renewed.append("cuda")
        else:
            torch.cuda.set_rng_state(saved, device)
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
            stream.manual_seed(fresh_seed(fresh, name))
            renewed.append(name)
    return renewed


def _of_gpu(states: list[torch.Tensor], device: torch.device) -> torch.Tensor | None:
    """The state to continue with; earlier checkpoints hold those of all GPUs of a machine."""
    index = 0 if len(states) == 1 else device.index or 0
    return states[index] if index < len(states) else None


def seed_streams(generators: Mapping[str, Generator], entropy: tuple[int, int]) -> None:
    """Seed the global streams of torch, NumPy and Python, and ``generators`` by their names.

    Args:
        generators: further streams by name.
        entropy: the run's seed and the iterations done.
    """
    torch.manual_seed(fresh_seed(entropy, "torch"))
    np.random.seed(fresh_seed(entropy, "numpy") % 2**32)  # noqa: NPY002
    random.seed(fresh_seed(entropy, "python"))
    for name, stream in generators.items():
        seed = fresh_seed(entropy, name)
        if isinstance(stream, torch.Generator):
            stream.manual_seed(seed)
        else:
            stream.bit_generator.state = np.random.default_rng(seed).bit_generator.state


def _fits(stream: torch.Generator, saved: torch.Tensor, device: str | None) -> bool:
    """Whether a state is of the stream's kind; in checkpoints without devices its size decides."""
    if device is not None and device != stream.device.type:
        return False
    return saved.numel() == stream.get_state().numel()


def fresh_seed(fresh: tuple[int, int], name: str) -> int:
    """A seed in ``[0, 2^63)``."""
    entropy = [*fresh, *name.encode()]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)
