"""A run at Weights & Biases."""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mg2l.core.packages import require
from mg2l.core.schema import ConfigError
from mg2l.training.trackers.base import ServiceTracker, reason

_HINT = "WANDB_MODE=offline needs no network; without log_wandb=true nothing of it is used"


def _mode() -> Any:
    """``WANDB_MODE``, or online where a key is at hand, or offline; it never asks for a login."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    try:
        hosts = netrc.netrc().hosts
    except (OSError, netrc.NetrcParseError):
        return "offline"
    return "online" if any("wandb" in host for host in hosts) else "offline"


class WandbRun(ServiceTracker):
    """Starts a run, or resumes the one of the same folder.

    Args:
        folder: the run's; its last three parts are the run's name, and it keeps offline data.
        config: what is shown as the run's config.

    Raises:
        ConfigError: wandb is not installed, or it cannot start.
    """

    name = "wandb"

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        super().__init__()
        require("log_wandb=true", "wandb", extra="wandb")
        import wandb

        name = "-".join(folder.resolve().parts[-3:])
        try:
            self._run: Any = wandb.init(
                project="mg2l",
                name=name,
                id=name,
                resume="allow",
                dir=str(folder),
                config=dict(config),
                mode=_mode(),
            )
        except Exception as error:
            raise ConfigError(
                f"log_wandb=true: wandb cannot start: {reason(error)}; {_HINT}"
            ) from error

    def _log(self, numbers: Mapping[str, float], iteration: int) -> None:
        self._run.log(numbers, step=iteration)

    def _finish(self) -> None:
        self._run.finish()


def start(folder: Path, iteration: int, config: Mapping[str, Any]) -> WandbRun:
    """A run at Weights & Biases, which itself refuses the steps that it has."""
    return WandbRun(folder, config)
