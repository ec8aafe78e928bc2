"""Frames of a video: an environment, a title, and beside it each agent's belief about the task.

Drawn with pillow at twice the size and then halved, for antialiasing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mg2l.evaluation.representation import principal_axes

TRAIL = 25
"""Frames for which a marker's trail stays visible."""

PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
"""Distinguishable for the colour-blind too (Okabe and Ito, 2008). Tasks beyond it are squares."""

_SCALE = 2
_TITLE = 46
_LEGEND = 158
_ROW = 18
_SIDES = (240, 190)  # of a map, in one row of them and in two
_SMALLEST = 320  # width that a title needs
_INK, _FAINT, _FRAME = "#1a1a1a", "#767676", "#d0d0d0"


@dataclass(frozen=True)
class Trajectory:
    """Representations to draw beside the environment, of A agents in F frames."""

    known: NDArray[np.float64]
    """``[M, A, D]`` representations of tasks that the team was trained on."""

    tasks: NDArray[np.int64]
    """``[M]`` their tasks, as indices of ``names``."""

    names: Sequence[str]
    """Names of those tasks."""

    acts_on: NDArray[np.float64]
    """``[F, A, D]`` representation that each agent acts on."""

    infers: NDArray[np.float64]
    """``[F, A, D]`` representation inferred from its transitions so far."""


