"""Options of a command line besides the config."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mg2l.config.files import DEFAULTS


@dataclass(frozen=True)
class Options:
    """Options of the command line besides the config."""

    expt: str = DEFAULTS["expt"]
    algo: str = DEFAULTS["algo"]
    env: str = DEFAULTS["env"]
    """Names of the files (without folder and ending) that were chosen."""

    resume: Path | None = None
    """Run folder to resume."""

    resume_previous: bool = False
    """Where the last checkpoint of ``resume`` is damaged, go back to the one before it."""

    trust: bool = False
    """Import the code that ``resume`` or ``fork`` names."""

    folder: Path | None = None
    """Where a new run is made; None is a name of its own in ``main_save_path``."""

    checkpoint: str = ""
    """Name of the checkpoint of ``resume`` or ``fork`` to continue from; empty is the last."""

    fork: Path | None = None
    """Run folder that a new run takes its whole state from."""

    until: int = 0
    """Iteration after which this process stops with a checkpoint; 0 is the end of the run."""
