"""Training in which one process fails, for tests: ``FAULT RANK`` and the words of ``mg2l.train``.

Faults: ``nan`` is a reward that is none, ``env`` an environment that cannot continue, ``disk`` one
on which no large file can be written any more.
"""

import importlib
import os
import resource
import sys
from typing import Any

import numpy as np

from mg2l.envs.base import EnvError
from mg2l.envs.particle.world import ParticleEnv

LATER = 70
"""Steps of the process's environments before the fault."""


def main(fault: str, rank: str, words: list[str]) -> int:
    if os.environ["RANK"] == rank:
        if fault == "disk":
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
        else:
            spoil(fault)
    sys.argv[1:] = words
    return int(importlib.import_module("mg2l.train").main())


def spoil(fault: str) -> None:
    step, taken = ParticleEnv.step, 0

    def spoiled(self: ParticleEnv, actions: Any) -> Any:
        nonlocal taken
        taken += 1
        result = step(self, actions)
        if taken > LATER and fault == "env":
            raise EnvError("the simulator is gone")
        if taken > LATER:
            result[1][:] = np.nan
        return result

    ParticleEnv.step = spoiled  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