class Drawing:
    """Draws the pictures of one video.

    Every agent has a map of its own, the first two principal components of its representations
    of the training tasks, as representations of two agents need not agree. Points outside a map
    are drawn at its edge.

    Args:
        trajectory: representations to draw beside the environment, or None for none.
    """

    def __init__(self, trajectory: Trajectory | None) -> None:
        self.trajectory = trajectory
        agents = 0 if trajectory is None else trajectory.known.shape[1]
        self.columns, rows = min(agents, 2), -(-agents // 2)
        self.side = _SIDES[rows > 1]
        legend = 0 if trajectory is None else (len(trajectory.names) + 5) * _ROW
        self.height = max(rows * self.side, legend, _SIDES[0])
        self.maps = (
            [] if trajectory is None else [_Map(trajectory, i, self.side) for i in range(agents)]
        )

    def __call__(
        self, picture: NDArray[np.uint8], title: str, subtitle: str, index: int
    ) -> NDArray[np.uint8]:
        """One picture of the video, ``[height, width, 3]``.

        Args:
            picture: ``[*, *, 3]`` of the environment.
            title: the first line.
            subtitle: the second.
            index: index of the frame in the video.
        """
        from PIL import Image, ImageDraw

        world = Image.fromarray(picture)
        width = round(self.height * world.width / world.height)
        beside = self.columns * self.side + _LEGEND if self.maps else 0
        canvas = Image.new("RGB", (max(width + beside, _SMALLEST), _TITLE + self.height), "white")
        canvas.paste(world.resize((width, self.height), Image.Resampling.LANCZOS), (0, _TITLE))
        for agent, map_ in enumerate(self.maps):
            row, column = divmod(agent, self.columns)
            place = (width + column * self.side, _TITLE + row * self.side)
            canvas.paste(map_(index), place)
        if self.trajectory is not None:
            legend = _legend(self.trajectory.names, self.height)
            canvas.paste(legend, (width + self.columns * self.side, _TITLE))
        draw = ImageDraw.Draw(canvas)
        draw.text((10, 5), title, _INK, _font(15))
        draw.text((10, 25), subtitle, _FAINT, _font(13))
        return np.asarray(canvas)


class _Map:
    """One agent's map; everything except the markers is drawn once."""

    def __init__(self, trajectory: Trajectory, agent: int, side: int) -> None:
        from PIL import Image, ImageDraw

        self.side = side
        known = trajectory.known[:, agent]
        center, axes = principal_axes(known)
        points, self.acts_on, self.infers = (
            (z - center) @ axes
            for z in (known, trajectory.acts_on[:, agent], trajectory.infers[:, agent])
        )
        # Draws of the prior are left out: they can be far from all inferred representations.
        shown = np.concatenate([points, self.infers[1:]])
        low, high = shown.min(0), shown.max(0)
        self.middle = (low + high) / 2
        # One scale for both components: distances are comparable in all directions.
        self.unit = _SCALE * (side - 64) / max(float((high - low).max()), 1e-6)
        self.paper = Image.new("RGB", (_SCALE * side, _SCALE * side), "white")
        draw = ImageDraw.Draw(self.paper)
        edge = _SCALE * 6
        draw.rectangle((edge, edge, *[_SCALE * side - edge] * 2), None, _FRAME, _SCALE)
        draw.text((_SCALE * 13, _SCALE * 10), f"agent {agent}", _FAINT, _font(_SCALE * 12))
        for point, task in zip(points, trajectory.tasks.tolist(), strict=True):
            _dot(draw, self._place(point), task)

    def __call__(self, index: int) -> Any:
        from PIL import Image, ImageDraw

        paper = self.paper.copy()
        draw = ImageDraw.Draw(paper)
        way = [self._place(point) for point in self.infers[max(0, index - TRAIL) : index + 1]]
        for age, (start, end) in enumerate(zip(way[-2::-1], way[:0:-1], strict=True)):
            grey = round(90 + 130 * age / TRAIL)
            draw.line((start, end), (grey, grey, grey), 2 * _SCALE)
        _acts_on(draw, self._place(self.acts_on[index]))
        _infers(draw, way[-1])
        return paper.resize((self.side, self.side), Image.Resampling.BOX)

    def _place(self, point: NDArray[np.float64]) -> tuple[float, float]:
        half = _SCALE * self.side / 2
        x, y = np.clip((point - self.middle) * self.unit, 20 * _SCALE - half, half - 20 * _SCALE)
        return half + float(x), half - float(y)


def _legend(names: Sequence[str], height: int) -> Any:
    from PIL import Image, ImageDraw

    paper = Image.new("RGB", (_SCALE * _LEGEND, _SCALE * height), "white")
    draw = ImageDraw.Draw(paper)
    font = _font(_SCALE * 12)
    left, middle = _SCALE * 14, _SCALE * 34

    def write(row: int, text: str, x: int, color: str) -> tuple[int, int]:
        y = _SCALE * (18 + row * _ROW)
        while draw.textlength(text, font) > _SCALE * (_LEGEND - 4) - x:
            text = text.rstrip("…")[:-1] + "…"
        draw.text((x, y), text, color, font, "lm")
        return left + _SCALE * 5, y

    write(0, "training tasks", left - _SCALE * 4, _FAINT)
    for task, name in enumerate(names):
        _dot(draw, write(task + 1, name, middle, _INK), task)
    row = len(names) + 2
    _infers(draw, write(row, "inferred so far", middle, _INK))
    _acts_on(draw, write(row + 1, "acted on", middle, _INK))
    return paper.resize((_LEGEND, height), Image.Resampling.BOX)


def _dot(draw: Any, place: tuple[float, float], task: int) -> None:
    from PIL import ImageColor

    color = ImageColor.getrgb(PALETTE[task % len(PALETTE)])
    light = tuple(round(255 - 0.6 * (255 - value)) for value in color)
    shape = draw.ellipse if task < len(PALETTE) else draw.rectangle
    shape(_around(place, 3.5), light)


def _infers(draw: Any, place: tuple[float, float]) -> None:
    draw.ellipse(_around(place, 5.5), _INK, "white", _SCALE)


def _acts_on(draw: Any, place: tuple[float, float]) -> None:
    draw.ellipse(_around(place, 8), None, _INK, 2 * _SCALE)


def _around(place: tuple[float, float], radius: float) -> tuple[float, float, float, float]:
    x, y = place
    radius *= _SCALE
    return x - radius, y - radius, x + radius, y + radius


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)
