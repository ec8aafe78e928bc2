"""Any environment as a task family: a factory of task parameters, in worker processes.

>>> from mg2l.envs import adapters
>>> def make(params):
...     from mpe2 import simple_spread_v3
...
...     return simple_spread_v3.parallel_env(local_ratio=params["local_ratio"])
>>> adapters.register(
...     "spread-together", make, train=[{"local_ratio": 0.0}, {"local_ratio": 1.0}], test=[]
... )
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from mg2l.envs import registry
from mg2l.envs.adapters.env import AdaptedEnv as AdaptedEnv
from mg2l.envs.adapters.env import AdapterConfig as AdapterConfig
from mg2l.envs.adapters.env import Make, Others
from mg2l.envs.adapters.tasks import Params
from mg2l.envs.adapters.tasks import sample as sample
from mg2l.envs.adapters.tasks import task_set as task_set
from mg2l.envs.base import VectorEnv


def register(
    name: str,
    make: Make,
    train: Sequence[Params],
    test: Sequence[Params],
    team: Sequence[Any] | None = None,
    others: Others | None = None,
) -> None:
    """Register a third-party environment as a task family.

    Args:
        name: what ``family:`` in an env file refers to.
        make: ``make(params)`` gives a PettingZoo parallel environment, or one of gymnasium or of
            classic gym (0.21 or 0.26) with a tuple of spaces. It runs in worker processes and is
            sent there by value, with the names it uses.
        train: parameters of the training tasks, all with the same names.
        test: parameters of the held-out tasks.
        team: names (PettingZoo) or numbers of the agents that are trained; None is all.
        others: ``others(agent, observation, action_space)`` gives the action of an agent that is
            not of the team, in its own space; it is sent to workers like ``make``. If it has a
            ``reset()``, that is called when an episode begins. None acts at random.

    Raises:
        ValueError: the name is taken, or ``others`` is given without ``team``.
    """
    if others is not None and team is None:
        raise ValueError("others must come with team, the agents that it does not act for")
    summary = (make.__doc__ or "").strip().partition("\n")[0]
    keys: type[AdapterConfig] = dataclasses.dataclass(
        type(
            "".join(word.capitalize() for word in name.split("-")) + "Config",
            (AdapterConfig,),
            {"__doc__": summary or f"The environment {name}, in worker processes."},
        )
    )

    def build(config: Any, num_envs: int, seed: int) -> VectorEnv:
        tasks = task_set(train, test, config)
        return AdaptedEnv(name, make, tasks, config, num_envs, seed, team, others)

    registry.register(name, keys, build)
