"""A run at Weights & Biases: never needed, so that training outlives whatever fails there."""

from __future__ import annotations

import netrc
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mg2l.core.packages import require
from mg2l.core.schema import ConfigError

_HINT = "WANDB_MODE=offline needs no network; without log_wandb=true nothing of it is used"


def _mode() -> Any:
    """``WANDB_MODE``, or online where a key is at hand, or offline: it never asks for a login."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    try:
        hosts = netrc.netrc().hosts
    except (OSError, netrc.NetrcParseError):
        return "offline"
    return "online" if any("wandb" in host for host in hosts) else "offline"


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


class WandbRun:
    """Starts a run, or resumes the one of the same folder.

    Args:
        folder: the run's; its last three parts are the run's name, and it keeps offline data.
        config: what is shown as the run's config.

    Raises:
        ConfigError: wandb is not installed, or it cannot start.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
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
                f"log_wandb=true: wandb cannot start: {_reason(error)}; {_HINT}"
            ) from error

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Log numbers by name, of an iteration; where that fails, say so and log no more."""
        self._attempt("log", lambda run: run.log(numbers, step=step))

    def close(self) -> None:
        """Upload what is left and close."""
        self._attempt("finish", lambda run: run.finish())

    def _attempt(self, what: str, call: Any) -> None:
        if self._run is None:
            return
        try:
            call(self._run)
        except Exception as error:
            self._run = None
            print(
                f"wandb: {what} failed: {_reason(error)}; it gets no more metrics of this run, "
                "metrics.jsonl has them all",
                file=sys.stderr,
                flush=True,
            )
