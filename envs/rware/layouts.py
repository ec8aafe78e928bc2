"""Keys of all warehouses; those of ``rware-layout``, and its tasks: the layouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mg2l.core.schema import bounded
from mg2l.envs.base import EnvConfig, TaskSet

_GOALS = "....gg...."
_FREE = ".........."
_BOTH, _LEFT, _RIGHT = "..xx..xx..", "..xx......", "......xx.."


def _warehouse(*rows: tuple[str, int]) -> str:
    """Ten rows: a corridor, these between, corridors, and the goals."""
    shelves = [row for row, count in rows for _ in range(count)]
    return "/".join([_FREE, *shelves, *[_FREE] * (8 - len(shelves)), _GOALS])


TRAIN = {
    "both columns": _warehouse((_BOTH, 7)),
    "right column": _warehouse((_RIGHT, 7)),
    "left column": _warehouse((_LEFT, 7)),
    "upper half": _warehouse((_BOTH, 4)),
    "lower half": _warehouse((_FREE, 3), (_BOTH, 4)),
}
"""The five layouts of the original."""

TEST = {
    "upper left and lower right": _warehouse((_LEFT, 4), (_RIGHT, 3)),
    "upper right and lower left": _warehouse((_RIGHT, 4), (_LEFT, 3)),
    "both ends": _warehouse((_BOTH, 2), (_FREE, 3), (_BOTH, 2)),
    "middle": _warehouse((_FREE, 2), (_BOTH, 4)),
}
"""Layouts that are never trained on."""

REQUESTS = {"-easy": 2.0, "": 1.0, "-hard": 0.5}
"""Requested shelves per agent, by difficulty."""


@dataclass
class WarehouseConfig(EnvConfig):
    """Base of all warehouses."""

    sensor_range: int = bounded(2, ge=1, le=50)
    """Cells that a robot sees in each direction."""

    simulator: Literal["native", "package"] = "native"
    """What steps the warehouses: C++, all sub-environments at once, or the package ``rware``, a
    hundred times slower. Both give the same episodes."""

    @property
    def requests(self) -> int:
        """Shelves requested at any time, at least one."""
        raise NotImplementedError


@dataclass
class LayoutConfig(WarehouseConfig):
    """Robots that fetch requested shelves in a warehouse of hidden layout."""

    n_agents: int = bounded(4, ge=1, le=1000)
    """Robots."""

    difficulty: Literal["-easy", "", "-hard"] = ""
    """Shelves requested at any time: 2, 1 or 0.5 per robot."""

    reward_type: Literal["individual", "global", "two_stage"] = "individual"
    """Who is paid for a delivery: the robot that brought the shelf; all robots; or half to the
    robot that brought it, and half when it has put it back."""

    layouts: list[str] = field(default_factory=list)
    """Training layouts instead of the original's five: rows of x (shelf), g (goal) and . (free)
    cells, separated by / or line breaks."""

    test_layouts: list[str] = field(default_factory=list)
    """Test layouts instead of the family's own, none of which is among the training layouts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        layout_tasks(self)  # refuses invalid layouts

    @property
    def requests(self) -> int:
        """See ``WarehouseConfig.requests``."""
        return max(1, int(self.n_agents * REQUESTS[self.difficulty]))


def parse(text: str) -> NDArray[np.str_]:
    """Cells ``[H, W]`` of a layout, lower case.

    Raises:
        ValueError: the rows differ in length, a cell is none of ``x g .``, or there is no goal.
    """
    rows = ["".join(row.split()).lower() for row in text.strip().replace("/", "\n").splitlines()]
    if len({len(row) for row in rows}) != 1 or not rows[0]:
        raise ValueError(f"the rows of a layout must have one length, got {rows}")
    cells = np.array([list(row) for row in rows])
    strange = sorted(set(cells.flat) - set("xg."))
    if strange:
        raise ValueError(f"a layout must consist of x, g and . only, got {''.join(strange)!r}")
    if "g" not in cells:
        raise ValueError(f"a layout must have a goal (g), got {rows}")
    return cells


def layout_tasks(config: LayoutConfig) -> TaskSet:
    """Training layouts first, then the test layouts.

    Features are the cells in which the layouts differ: 1 a shelf, 0 free, -1 a goal, -2 outside.

    Raises:
        ValueError: a layout is invalid, occurs twice, or has too few shelves or cells; there are
            fewer training layouts than ``n_tasks``.
    """
    train = _named(config.layouts, "layouts", "layout") or {n: parse(t) for n, t in TRAIN.items()}
    test = _named(config.test_layouts, "test_layouts", "test layout")
    if not test:
        test = {name: parse(text) for name, text in TEST.items()}
        known = {_key(cells) for cells in train.values()}
        test = {name: cells for name, cells in test.items() if _key(cells) not in known}
    found = [*train.items(), *test.items()]
    if len({_key(cells) for _, cells in found}) < len(found):
        raise ValueError("layouts and test_layouts must all differ, got one twice")
    for name, cells in found:
        shelves = int((cells == "x").sum())
        if shelves <= config.requests:
            raise ValueError(
                f"{name!r} has {shelves} shelves, and n_agents={config.n_agents} with difficulty="
                f"{config.difficulty!r} needs more than the {config.requests} that are requested"
            )
        if cells.size < config.n_agents:
            raise ValueError(f"{name!r} has no room for n_agents={config.n_agents} robots")
    count = config.n_tasks or len(train)
    if count > len(train):
        raise ValueError(f"n_tasks must be at most {len(train)}, got {count}")
    order = np.arange(len(train))
    if count < len(train):
        order = np.random.default_rng(config.task_seed).permutation(len(train))
    found = [*(found[i] for i in order), *found[len(train) :]]
    names = [name for name, _ in found]
    return TaskSet(
        params=[{"layout": "\n".join("".join(row) for row in cells)} for _, cells in found],
        features=_features([cells for _, cells in found]),
        names=names,
        n_train=count,
    ).with_validation(config)


def _named(texts: Sequence[str], key: str, name: str) -> dict[str, NDArray[np.str_]]:
    try:
        return {f"{name} {i}": parse(text) for i, text in enumerate(texts)}
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def _key(cells: NDArray[np.str_]) -> tuple[int, ...]:
    return (*cells.shape, *(ord(cell) for cell in cells.flat))


def _features(layouts: Sequence[NDArray[np.str_]]) -> NDArray[np.float32]:
    height = max(len(cells) for cells in layouts)
    width = max(cells.shape[1] for cells in layouts)
    values = np.full((len(layouts), height, width), -2, np.float32)
    for value, cells in zip(values, layouts, strict=True):
        inside = value[: cells.shape[0], : cells.shape[1]]
        for mark, number in (("x", 1), (".", 0), ("g", -1)):
            inside[cells == mark] = number
    flat = values.reshape(len(layouts), -1)
    differ = (flat != flat[0]).any(axis=0)
    if not differ.any():  # a single layout
        differ[:] = True
    picked: NDArray[np.float32] = flat[:, differ]
    return picked
