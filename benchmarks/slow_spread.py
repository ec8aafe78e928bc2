"""mpe-spread whose steps take a given time more, for benchmarks (``module:`` of an env file)."""

from __future__ import annotations

import time
from dataclasses import dataclass

from mg2l.core.schema import bounded
from mg2l.envs import registry
from mg2l.envs.particle.spread import Spread, SpreadConfig
from mg2l.envs.particle.world import Doubles, World, factory


@dataclass
class SlowConfig(SpreadConfig):
    """mpe-spread, whose steps take time."""

    step_us: float = bounded(0.0, ge=0)
    """Time that a step of one sub-environment takes [us]."""


class Slow(Spread):
    """Sleeps as long as the steps of all sub-environments take, one after the other."""

    def __init__(self, config: SlowConfig) -> None:
        super().__init__(config)
        self.seconds = config.step_us * 1e-6

    def reward(self, world: World) -> Doubles:
        if self.seconds:
            time.sleep(self.seconds * world.task.shape[0])
        return super().reward(world)


registry.register("slow-spread", SlowConfig, factory(Slow))
