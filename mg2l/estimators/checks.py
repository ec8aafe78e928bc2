"""Validation of the arguments of `fit_mi`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

INTEGER = (int, np.integer)
NUMBER = (int, float, np.integer, np.floating)

MIN_PAIRS = 8
MAX_STEPS = 10**9
MAX_WIDTH = 65_536
MAX_INTEGER = 2**63 - 1


def check_samples(x: Any, y: Any) -> None:
    """Validate the samples.

    Raises:
        ValueError: not two finite float tensors ``[N, size]`` of one dtype, device and N >= 8.
    """
    for name, samples in (("x", x), ("y", y)):
        if not isinstance(samples, Tensor):
            raise ValueError(f"{name} must be a tensor [N, size], got {type(samples).__name__}")
        if samples.dim() != 2 or samples.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{name} must be floats [N, size] (float32 or float64), got {samples.dtype} "
                f"{list(samples.shape)}"
            )
        if not samples.shape[1]:
            raise ValueError(f"{name} must have at least 1 coordinate, got {list(samples.shape)}")
    if len(x) != len(y) or len(x) < MIN_PAIRS:
        raise ValueError(f"x and y must be N >= {MIN_PAIRS} pairs, got {len(x)} and {len(y)}")
    if x.dtype != y.dtype or x.device != y.device:
        raise ValueError(
            f"x and y must have one dtype and device, got {x.dtype} on {x.device} and "
            f"{y.dtype} on {y.device}"
        )
    for name, samples in (("x", x), ("y", y)):
        if not bool(samples.isfinite().all()):
            raise ValueError(f"{name} must be finite, got NaN or infinity")


def check_choice(name: str, value: Any, choices: Iterable[str], others: str = "") -> None:
    """Validate a name.

    Raises:
        ValueError: not one of the choices.
    """
    choices = tuple(choices)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}{others}, got {value!r}")


def check_integer(name: str, value: Any, least: int, most: int) -> None:
    """Validate an integer.

    Raises:
        ValueError: not an integer, or out of bounds.
    """
    if isinstance(value, bool) or not isinstance(value, INTEGER) or not least <= value <= most:
        raise ValueError(f"{name} must be an integer in [{least}, {most}], got {value!r}")


def check_widths(name: str, value: Any) -> None:
    """Validate the widths of hidden layers.

    Raises:
        ValueError: not a sequence of integers, or one is out of bounds.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"{name} must be integers such as (64, 64), got {value!r}")
    for width in value:
        check_integer(f"each of {name}", width, 1, MAX_WIDTH)


def check_learning_rate(lr: Any) -> None:
    """Validate a learning rate.

    Raises:
        ValueError: not a positive, finite number.
    """
    if isinstance(lr, bool) or not isinstance(lr, NUMBER) or not 0 < lr < math.inf:
        raise ValueError(f"lr must be a number in (0, inf), got {lr!r}")


def held_out_pairs(held_out: Any, pairs: int) -> int:
    """Number of pairs in a fraction of them, at least 2.

    Raises:
        ValueError: not a positive fraction, or one that does not leave 2 pairs.
    """
    if isinstance(held_out, bool) or not isinstance(held_out, NUMBER) or not 0 < held_out <= 1:
        raise ValueError(f"held_out must be a fraction in (0, 1), got {held_out!r}")
    tested = max(2, round(float(held_out) * pairs))
    if pairs - tested < 2:
        raise ValueError(
            f"held_out must leave 2 pairs to train on, got {held_out!r} of {pairs} pairs"
        )
    return tested
