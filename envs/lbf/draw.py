"""Pictures of a field of food without a display or a plotting library."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_CELL = 26  # pixels
_FLOOR, _LINE, _PLAYER = (255, 255, 255), (205, 205, 210), (230, 140, 30)
_PAYS, _COSTS, _NEUTRAL = (20, 150, 90), (210, 50, 40), (190, 190, 190)
_MARK = (20, 20, 20)


def draw_field(
    levels: NDArray[Any], pay: NDArray[Any], players: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Picture ``[26 H, 26 W, 3]``: food green where it pays, red where it costs; players orange.

    Args:
        levels: ``[H, W]`` of the food in each cell, 0 for none; drawn as that many dots.
        pay: ``[H, W]`` in [-1, 1].
        players: ``[A, 3]`` row, column, level; its level is drawn likewise.
    """
    height, width = levels.shape
    canvas = np.empty((height, width, _CELL, _CELL, 3), np.uint8)
    canvas[:] = _FLOOR
    canvas[:, :, 0] = canvas[:, :, :, 0] = _LINE
    for row, column in np.argwhere(levels > 0):
        weight = min(1.0, abs(float(pay[row, column])))
        end = np.array(_PAYS if pay[row, column] > 0 else _COSTS)
        color = np.rint(weight * end + (1 - weight) * np.array(_NEUTRAL))
        canvas[row, column, 4:-3, 4:-3] = color
        _dots(canvas[row, column], int(levels[row, column]))
    axis = np.arange(_CELL) - (_CELL - 1) / 2
    disc = axis[None] ** 2 + axis[:, None] ** 2 < (0.36 * _CELL) ** 2
    for row, column, level in players:
        canvas[row, column][disc] = _PLAYER
        _dots(canvas[row, column], int(level))
    picture: NDArray[np.uint8] = canvas.swapaxes(1, 2).reshape(height * _CELL, width * _CELL, 3)
    return picture


def _dots(cell: NDArray[np.uint8], count: int) -> None:
    """Mark a cell with a number of dots, nine at most, in rows of three."""
    for dot in range(min(count, 9)):
        row, column = 8 + 4 * (dot // 3), 8 + 4 * (dot % 3)
        cell[row : row + 2, column : column + 2] = _MARK
