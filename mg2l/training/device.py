"""The device that ``gpu_id`` selects on this machine."""

from __future__ import annotations

import ctypes

import torch

from mg2l.core.distributed import world
from mg2l.core.schema import ConfigError


def select_device(gpu_id: int) -> torch.device:
    """CUDA device ``gpu_id``, or the CPU for -1 and wherever there is no GPU.

    Of several processes on a machine, each has a GPU of its own: that of its local rank.

    Raises:
        ConfigError: there are GPUs, but not so many; or one is chosen for several processes.
    """
    if gpu_id < 0:
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        return torch.device("cpu")
    if world.size > 1:
        if gpu_id > 0:
            raise ConfigError(
                f"gpu_id={gpu_id} conflicts with torchrun, which gives each process a GPU of its "
                "own; leave gpu_id out, or set -1 for the CPU"
            )
        if world.local_size > count:
            raise ConfigError(
                f"{world.local_size} processes need as many GPUs, this machine has {count}; start "
                "fewer, or set gpu_id=-1 for the CPU"
            )
        return torch.device("cuda", world.local_rank)
    if gpu_id >= count:
        raise ConfigError(
            f"gpu_id={gpu_id}: this machine has {count} GPU{'s' if count > 1 else ''}; choose one "
            f"of 0..{count - 1}, or -1 for the CPU"
        )
    return torch.device("cuda", gpu_id)


def keep_freed_memory() -> None:
    """Make glibc keep free blocks for the next ones of their size.

    By default it returns large ones to the system; pages that come back cost more than to fill
    them, and an iteration allocates the same blocks over and over. Without glibc nothing changes.
    """
    trim_threshold, mmap_threshold, kept = -1, -3, 1 << 28
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter in (trim_threshold, mmap_threshold):
            mallopt(parameter, kept)
