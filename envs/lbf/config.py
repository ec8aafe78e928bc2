"""Keys of ``lbf-types`` and its tasks: what each type of food pays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mg2l.core.schema import bounded
from mg2l.envs.base import TaskSet
from mg2l.envs.continuous import ContinuousConfig, continuous_tasks, one_positive, signed


@dataclass
class ForagingConfig(ContinuousConfig):
    """Foragers among types of food that pay or cost."""

    n_agents: int = bounded(3, ge=1, le=1000)
    """Players."""

    field_size: int = bounded(8, ge=5, le=100)
    """Side of the square field [cells]."""

    n_types: int = bounded(4, ge=2, le=100)
    """Types of food."""

    n_foods: int = bounded(4, ge=1, le=100)
    """Pieces of food, as many of each type as of any other, or one more. They keep a
    minimum distance; with too little room there are fewer."""

    max_level: int = bounded(2, ge=1, le=100)
    """Highest level of a player; levels are drawn again in every episode."""

    sight: int = bounded(8, ge=1, le=100)
    """Cells that a player sees in each direction."""

    cooperative: bool = False
    """Every food needs the three weakest players together; else its level is drawn from 1 up to the
    sum of theirs."""

    penalty: float = bounded(0.0, ge=0, le=100)
    """What a player pays for trying to load food that is too heavy."""

    simulator: Literal["native", "package"] = "native"
    """What steps the sub-environments: C++, all at once, or the package ``lbforaging``, a hundred
    times slower. Both give the same episodes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_agents > self.field_size**2 // 4:
            raise ValueError(
                f"n_agents must be at most {self.field_size**2 // 4}, a quarter of the cells of "
                f"field_size={self.field_size}, got {self.n_agents}"
            )


def type_tasks(config: ForagingConfig) -> TaskSet:
    """Tasks drawn by ``task_seed``; features are the pay of the types."""
    beyond = one_positive(config.n_ood_tasks, config.n_types)
    return continuous_tasks(config, "pay", signed(config.n_types), beyond)
