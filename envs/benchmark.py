"""Environment steps per second: ``python -m mg2l.envs.benchmark mpe-spread mujoco-hopper-param``.

An environment step is one copy stepped once: physics, observations, rewards, and a new episode
where one ends. Actions are random, drawn while the clock stands still.

With ``--gate``: what hand-written teams return that know the task, and that do not.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from dataclasses import asdict, dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from mg2l import cli
from mg2l.core.schema import ConfigError
from mg2l.envs import EnvConfig, gate, registry
from mg2l.envs.command import env_config
from mg2l.envs.random_actions import random_actions

ROUNDS = 5


@dataclass(frozen=True)
class Speed:
    """How fast an environment is."""

    env: str
    agents: int
    copies: int
    threads: int
    steps_per_s: int
    """Environment steps per second, median of the rounds."""

    fastest: int
    """The same in the fastest round."""


def measure(name: str, config: EnvConfig, copies: int, steps: int) -> Speed:
    """Step ``copies`` copies ``steps`` times in each of several rounds, the first one unmeasured.

    Raises:
        ConfigError: the family's package is not installed.
    """
    env = registry.make(config, copies, seed=0)
    try:
        rng = np.random.default_rng(0)
        _, info = env.reset(seed=0)
        rates = []
        for _ in range(1 + ROUNDS):
            seconds = 0.0
            for _ in range(steps):
                actions = random_actions(env, rng, info)
                start = time.perf_counter()
                _, _, _, _, info = env.step(actions)
                seconds += time.perf_counter() - start
            rates.append(round(copies * steps / seconds))
        threads = len(os.sched_getaffinity(0))
        rates = rates[1:]
        middle = round(statistics.median(rates))
        return Speed(name, env.num_agents, copies, threads, middle, max(rates))
    finally:
        env.close()


def show(speeds: list[Speed], console: Console) -> None:
    """A table on a terminal, plain lines elsewhere."""
    if console.is_terminal:
        table = Table("environment", "agents", "copies", "threads", "steps/s", "fastest round")
        for s in speeds:
            table.add_row(
                s.env, f"{s.agents}", f"{s.copies}", f"{s.threads}", f"{s.steps_per_s:,}",
                f"{s.fastest:,}",
            )  # fmt: skip
        console.print(table)
        return
    for s in speeds:
        print(
            f"{s.env}  {s.steps_per_s:,} steps/s  (fastest round {s.fastest:,}; {s.copies} copies, "
            f"{s.agents} agents, {s.threads} threads)"
        )


def show_gates(gates: list[gate.Gate], as_json: bool) -> None:
    """A line per part of the tasks, or one JSON object per environment."""
    for found in gates:
        if as_json:
            print(json.dumps({**asdict(found), "separation": found.separation}))
            continue
        for part, informed in found.informed.items():
            print(
                f"{found.env}  {part:5}  random {found.random[part]:.1f}  blind "
                f"{found.blind[part]:.1f} ({found.rule})  informed {informed:.1f}  "
                f"separation {found.separation[part]:.2f}"
            )


@cli.command
def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = cli.Parser(prog="python -m mg2l.envs.benchmark", description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", help="environment, or a YAML file")
    parser.add_argument(
        "--copies", type=cli.at_least(1), default=32, help="stepped at once (default 32)"
    )
    parser.add_argument(
        "--steps",
        type=cli.at_least(1),
        default=200,
        help=f"in each of {ROUNDS} rounds (default 200)",
    )
    parser.add_argument(
        "--threads",
        type=cli.at_least(1),
        help="processors that may be used (default: all there are)",
    )
    parser.add_argument(
        "--gate",
        action="store_true",
        help="instead: returns of random, blind and informed scripted teams, by part of the tasks",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    options = parser.parse_args(arguments)
    processors = os.sched_getaffinity(0)
    configs = {name: env_config(name) for name in options.names}
    if options.gate:
        show_gates([gate.measure(*named) for named in configs.items()], options.json)
        return 0
    if options.threads is not None and options.threads > len(processors):
        raise ConfigError(
            f"--threads must be at most {len(processors)}, the processors there are, "
            f"got {options.threads}"
        )
    os.sched_setaffinity(0, sorted(processors)[: options.threads])
    try:
        speeds = [
            measure(name, config, options.copies, options.steps) for name, config in configs.items()
        ]
    finally:
        os.sched_setaffinity(0, processors)
    if options.json:
        for speed in speeds:
            print(json.dumps(asdict(speed)))
    else:
        show(speeds, Console())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
