"""Where metrics go besides ``metrics.jsonl``: one module per tracker, one interface.

A tracker of your own is a `Callback`, whose ``on_iteration`` is given the same metrics.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mg2l.core.packages import require
from mg2l.training.trackers.base import Tracker as Tracker

PACKAGES = {"tensorboard": "", "csv": "", "wandb": "wandb", "mlflow": "mlflow"}
"""Names of the trackers, which the keys ``log_<name>`` turn on; the extra that each needs."""


def chosen(config: Any) -> list[str]:
    """Names of the trackers that a config turns on.

    Raises:
        ConfigError: a package that one needs is not installed.
    """
    names = [name for name in PACKAGES if getattr(config, f"log_{name}")]
    for name in names:
        if extra := PACKAGES[name]:
            require(f"log_{name}=true", extra, extra=extra)
    return names


def start(
    names: list[str], folder: Path, iteration: int, config: Mapping[str, Any]
) -> list[Tracker]:
    """Start trackers of a run.

    Args:
        names: those of `PACKAGES`.
        folder: the run's.
        iteration: of the checkpoint that the run resumes from, or 0. What was logged of later ones
            is removed, or hidden.
        config: shown as the run's config where a tracker shows one.

    Raises:
        ConfigError: one cannot start.
        OSError: one cannot write.
    """
    # Imported here, so that a run does not wait for packages that it does not use.
    modules = (importlib.import_module(f"mg2l.training.trackers.{name}") for name in names)
    return [module.start(folder, iteration, config) for module in modules]
