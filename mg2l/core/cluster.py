"""Ray clusters."""

from __future__ import annotations

import logging
import os
import time
from typing import Any

from mg2l.core.packages import require
from mg2l.core.schema import ConfigError

QUIET = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_DEDUP_LOGS": "0"}

ATTEMPTS = 4
"""A Ray Client server gives the driver that it starts for us 30 s, which a busy head may miss."""

PAUSE = 5.0
"""Seconds between two attempts."""


def connect(on: str, wanted: str) -> Any:
    """The module ``ray``, connected to a cluster.

    Args:
        on: ``ray://HOST:PORT`` of a Ray Client server, or ``auto`` for the cluster that this
            machine belongs to.
        wanted: what needs it, as messages call it.

    Raises:
        ConfigError: Ray is not installed, nothing answers there, or no driver starts there.
    """
    require(wanted, "ray", extra="ray")
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    try:
        for _ in range(ATTEMPTS):
            failure = _failure(ray, on)
            if failure is None:
                return ray
            ray.shutdown()
            time.sleep(PAUSE)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{wanted}: no Ray cluster answers there: {reason}") from None
    raise ConfigError(f"{wanted}: the Ray cluster cannot start a driver: {failure}")


def _failure(ray: Any, on: str) -> str | None:
    """Connect; why not, where a Ray Client server answers that it could not start a driver."""
    try:
        ray.init(
            address=on, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True
        )
    except ConnectionAbortedError as error:
        return str(error).strip().rpartition("\n")[2]
    return None
