"""A small raster of discs: pictures of a particle world without a display or a plotting library."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_VIEW = 1.3  # half width of the picture [length]
_WALL = 1.2


def draw_world(
    centers: NDArray[np.float64],
    radii: NDArray[np.float64],
    colors: NDArray[np.uint8],
    pixels: int = 256,
) -> NDArray[np.uint8]:
    """Picture of discs in the walled square, ``[pixels, pixels, 3]``, y upwards.

    Args:
        centers: ``[M, 2]`` positions [length]; later discs lie over earlier ones.
        radii: ``[M]`` [length].
        colors: ``[M, 3]`` red, green, blue.
        pixels: width and height.
    """
    scale = 2 * _VIEW / pixels
    axis = (np.arange(pixels) + 0.5) * scale - _VIEW
    x, y = axis[None, :], -axis[:, None]
    canvas = np.full((pixels, pixels, 3), 255.0)
    wall = np.abs(np.maximum(np.abs(x), np.abs(y)) - _WALL)
    _blend(canvas, np.clip(1.5 - wall / scale, 0, 1), np.array([190.0, 190.0, 190.0]))
    for center, radius, color in zip(centers, radii, colors, strict=True):
        inside = (radius - np.hypot(x - center[0], y - center[1])) / scale
        _blend(canvas, np.clip(inside + 0.5, 0, 1), color.astype(np.float64))
    picture: NDArray[np.uint8] = np.rint(canvas).astype(np.uint8)
    return picture


def _blend(
    canvas: NDArray[np.float64], coverage: NDArray[np.float64], color: NDArray[np.float64]
) -> None:
    canvas += coverage[:, :, None] * (color - canvas)
