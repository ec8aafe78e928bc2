"""Level-based foraging (Christianos et al., 2020, arXiv:2006.07169)."""

from typing import Any

from mg2l.envs import compiled, optional, registry
from mg2l.envs.base import VectorEnv
from mg2l.envs.lbf import scripted
from mg2l.envs.lbf.config import ForagingConfig


def _foraging(config: Any, num_envs: int, seed: int) -> VectorEnv:
    if config.simulator == "package":
        optional.load("lbforaging", "lbf")
        from mg2l.envs.lbf.package import PackageForagingEnv

        return PackageForagingEnv(config, num_envs, seed)
    compiled.require()
    from mg2l.envs.lbf.foraging import ForagingEnv

    return ForagingEnv(config, num_envs, seed)


registry.register("lbf-types", ForagingConfig, _foraging, scripted.foragers)
