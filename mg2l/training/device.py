"""The device that ``gpu_id`` means on this machine."""

from __future__ import annotations

import torch

from mg2l.core.schema import ConfigError


def out_of_memory(error: BaseException) -> str | None:
    """What an allocation on any device says of its failure, in one line; None of other errors."""
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and "allocate" in str(error)
    ):
        return str(error).strip().partition("\n")[0]
    return None


def select_device(gpu_id: int) -> torch.device:
    """CUDA device ``gpu_id``, or the CPU for -1 and wherever there is no GPU.

    Raises:
        ConfigError: there are GPUs, but not so many.
    """
    if gpu_id < 0:
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        return torch.device("cpu")
    if gpu_id >= count:
        raise ConfigError(
            f"gpu_id={gpu_id}: this machine has {count} GPU{'s' if count > 1 else ''}; choose one "
            f"of 0..{count - 1}, or -1 for the CPU"
        )
    return torch.device("cuda", gpu_id)
