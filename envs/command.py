"""What the commands of this package share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mg2l.envs import EnvConfig, registry
from mg2l.loading import available, load_config
from mg2l.schema import ConfigError, nearest


def positive(text: str) -> int:
    """An argument that is a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def env_config(name: str, overrides: Sequence[str] = ()) -> EnvConfig:
    """The environment that a name means.

    Args:
        name: a file of ``configs/env``, the path of a YAML file, or a family for its defaults.
        overrides: ``["n_agents=3", ...]``.

    Raises:
        ConfigError: it means none, or an override cannot be.
    """
    files = available("env")
    if name not in files and not name.endswith((".yaml", ".yml")):
        families = registry.names()
        if name not in families:
            known = sorted({*files, *families})
            raise ConfigError(
                f"unknown env {name!r}; choose one of {', '.join(known)}{nearest(name, known)}"
            )
        if not overrides:
            return registry.config_class(name)()
    return load_config(env=name, overrides=overrides).env
