"""MG2L: meta multi-agent reinforcement learning by global and local task inference.

>>> import mg2l
>>> run = mg2l.train(algo="mappo", env="mpe-spread", n_iters=1, max_ep_len=5, n_rollout_threads=2)
>>> team = mg2l.load(run)

Everything is imported when it is used, torch too. `mg2l.ops` loads the compiled operators into
``torch.ops.mg2l``, or says that mg2l was installed without.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mg2l import ops
    from mg2l.api.callbacks import BestCheckpoint, Callback, EarlyStopping, Progress
    from mg2l.api.results import Results, results
    from mg2l.api.team import Team, load
    from mg2l.api.training import Training, iterations, train
    from mg2l.config.algorithms import register_algorithm
    from mg2l.core.schema import ConfigError
    from mg2l.envs.registry import register as register_env
    from mg2l.evaluation.results import Run
    from mg2l.training.checkpoint import CheckpointError

_WHERE = {
    "BestCheckpoint": "mg2l.api.callbacks:BestCheckpoint",
    "Callback": "mg2l.api.callbacks:Callback",
    "CheckpointError": "mg2l.training.checkpoint:CheckpointError",
    "ConfigError": "mg2l.core.schema:ConfigError",
    "EarlyStopping": "mg2l.api.callbacks:EarlyStopping",
    "Progress": "mg2l.api.callbacks:Progress",
    "Results": "mg2l.api.results:Results",
    "Run": "mg2l.evaluation.results:Run",
    "Team": "mg2l.api.team:Team",
    "Training": "mg2l.api.training:Training",
    "iterations": "mg2l.api.training:iterations",
    "load": "mg2l.api.team:load",
    "register_algorithm": "mg2l.config.algorithms:register_algorithm",
    "register_env": "mg2l.envs.registry:register",
    "results": "mg2l.api.results:results",
    "train": "mg2l.api.training:train",
}
"""Module and name of each attribute that is imported on first use."""

__all__ = [
    "BestCheckpoint",
    "Callback",
    "CheckpointError",
    "ConfigError",
    "EarlyStopping",
    "Progress",
    "Results",
    "Run",
    "Team",
    "Training",
    "__version__",
    "iterations",
    "load",
    "ops",
    "register_algorithm",
    "register_env",
    "results",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "ops":
        return importlib.import_module("mg2l.ops")  # which makes it an attribute of this package
    if name not in _WHERE:
        raise AttributeError(f"module 'mg2l' has no attribute {name!r}")
    module, _, attribute = _WHERE[name].partition(":")
    value = globals()[name] = getattr(importlib.import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE, "ops"})
