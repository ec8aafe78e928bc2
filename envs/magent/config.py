"""Keys of the ``magent-*`` families and their tasks."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from mg2l.core.schema import bounded
from mg2l.envs.base import EnvConfig, TaskSet

BEHAVIOURS = ("charge", "hold", "wander")
"""What opponents of ``magent-battle`` do when nobody is within their reach."""

OPPONENT_HP, OPPONENT_DAMAGE = (4.0, 10.0, 20.0), (1.0, 2.0, 4.0)
"""Strengths of the opponents; an agent has 10 and 2."""


@dataclass
class GridConfig(EnvConfig):
    """What all crowds have."""

    map_size: int = bounded(32, ge=6, le=100)
    """Side of the square map [cells], of which the outermost are walls."""

    view_range: int = bounded(3, ge=2, le=50)
    """Cells that an agent sees in each direction."""

    minimap: bool = True
    """Agents also see how each group is spread over the whole map, as coarse as their view is
    wide, and where on it they are."""

    max_ep_len: int = bounded(50, ge=1, le=1_000_000)
    """Steps after which an episode is truncated."""

    def __post_init__(self) -> None:
        super().__post_init__()
        cells = (self.map_size - 2) ** 2
        if 2 * sum(self.sizes) > cells:
            others = " x ".join(f"{key}={getattr(self, key)}" for key in self.others)
            raise ValueError(
                f"map_size={self.map_size} has {cells} free cells, too few for n_agents="
                f"{self.n_agents} and {others}, who may fill half of them"
            )

    others: ClassVar[tuple[str, ...]] = ()
    """Keys whose product is the units that are not of the team."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Units of every group, the team first."""
        return (self.n_agents,)


@dataclass
class GatherConfig(GridConfig):
    """Foragers among kinds of food, some of which pay."""

    n_agents: int = bounded(64, ge=1, le=1000)
    """Foragers."""

    n_foods: int = bounded(3, ge=2, le=6)
    """Kinds of food."""

    food_per_kind: int = bounded(40, ge=1, le=1000)
    """Pieces of each kind."""

    bites: int = bounded(3, ge=1, le=1000)
    """Bites that a piece of food takes."""

    others = ("n_foods", "food_per_kind")

    @property
    def sizes(self) -> tuple[int, ...]:
        """See ``GridConfig.sizes``."""
        return (self.n_agents, *[self.food_per_kind] * self.n_foods)


@dataclass
class BattleConfig(GridConfig):
    """A team against an army of hidden strength and habits."""

    n_agents: int = bounded(16, ge=1, le=1000)
    """Agents of the team."""

    n_opponents: int = bounded(16, ge=1, le=1000)
    """Opponents."""

    map_size: int = bounded(20, ge=6, le=100)
    """Side of the square map [cells], of which the outermost are walls."""

    n_test_tasks: int = bounded(9, ge=1, le=26)
    """Of the 27 armies, how many are held out for testing."""

    others = ("n_opponents",)

    @property
    def sizes(self) -> tuple[int, ...]:
        """See ``GridConfig.sizes``."""
        return (self.n_agents, self.n_opponents)


@dataclass
class PursuitConfig(GridConfig):
    """Predators among kinds of prey, one of which they are after."""

    n_agents: int = bounded(8, ge=1, le=1000)
    """Predators."""

    prey_kinds: int = bounded(3, ge=2, le=6)
    """Kinds of prey."""

    prey_per_kind: int = bounded(4, ge=1, le=1000)
    """Animals of each kind."""

    flight: float = bounded(0.5, ge=0, le=1)
    """How often a prey runs from the nearest predator; else it strays."""

    map_size: int = bounded(20, ge=6, le=100)
    """Side of the square map [cells], of which the outermost are walls."""

    others = ("prey_kinds", "prey_per_kind")

    @property
    def sizes(self) -> tuple[int, ...]:
        """See ``GridConfig.sizes``."""
        return (self.n_agents, *[self.prey_per_kind] * self.prey_kinds)


def paying_tasks(what: str, kinds: int, config: EnvConfig) -> TaskSet:
    """One kind pays in a training task, two in a test task; features are 1 for those that pay.

    Args:
        what: a kind's name.
        kinds: how many there are.
        config: its ``n_tasks`` and ``task_seed``.

    Raises:
        ValueError: there are fewer kinds than ``n_tasks``.
    """
    subsets: list[tuple[int, ...]] = [(kind,) for kind in range(kinds)]
    count = _training(config, kinds)
    if count < kinds:
        order = np.random.default_rng(config.task_seed).permutation(kinds)
        subsets = [subsets[i] for i in order]
    subsets += itertools.combinations(range(kinds), 2)
    features = np.zeros((len(subsets), kinds), np.float32)
    for row, subset in zip(features, subsets, strict=True):
        row[list(subset)] = 1
    return TaskSet(
        params=[{"pays": tuple(bool(pays) for pays in row)} for row in features],
        features=features,
        names=[f"{what} {' and '.join(map(str, subset))}" for subset in subsets],
        n_train=count,
    )


def army_tasks(config: BattleConfig) -> TaskSet:
    """Armies of every hp, damage and behaviour, split into training and test by ``task_seed``.

    Features are hp and damage as shares of the largest, then the behaviour, one-hot.

    Raises:
        ValueError: there are fewer training tasks than ``n_tasks``.
    """
    armies = list(itertools.product(OPPONENT_HP, OPPONENT_DAMAGE, BEHAVIOURS))
    count = _training(config, len(armies) - config.n_test_tasks)
    order = np.random.default_rng(config.task_seed).permutation(len(armies))
    picked = [armies[i] for i in order[:count]]
    picked += [armies[i] for i in order[len(armies) - config.n_test_tasks :]]
    params: list[dict[str, Any]] = [
        {"hp": hp, "damage": damage, "behaviour": behaviour} for hp, damage, behaviour in picked
    ]
    features = [
        [hp / OPPONENT_HP[-1], damage / OPPONENT_DAMAGE[-1], *(b == kind for kind in BEHAVIOURS)]
        for hp, damage, b in picked
    ]
    return TaskSet(
        params=params,
        features=np.array(features, np.float32),
        names=[f"{b}, hp {hp:g}, damage {damage:g}" for hp, damage, b in picked],
        n_train=count,
    )


def _training(config: EnvConfig, available: int) -> int:
    count = config.n_tasks or available
    if count > available:
        raise ValueError(f"n_tasks must be at most {available}, got {count}")
    return count
