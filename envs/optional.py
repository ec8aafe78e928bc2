"""Packages that only some families need."""

from __future__ import annotations

import importlib
from typing import Any

from mg2l.core.packages import require


def load(module: str, extra: str) -> Any:
    """Import a module of an optional package.

    Args:
        module: such as ``rware.warehouse``.
        extra: the extra of mg2l that installs it.

    Raises:
        ConfigError: the package is not installed; one line that says what to install.
    """
    require("this environment", module.partition(".")[0], extra=extra)
    return importlib.import_module(module)
