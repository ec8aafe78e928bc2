"""Pictures of a warehouse without a display or a plotting library."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_CELL = 26  # pixels
_MARGIN = 3
_FLOOR, _PLACE, _LINE = (255, 255, 255), (236, 236, 240), (205, 205, 210)
_GOAL, _COSTS = (60, 60, 60), (205, 150, 150)
_SHELF, _REQUESTED = (110, 100, 170), (20, 150, 140)
_ROBOT, _LOADED, _NOSE = (230, 140, 30), (210, 50, 40), (20, 20, 20)
_AHEAD = ((0, -1), (0, 1), (-1, 0), (1, 0))  # up, down, left, right


def draw_warehouse(
    highways: NDArray[np.bool_],
    goals: NDArray[Any],
    pay: NDArray[Any],
    shelves: NDArray[Any],
    robots: NDArray[np.int64],
) -> NDArray[np.uint8]:
    """Picture ``[26 H, 26 W, 3]``: shelves violet, requested ones green; goals dark.

    Goals where a delivery costs are pale red.

    Args:
        highways: ``[H, W]`` cells that are no shelf's place.
        goals: ``[G, 2]`` column and row.
        pay: ``[G]`` of a delivery to each goal.
        shelves: ``[S, 3]`` column, row, requested.
        robots: ``[A, 4]`` column, row, direction, shelf carried or 0; a robot is orange, red with
            a shelf, with a dark mark where it looks.
    """
    height, width = highways.shape
    canvas = np.empty((height, width, _CELL, _CELL, 3), np.uint8)
    canvas[:] = np.where(highways[..., None], _FLOOR, _PLACE)[:, :, None, None]
    canvas[:, :, 0] = canvas[:, :, :, 0] = _LINE
    for (x, y), earned in zip(goals, pay, strict=True):
        canvas[y, x, 1:, 1:] = _GOAL if earned > 0 else _COSTS
    for x, y, requested in shelves:
        canvas[y, x, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN] = _REQUESTED if requested else _SHELF
    axis = np.arange(_CELL) - (_CELL - 1) / 2
    column, row = axis[None, :], axis[:, None]
    for x, y, direction, carried in robots:
        cell, (right, down) = canvas[y, x], _AHEAD[direction]
        cell[column**2 + row**2 < (0.32 * _CELL) ** 2] = _LOADED if carried else _ROBOT
        along, across = column * right + row * down, column * down - row * right
        cell[(along > 0) & (along < 0.42 * _CELL) & (abs(across) < 2)] = _NOSE
    picture: NDArray[np.uint8] = canvas.swapaxes(1, 2).reshape(height * _CELL, width * _CELL, 3)
    return picture
