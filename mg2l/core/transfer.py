"""Copies between the host and a device, through pinned memory: only those back are waited for."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def to_device(array: Any, device: torch.device) -> Tensor:
    """An array of the host as a tensor on ``device``, without waiting for the copy.

    The CPU reads the memory of ``array`` itself.
    """
    host = torch.as_tensor(array)
    if device.type == "cpu":
        return host
    # torch lends pinned memory again only when what was copied out of it has arrived.
    return host.pin_memory().to(device, non_blocking=True)


def copy_to(x: Tensor, array: Any) -> None:
    """Copy an array of the host into a tensor, without waiting for it."""
    host = torch.as_tensor(array)
    x.copy_(host if x.device.type == "cpu" else host.pin_memory(), non_blocking=True)


def to_host(x: Tensor) -> np.ndarray:
    """A tensor as an array of the host; waits for all that was queued on its device before."""
    if x.device.type == "cpu":
        return x.numpy()
    host = x.to("cpu", non_blocking=True)  # to pinned memory
    torch.get_device_module(x.device).current_stream(x.device).synchronize()
    return host.numpy()


def synchronize(device: torch.device) -> None:
    """Wait for all that is queued on a device; the CPU has no queue."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)
