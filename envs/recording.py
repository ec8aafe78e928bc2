"""Helpers of the suites that replay recorded trajectories (``mg2l.envs.replay``)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def fetch(recording: Mapping[str, Array], name: str, shape: tuple[int | None, ...]) -> Array:
    """The array of this name, if its shape fits (``None``: any length).

    Raises:
        ValueError: it is missing or has the wrong shape.
    """
    if name not in recording:
        raise ValueError(f"missing array {name!r}")
    array = recording[name]
    fits = array.ndim == len(shape) and all(
        want is None or have == want for have, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("*" if want is None else str(want) for want in shape)
        raise ValueError(f"array {name!r} must have shape [{wanted}], got {list(array.shape)}")
    return array


def deviation(ours: NDArray[np.floating], theirs: Array) -> float:
    """Largest absolute difference; NaN where one of the two is NaN."""
    return float(np.abs(ours - theirs).max())
