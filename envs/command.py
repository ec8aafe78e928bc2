"""Helpers that the commands of this package share."""

from __future__ import annotations

from collections.abc import Sequence

from mg2l.config.files import load_config
from mg2l.envs import EnvConfig


def env_config(name: str, overrides: Sequence[str] = ()) -> EnvConfig:
    """The config of the environment that a name refers to.

    Args:
        name: a file of ``configs/env``, the path of a YAML file, or a family for its defaults.
        overrides: ``["n_agents=3", ...]``.

    Raises:
        ConfigError: there is none, or an override is invalid.
    """
    return load_config(env=name, overrides=overrides).env
