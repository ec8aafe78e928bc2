"""Ray clusters."""

from __future__ import annotations

import logging
import os
from typing import Any

from mg2l.core.packages import require
from mg2l.core.schema import ConfigError

QUIET = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_DEDUP_LOGS": "0"}


def connect(on: str, wanted: str) -> Any:
    """The module ``ray``, connected to a cluster.

    Args:
        on: ``ray://HOST:PORT`` of a Ray Client server, or ``auto`` for the cluster that this
            machine belongs to.
        wanted: what needs it, as messages call it.

    Raises:
        ConfigError: Ray is not installed, or nothing answers there.
    """
    require(wanted, "ray", extra="ray")
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    try:
        ray.init(
            address=on, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{wanted}: no Ray cluster answers there: {reason}") from None
    return ray
