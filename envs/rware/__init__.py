"""Warehouses of robots (RWARE, Papoudakis et al., 2021, arXiv:2006.07869)."""

from collections.abc import Callable
from typing import Any

from mg2l.envs import compiled, optional, registry
from mg2l.envs.base import VectorEnv
from mg2l.envs.rware import scripted
from mg2l.envs.rware.layouts import LayoutConfig
from mg2l.envs.rware.stations import StationConfig


def _factory(name: str) -> Callable[[Any, int, int], VectorEnv]:
    def build(config: Any, num_envs: int, seed: int) -> VectorEnv:
        made: VectorEnv
        if config.simulator == "package":
            optional.load("rware", "rware")
            from mg2l.envs.rware import package

            made = getattr(package, f"Package{name}")(config, num_envs, seed)
        else:
            compiled.require()
            from mg2l.envs.rware import warehouse

            made = getattr(warehouse, name)(config, num_envs, seed)
        return made

    return build


registry.register("rware-layout", LayoutConfig, _factory("LayoutEnv"))
registry.register("rware-station", StationConfig, _factory("StationEnv"), scripted.stations)
