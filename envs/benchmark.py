"""Environment steps per second: ``python -m mg2l.envs.benchmark mpe-spread mujoco-hopper-param``.

An environment step is one sub-environment stepped once: physics, observations, rewards, and a new
episode where one ends. Actions are random; drawing them is not timed.

With ``--gate``: returns of hand-written teams that know the task, and of those that do not; the
exit status is 1 where these are too close on held-out tasks.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
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
    num_envs: int
    threads: int
    steps_per_s: int
    """Environment steps per second, median of the rounds."""

    fastest: int
    """The same in the fastest round."""


def measure(name: str, config: EnvConfig, num_envs: int, steps: int) -> Speed:
    """Step all sub-environments ``steps`` times in each of several rounds, after one to warm up.

    Raises:
        ConfigError: the family's package is not installed.
    """
    env = registry.make(config, num_envs, seed=0)
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
            rates.append(round(num_envs * steps / seconds))
        threads = len(os.sched_getaffinity(0))
        rates = rates[1:]
        middle = round(statistics.median(rates))
        return Speed(name, env.num_agents, num_envs, threads, middle, max(rates))
    finally:
        env.close()


def show(speeds: list[Speed], console: Console) -> None:
    """A table on a terminal, plain lines elsewhere."""
    if console.is_terminal:
        table = Table("environment", "agents", "num_envs", "threads", "steps/s", "fastest round")
        for s in speeds:
            table.add_row(
                s.env, f"{s.agents}", f"{s.num_envs}", f"{s.threads}", f"{s.steps_per_s:,}",
                f"{s.fastest:,}",
            )  # fmt: skip
        console.print(table)
        return
    for s in speeds:
        print(
            f"{s.env}  {s.steps_per_s:,} steps/s  (fastest round {s.fastest:,}; "
            f"{s.num_envs} sub-environments, {s.agents} agents, {s.threads} threads)"
        )


def show_gates(gates: list[gate.Gate], as_json: bool) -> int:
    """A line per part of the tasks, or one JSON object per environment; returns the exit status.

    It is 1 where a family does not separate, which a line on stderr says.
    """
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
    failed = [found for found in gates if not found.passed]
    for found in failed:
        print(
            f"{found.env}: separation {found.separation[found.decides]:.2f} on {found.decides} "
            f"tasks, expected at least {gate.SEPARATES}",
            file=sys.stderr,
        )
    return int(bool(failed))


@cli.command
def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = cli.Parser(prog="python -m mg2l.envs.benchmark", description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", help="environment, or a YAML file")
    parser.add_argument(
        *("--num-envs", "--copies"),
        type=cli.at_least(1),
        default=32,
        help="sub-environments that are stepped together (default 32)",
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
        help="processors to use (default: all)",
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
        return show_gates([gate.measure(*named) for named in configs.items()], options.json)
    if options.threads is not None and options.threads > len(processors):
        raise ConfigError(
            f"--threads must be at most {len(processors)}, the processors there are, "
            f"got {options.threads}"
        )
    os.sched_setaffinity(0, sorted(processors)[: options.threads])
    try:
        speeds = [
            measure(name, config, options.num_envs, options.steps)
            for name, config in configs.items()
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
