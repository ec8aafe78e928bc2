"""Replay a recorded trajectory and report how far our environment deviates from it.

``python -m mg2l.envs.replay FILE.npz [--steps N] [--tol 1e-4]``

The names of the file's arrays identify the recording. Our environment is put into the recorded
initial state, stepped under the recorded actions, and compared. Exit status: 0 if no deviation
exceeds the tolerance, 1 if one does, 2 if the file cannot be replayed.
"""

from __future__ import annotations

import math
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mg2l import cli
from mg2l.envs import registry


class Recording(Mapping[str, NDArray[np.float64]]):
    """The arrays of an ``.npz`` file as float64, read when asked for.

    Raises:
        ValueError: the file, or an array asked for, cannot be read as numbers.
    """

    def __init__(self, path: Path) -> None:
        try:
            archive = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"not a readable .npz file ({error})") from error
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("not an .npz file but a single array")
        self._archive = archive

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        try:
            array = self._archive[name]
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"array {name!r} cannot be read ({error})") from error
        if array.dtype.kind not in "biuf":
            raise ValueError(f"array {name!r} must hold numbers, got {array.dtype}")
        return array.astype(np.float64)

    def __iter__(self) -> Iterator[str]:
        return iter(self._archive.files)

    def __len__(self) -> int:
        return len(self._archive.files)

    def __contains__(self, name: object) -> bool:
        return name in self._archive.files


def replay(path: Path, steps: int | None = None) -> tuple[str, dict[str, float]]:
    """Replay a file with the suite that knows it.

    Args:
        path: the ``.npz`` file; its name does not matter.
        steps: the first ``steps`` of each episode only; ``None`` is all.

    Returns:
        What was replayed, and the largest absolute deviation of each array compared.

    Raises:
        ValueError: the file is damaged, of no known kind, or lacks an array.
    """
    recording = Recording(path)
    for suite in registry.replayers():
        if suite.replays(recording):
            return suite.replay(recording, steps)
    raise ValueError(f"no environment suite knows a recording of {sorted(recording)}")


@cli.command
def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = cli.Parser(
        prog="python -m mg2l.envs.replay",
        description="Replay a recorded trajectory and report the largest deviations.",
    )
    parser.add_argument("file", type=Path, metavar="FILE.npz", help="the recording")
    parser.add_argument(
        "--steps",
        type=cli.at_least(1),
        help="replay the first STEPS steps of each episode (default all)",
    )
    parser.add_argument(
        "--tol",
        type=cli.at_least(0, float),
        default=1e-4,
        help="largest deviation allowed (default 1e-4)",
    )
    options = parser.parse_args(arguments)
    try:
        what, deviation = replay(options.file, options.steps)
    except ValueError as error:
        print(f"error: {options.file}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(what)
    print("max deviation:", *(f"{name} {value:.1e}" for name, value in deviation.items()))
    within = all(not math.isnan(value) and value <= options.tol for value in deviation.values())
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
