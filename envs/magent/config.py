"""Keys of the ``magent-*`` families and their tasks."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from mg2l.core.schema import bounded
from mg2l.envs.base import EnvConfig, TaskSet

BEHAVIOURS = ("charge", "hold", "wander")
"""Behaviours of ``magent-battle``'s opponents when no agent is within their reach."""

OPPONENT_HP, OPPONENT_DAMAGE = (4.0, 10.0, 20.0), (1.0, 2.0, 4.0)
"""Strengths of the opponents; an agent has 10 and 2."""


@dataclass
class GridConfig(EnvConfig):
    """Keys that all crowds have."""

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

    attack_penalty: float = bounded(0.1, ge=0, le=100)
    """Cost of any attack, bites included."""

    pay: Literal["subsets", "random"] = "subsets"
    """Some kinds pay, 0.5 a bite and 5 the last one; or the last bite of each kind pays a number
    drawn from [``min_pay``, ``max_pay``], and the others nothing."""

    min_pay: float = bounded(-2.0, ge=-100, le=100)
    """With ``pay: random``, the lowest pay."""

    max_pay: float = bounded(5.0, ge=-100, le=100)
    """With ``pay: random``, the highest pay."""

    n_test_tasks: int = bounded(12, ge=0, le=100_000)
    """With ``pay: random``, held-out tasks of the same distribution."""

    n_ood_tasks: int = bounded(8, ge=0, le=100_000)
    """With ``pay: random``, tasks beyond it: one kind pays up to 3 more than ``max_pay``, and the
    others up to 3 less than ``min_pay``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_pay > self.max_pay:
            raise ValueError(f"min_pay={self.min_pay} must be at most max_pay={self.max_pay}")

    others = ("n_foods", "food_per_kind")

    @property
    def sizes(self) -> tuple[int, ...]:
        """See ``GridConfig.sizes``."""
        return (self.n_agents, *[self.food_per_kind] * self.n_foods)


@dataclass
class BattleConfig(GridConfig):
    """A team against an army of hidden strength and behaviour."""

    n_agents: int = bounded(16, ge=1, le=1000)
    """Agents of the team."""

    n_opponents: int = bounded(16, ge=1, le=1000)
    """Opponents."""

    map_size: int = bounded(20, ge=6, le=100)
    """Side of the square map [cells], of which the outermost are walls."""

    n_test_tasks: int = bounded(9, ge=1, le=26)
    """How many of the 27 armies are held out for testing."""

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
    """Probability that a prey runs from the nearest predator; else it moves at random."""

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


def random_tasks(config: GatherConfig) -> TaskSet:
    """Rewards for the last bite of each kind of food, which are also the features.

    Raises:
        ValueError: ``n_tasks`` is 0.
    """
    if not config.n_tasks:
        raise ValueError("pay=random draws n_tasks tasks, which must be at least 1, got 0")
    rng = np.random.default_rng(config.task_seed)
    low, high = config.min_pay, config.max_pay
    inside = rng.uniform(low, high, (config.n_tasks + config.n_test_tasks, config.n_foods))
    beyond = rng.uniform(low - 3, low, (config.n_ood_tasks, config.n_foods))
    rows = np.arange(config.n_ood_tasks)
    beyond[rows, rows % config.n_foods] = rng.uniform(high, high + 3, config.n_ood_tasks)
    pays = np.concatenate([inside, beyond])
    counts = {"train": config.n_tasks, "test": config.n_test_tasks, "ood": config.n_ood_tasks}
    return TaskSet(
        params=[{"pays": tuple(row)} for row in pays.tolist()],
        features=pays.astype(np.float32),
        names=[f"{part} {i}" for part, count in counts.items() for i in range(count)],
        n_train=config.n_tasks,
        n_test=config.n_test_tasks,
    )


def army_tasks(config: BattleConfig) -> TaskSet:
    """Armies of every hp, damage and behaviour, split into training and test by ``task_seed``.

    Features are hp and damage as fractions of the largest, then the behaviour, one-hot.

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
