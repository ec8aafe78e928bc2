"""Packages that only some commands, options and environments need."""

from __future__ import annotations

import importlib.util

from mg2l.core.schema import ConfigError


def installed(module: str) -> bool:
    """Whether a top-level module can be imported; it is not imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # imported from no file
        return True


def require(what: str, *modules: str, extra: str) -> None:
    """Check that optional packages are installed.

    Args:
        what: what needs them, for the message.
        modules: top-level modules, such as ``sklearn``.
        extra: the extra of mg2l that installs them.

    Raises:
        ConfigError: one is missing; one line that names it and what to install.
    """
    missing = [module for module in modules if not installed(module)]
    if missing:
        packages = "packages" if len(missing) > 1 else "package"
        raise ConfigError(
            f"{what} needs the {packages} {', '.join(missing)}; install with: "
            f'pip install "mg2l[{extra}]"'
        )
