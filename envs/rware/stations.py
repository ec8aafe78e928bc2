"""Keys of ``rware-station`` and its tasks: what the stations of a warehouse pay."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from mg2l.core.schema import bounded
from mg2l.envs.base import TaskSet
from mg2l.envs.continuous import OOD, ContinuousConfig, Doubles, continuous_tasks
from mg2l.envs.rware.layouts import WarehouseConfig

STATIONS = 4
LAYOUT = "g.....g\n.x.x.x.\n.x.x.x.\n.x.x.x.\ng.....g"
"""Every shelf stands beside a corridor, and every station can be left on two sides."""


@dataclass
class StationConfig(WarehouseConfig, ContinuousConfig):
    """Robots that bring requested shelves to the station that pays."""

    max_ep_len: int = bounded(100, ge=1, le=1_000_000)
    """Steps after which an episode is truncated."""

    n_agents: int = bounded(2, ge=1, le=4)
    """Robots."""

    sensor_range: int = bounded(1, ge=1, le=50)
    """Cells that a robot sees in each direction."""

    lift_pay: float = bounded(0.25, ge=0, le=100)
    """What is paid for lifting a requested shelf, and taken back where it is put down again without
    having been delivered."""

    n_tasks: int = bounded(24, ge=1, le=100_000)
    """Training tasks."""

    n_test_tasks: int = bounded(8, ge=0, le=100_000)
    """Held-out tasks of the same distribution."""

    @property
    def requests(self) -> int:
        """See ``WarehouseConfig.requests``."""
        return 2 * self.n_agents


def station_tasks(config: StationConfig) -> TaskSet:
    """Tasks drawn by ``task_seed``; every station pays in as many of them as any other.

    Features are the four stations' pay, row by row.
    """
    rng = np.random.default_rng([config.task_seed, OOD])
    beyond = _draw(rng, config.n_ood_tasks, paying=2)
    return continuous_tasks(config, "pay", functools.partial(_draw, paying=1), beyond)


def _draw(rng: np.random.Generator, count: int, paying: int) -> Doubles:
    """``[count, 4]``: from 0.5 to 1 for stations that pay, from -1 to 0 for the others."""
    chosen = list(combinations(range(STATIONS), paying))
    pays = np.zeros((len(chosen), STATIONS), bool)
    for row, stations in zip(pays, chosen, strict=True):
        row[list(stations)] = True
    cost, pay = np.moveaxis(rng.random((count, 2, STATIONS)), 1, 0)
    drawn: Doubles = np.where(np.resize(pays, (count, STATIONS)), 0.5 + 0.5 * pay, cost - 1)
    return drawn
