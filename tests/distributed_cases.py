"""Gradients of runs of W processes, for tests.

``torchrun --nproc-per-node W tests/distributed_cases.py OUT [CASE ...]``: every case is trained for
one iteration after its exploration. The main process writes what came out of each: gradients at
each optimiser's steps, whether networks and random streams of all processes are equal bit for bit,
and a hash of them.
"""

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from method_helpers import TINY
from mixed_envs import Yard, YardConfig
from numpy.typing import NDArray

from mg2l.config.files import load_config
from mg2l.core.distributed import world
from mg2l.envs import registry
from mg2l.nn.adam import Adam
from mg2l.training.learner import Learner
from mg2l.training.loop import iterate
from mg2l.training.random_state import random_state

SIZES: dict[str, Any] = {
    **TINY,
    "n_rollout_threads": 8,
    "rollout_threads_divisor": 1,
    "n_ae_rollout_threads": 4,
    "n_training_threads": 1,
    "n_init_updates": 1,  # the first steps of other optimisers follow it, and its rounding
    "update_contexts": 12,
    "update_trajectories": 4,
    "elbo_terms": 3,
    "decoded_steps": 4,
    "generated_negatives": 3,
    "data_chunk_length": 5,
}


@dataclass
class MortalYardConfig(YardConfig):
    """A yard whose agents die."""


class MortalYard(Yard):
    """Each agent but the first dies at a step that is drawn as the episode begins."""

    def __init__(self, config: MortalYardConfig, num_envs: int, seed: Any = 0) -> None:
        self.end = np.zeros((num_envs, 3), np.int64)
        super().__init__(config, num_envs, seed)

    def _begin(self, env_ids: NDArray[np.int64]) -> None:
        super()._begin(env_ids)
        for env_id in env_ids:
            self.end[env_id] = self._streams.generators[env_id].integers(2, 12, 3)
            self.end[env_id, 0] = 99

    def _alive(self) -> Any:
        return self._clock[:, None] < self.end

    def _info(self) -> Any:
        return super()._info() | {"active": self._alive()}


ALGORITHMS = {path.stem: path.stem for path in Path("configs/algo").glob("*.yaml")}
POPART = {"use_popart": True, "use_valuenorm": False}
GRU = {"use_recurrent_policy": True}
Case = tuple[str, str, dict[str, Any]]
OPTIONS: dict[str, Case] = {
    "minibatches": ("mg2l", "mpe-spread", {"num_mini_batch": 3}),
    "gru": ("mg2l", "mpe-spread", {**GRU, "num_mini_batch": 3}),
    "whole sequences": ("mappo", "mpe-spread", {"use_naive_recurrent_policy": True}),
    "popart": ("mg2l", "mpe-spread", POPART),
    "shared": ("mg2l", "mpe-spread", {"share_policy": True}),
    "film": ("mg2l", "mpe-spread", {"conditioning": "film"}),
    "film, held": ("oracle", "mpe-spread", {"conditioning": "film", "num_mini_batch": 3}),
    "own values": ("mappo", "mpe-spread", {"use_centralized_V": False}),
    "running moments": ("mappo", "mpe-spread", {"observation_normalization": "running"}),
    "keys": ("mg2l", "mpe-spread", {"keys": "context", "contrast": "sample"}),
    "local mi": ("mg2l", "mpe-spread", {"local_objective": "mi", "contrast": "sample"}),
    "samples": ("mg2l", "mpe-spread", {"act_on": "sample", "context_refresh": "step"}),
    "unpaired": ("mg2l", "mpe-spread", {"paired_exploration": False, "explore_refresh": 3}),
    "discrete": ("mg2l", "rware-layout", {"num_mini_batch": 2}),
    "mixed team of the mortal": ("mg2l", "mortal-yard", {"num_mini_batch": 3}),
    "mixed team, popart": ("mappo", "mortal-yard", POPART),
    "mixed team, rl2": ("rl2", "mortal-yard", {"num_mini_batch": 2}),
    "mixed team, varibad": ("varibad", "mortal-yard", {}),
    "mixed team, focal": ("focal", "mortal-yard", {}),
    "mixed team, ma-pearl": ("ma-pearl", "mortal-yard", {"share_policy": True}),
}
CASES: dict[str, Case] = {name: (name, "mpe-spread", {}) for name in sorted(ALGORITHMS)} | OPTIONS


def measure(algo: str, env: str, values: dict[str, Any]) -> dict[str, Any]:
    """Gradients at every step of an iteration, by optimiser."""
    chosen = {key: value for key, value in SIZES.items() if key != "n_training_threads"}
    config = load_config("default", algo, env, known(algo, chosen) | values)
    learner = Learner(config, torch.device("cpu"))
    gradients: dict[str, list[torch.Tensor]] = {name: [] for name in learner.optimisers}
    for name, optimiser in learner.optimisers.items():
        record(optimiser, gradients[name])
    learner.prepare()
    metrics = iterate(learner, 0)
    digest = hashlib.sha256()
    for module in learner.modules().values():
        for value in module.state_dict().values():
            digest.update(value.numpy().tobytes())
    digest.update(repr(random_state(learner.generators)["generators"]).encode())
    learner.close()
    return {"gradients": gradients, "hash": digest.hexdigest(), "return": metrics["return"]}


def known(algo: str, values: dict[str, Any]) -> dict[str, Any]:
    """Those of the values that an algorithm has keys for."""
    own = {"update_contexts", "update_trajectories", "elbo_terms", "decoded_steps"}
    own |= {"generated_negatives"}
    with world.local():
        kinds = vars(type(load_config("default", algo).algo))["__dataclass_fields__"]
    return {key: value for key, value in values.items() if key not in own or key in kinds}


def record(optimiser: Adam, into: list[torch.Tensor]) -> None:
    """Note the gradients, clipped, at each step of an optimiser."""
    step = optimiser.step

    def noted() -> None:
        into.append(
            torch.cat([p.grad.flatten() for p in optimiser.parameters if p.grad is not None])
        )
        step()

    optimiser.step = noted  # type: ignore[method-assign]


def main(out: str, names: list[str]) -> None:
    torch.set_num_threads(1)
    registry.register("mortal-yard", MortalYardConfig, MortalYard)
    world.connect()
    world.join(torch.device("cpu"))
    results = {}
    for name in names or CASES:
        found = measure(*CASES[name])
        own = torch.tensor(list(bytes.fromhex(found["hash"])), dtype=torch.uint8)
        everyone = world.gather(own.unsqueeze(0))
        found["equal"] = bool((everyone == everyone[:1]).all())
        results[name] = found
    if world.is_main:
        torch.save(results, out)
        print(json.dumps({name: found["return"] for name, found in results.items()}))
    world.leave()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
