"""Pictures of a map without a display or a plotting library."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_CELL = 10  # pixels
_WALL, _FLOOR, _LINE, _MARK = (70, 70, 75), (250, 250, 250), (228, 228, 232), (20, 20, 20)
_GROUPS = (
    (40, 90, 190), (205, 60, 45), (60, 160, 70), (235, 165, 30),
    (140, 80, 170), (30, 160, 170), (150, 100, 60),
)  # fmt: skip


def draw_map(
    size: int, groups: Sequence[NDArray[np.int64]], pays: Sequence[bool]
) -> NDArray[np.uint8]:
    """Picture ``[10 size, 10 size, 3]``: the team blue, every other group in a colour of its own.

    Args:
        size: side of the map [cells], the outermost of which are walls.
        groups: ``[units, 2]`` column and row of the living of each group.
        pays: groups whose units are marked with a dark middle.
    """
    canvas = np.empty((size, size, _CELL, _CELL, 3), np.uint8)
    canvas[:] = _WALL
    canvas[1:-1, 1:-1] = _FLOOR
    canvas[1:-1, 1:-1, 0] = canvas[1:-1, 1:-1, :, 0] = _LINE
    for places, colour, marked in zip(groups, _GROUPS, pays, strict=False):
        x, y = places.T
        canvas[y, x, 1:, 1:] = colour
        if marked:
            canvas[y, x, 4:7, 4:7] = _MARK
    picture: NDArray[np.uint8] = canvas.swapaxes(1, 2).reshape(size * _CELL, size * _CELL, 3)
    return picture
