"""The environment's spaces and tasks, written beside a run's networks.

With it a trained team is loaded and acts where the environment itself is not installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike

from mg2l.core.files import read_json, write_json
from mg2l.core.schema import ConfigError
from mg2l.envs.actions import Space
from mg2l.envs.base import EnvConfig, Info, TaskSet, VectorEnv

FILE = "spaces.json"

MAX_WIDTH = 2**24
"""Numbers in an observation or an action, and actions to choose from, at most."""

SHAPE = {
    "observations": [int],
    "actions": [
        {
            "box?": {"low": [(float, None)], "high": [(float, None)]},
            "discrete?": int,
            "choices?": [int],
            "bits?": int,
        }
    ],
    "image": ([int], None),
    "shared_reward?": bool,
    "tasks": {
        "names": [str],
        "features": [[float]],
        "n_train": int,
        "n_test": int,
        "n_validation?": int,
    },
}


def write(path: Path, env: VectorEnv) -> None:
    """Write the spaces and tasks of an environment.

    Raises:
        WriteError: the disk refuses.
    """
    tasks = env.tasks
    write_json(
        path,
        {
            "observations": [int(space.shape[0]) for space in env.observation_spaces],
            "actions": [_describe(space) for space in env.action_spaces],
            "image": None if env.image is None else list(env.image),
            "shared_reward": env.shared_reward,
            "tasks": {
                "names": list(tasks.names),
                "features": np.asarray(tasks.features, float).tolist(),
                "n_train": tasks.n_train,
                "n_test": len(tasks.test_ids),
                "n_validation": tasks.n_validation,
            },
        },
    )


def _describe(space: spaces.Space[Any]) -> dict[str, Any]:
    if isinstance(space, spaces.Discrete):
        return {"discrete": int(space.n)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"choices": space.nvec.tolist()}
    if isinstance(space, spaces.MultiBinary):
        return {"bits": int(np.prod(space.shape))}
    assert isinstance(space, spaces.Box)
    bounds = {"low": space.low, "high": space.high}
    return {
        "box": {
            name: [float(x) if np.isfinite(x) else None for x in values]
            for name, values in bounds.items()
        }
    }


class SpacesOnly(VectorEnv):
    """Spaces and tasks of an environment that is not installed: it cannot be reset or stepped.

    Args:
        path: what `write` wrote, which may come from anywhere.
        config: config of the environment.
        num_envs: sub-environments N.

    Raises:
        FileError: the file is missing or damaged.
        ConfigError: it describes no environment.
    """

    def __init__(self, path: Path, config: EnvConfig, num_envs: int) -> None:
        content = read_json(path, SHAPE, inside=path.parent)
        tasks = content["tasks"]
        try:
            self.observation_spaces = tuple(
                spaces.Box(-np.inf, np.inf, (_width(size),)) for size in content["observations"]
            )
            self.action_spaces = tuple(_space(described) for described in content["actions"])
            if not 1 <= len(self.observation_spaces) == len(self.action_spaces):
                raise ValueError("needs a space of observations and of actions for each agent")
            features = np.asarray(tasks["features"], np.float32)
            params: list[dict[str, Any]] = [{} for _ in tasks["names"]]
            counts = (tasks["n_train"], tasks["n_test"], tasks.get("n_validation", 0))
            self.tasks = TaskSet(params, features, tasks["names"], *counts)
            image = content["image"]
            self.shared_reward = content.get("shared_reward", False)
            self.image = None if image is None else (image[0], image[1], image[2])
        except (ValueError, LookupError) as error:
            raise ConfigError(f"{path}: describes no environment: {error}") from None
        self.num_envs, self.num_agents = num_envs, len(self.observation_spaces)
        self.max_ep_len = config.max_ep_len
        self.task_ids = np.zeros(num_envs, np.int64)

    def reset(self, seed: Any = None, task_ids: ArrayLike | None = None) -> Any:
        raise self._missing()

    def step(self, actions: ArrayLike) -> Any:
        raise self._missing()

    def render(self, index: int = 0) -> Any:
        raise self._missing()

    def state_dict(self) -> Info:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing: it has no state."""

    def _missing(self) -> RuntimeError:
        return RuntimeError("this team was loaded without its environment; it can only act")


def _width(size: int) -> int:
    if not 1 <= size <= MAX_WIDTH:
        raise ValueError(f"a width must be in [1, {MAX_WIDTH}], got {size}")
    return size


def _space(described: dict[str, Any]) -> Space:
    if "discrete" in described:
        return spaces.Discrete(_width(described["discrete"]))
    if "choices" in described:
        _width(len(described["choices"]))
        return spaces.MultiDiscrete([_width(count) for count in described["choices"]])
    if "bits" in described:
        return spaces.MultiBinary(_width(described["bits"]))
    low, high = (
        np.array([limit if x is None else x for x in described["box"][name]], np.float32)
        for name, limit in (("low", -np.inf), ("high", np.inf))
    )
    if len(low) != len(high):
        raise ValueError("low and high of a box differ in length")
    _width(len(low))
    return spaces.Box(low, high)
