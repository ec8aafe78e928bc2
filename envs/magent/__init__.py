"""Crowds on a grid (the package ``magent2``; Zheng et al., 2018, arXiv:1712.00600)."""

import os
from collections.abc import Callable
from typing import Any

from mg2l.envs import optional, registry
from mg2l.envs.base import VectorEnv
from mg2l.envs.magent import config as keys
from mg2l.envs.magent import scripted


def _factory(module: str, name: str) -> Callable[[Any, int, int], VectorEnv]:
    def build(config: Any, num_envs: int, seed: int) -> VectorEnv:
        # The package sets this variable when it is imported, though it has no threads itself: it
        # would decide how many the processes that we start use.
        threads = os.environ.get("OMP_NUM_THREADS")
        optional.load("magent2", "magent")
        if threads is None:
            os.environ.pop("OMP_NUM_THREADS", None)
        family = optional.load(f"mg2l.envs.magent.{module}", "magent")
        made: VectorEnv = getattr(family, name)(config, num_envs, seed)
        return made

    return build


registry.register(
    "magent-gather", keys.GatherConfig, _factory("gather", "GatherEnv"), scripted.foragers
)
registry.register("magent-battle", keys.BattleConfig, _factory("battle", "BattleEnv"))
registry.register("magent-pursuit", keys.PursuitConfig, _factory("pursuit", "PursuitEnv"))
