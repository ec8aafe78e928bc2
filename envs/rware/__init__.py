"""Warehouses of robots (RWARE, Papoudakis et al., 2021, arXiv:2006.07869)."""

import importlib.util
from typing import Any

from mg2l.core.schema import ConfigError
from mg2l.envs import optional, registry
from mg2l.envs.base import VectorEnv
from mg2l.envs.rware.layouts import LayoutConfig


def _layout(config: Any, num_envs: int, seed: int) -> VectorEnv:
    if config.simulator == "package":
        optional.load("rware", "rware")
        from mg2l.envs.rware.package import PackageLayoutEnv

        return PackageLayoutEnv(config, num_envs, seed)
    if importlib.util.find_spec("mg2l._warehouse") is None:
        raise ConfigError(
            "simulator=native needs mg2l with compiled parts, which this installation does not "
            "have; use simulator=package"
        )
    from mg2l.envs.rware.warehouse import LayoutEnv

    return LayoutEnv(config, num_envs, seed)


registry.register("rware-layout", LayoutConfig, _layout)
