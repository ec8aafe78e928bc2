"""Plots by matplotlib: their file names are validated before anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mg2l.core.files import replacing
from mg2l.core.packages import require
from mg2l.core.schema import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check(option: str, path: Path) -> None:
    """Validate the file name of a picture, and prepare to draw without a display.

    Args:
        option: option of the command line that names the picture.
        path: path of the picture; its ending says the format.

    Raises:
        ConfigError: matplotlib is not installed, or does not know the ending.
    """
    require(option, "matplotlib", extra="analysis")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in kinds:
        raise ConfigError(f"{option}={path}: must end in one of {', '.join(sorted(kinds))}")


def write(figure: Figure, path: Path) -> None:
    """Write a picture, and close it. Raises WriteError."""
    from matplotlib import pyplot

    with replacing(path) as partial:
        figure.savefig(partial)
    pyplot.close(figure)
