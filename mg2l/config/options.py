"""What a command line says besides the config."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mg2l.config.files import DEFAULTS


@dataclass(frozen=True)
class Options:
    """What the command line says besides the config."""

    expt: str = DEFAULTS["expt"]
    algo: str = DEFAULTS["algo"]
    env: str = DEFAULTS["env"]
    """Names of the files (without folder and ending) that were chosen."""

    resume: Path | None = None
    """Run folder to resume."""

    resume_previous: bool = False
    """Where the last checkpoint of ``resume`` is damaged, go back to the one before it."""

    trust: bool = False
    """Import the code that ``resume`` names."""

    checkpoint: str = ""
    """Name of the checkpoint of ``resume`` to continue from; empty is the last."""
