"""Packages that only some families need."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from mg2l.schema import ConfigError


def load(module: str, extra: str) -> Any:
    """Import a module of an optional package.

    Args:
        module: such as ``rware.warehouse``.
        extra: the extra of mg2l that installs it.

    Raises:
        ConfigError: the package is not installed; one line that says what to install.
    """
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"this environment needs the package {package}; install it with: "
            f'pip install -c constraints.txt -e ".[{extra}]"'
        )
    return importlib.import_module(module)
