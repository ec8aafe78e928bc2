"""How time and peak memory of a training iteration grow with the size of the problem.

``python benchmarks/bench_growth.py --plot docs/growth.png`` measures every axis and draws it; each
point is an `mg2l` run in a process of its own, so that its peak memory is its own. A point is the
fastest of the iterations after the first, without exploration; memory is the process's, libraries
included. ``--point agents=32 critic=pooled`` measures one, with any overrides.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from typing import Any

AXES: dict[str, tuple[str, str, list[int]]] = {
    "agents": ("mpe-spread", "n_agents", [2, 4, 8, 16, 32, 64]),
    "tasks": ("mpe-goals", "n_tasks", [3, 10, 30, 100, 300, 1000]),
    "sub-environments": ("mpe-spread", "n_rollout_threads", [32, 128, 512, 1024, 4096]),
    "contexts": ("mpe-spread", "update_contexts", [100, 300, 1000, 3000, 10_000]),
}
"""Environment, key and sizes of each axis."""

UNCHANGED = {"n_init_updates": 1, "n_init_rollouts": 1, "n_ae_rollout_threads": 32, "gpu_id": -1}
"""Keys that an iteration does not depend on, at values with which the first comes soon."""


def measure(axis: str, size: int, overrides: list[str], rounds: int) -> dict[str, Any]:
    """Seconds of each phase of an iteration and peak memory [GB] of this process."""
    import torch

    from mg2l.config.files import load_config
    from mg2l.training.learner import Learner

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    env, key, _ = AXES[axis]
    given: dict[str, Any] = {}
    for pair in overrides:
        name, _, value = pair.partition("=")
        given[name] = int(value) if value.lstrip("-").isdigit() else value
    algo, env = given.pop("algo", "mg2l"), given.pop("env", env)
    keys = {key: size}
    if axis == "agents" and env == "mpe-spread":  # as many are a task
        keys["n_landmarks"] = size + 1
    config = load_config(algo=algo, env=env, overrides=UNCHANGED | keys | given)
    learner = Learner(config, torch.device("cpu"))
    learner.prepare()
    learner.take_times()
    found: list[dict[str, float]] = []
    for _ in range(rounds + 1):
        start, cpu = time.perf_counter(), time.process_time()
        tasks = learner.draw_tasks()
        learner.update_policy(learner.collect(tasks), tasks)
        learner.update_inference()
        spent = {"time/all": time.perf_counter() - start, "time/cpu": time.process_time() - cpu}
        found.append(learner.take_times() | spent)
    learner.close()
    best = min(found[1:], key=lambda times: times["time/cpu"])
    seconds = {name.removeprefix("time/"): round(value, 3) for name, value in best.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return seconds | {"gb": round(peak, 3)}


def point(axis: str, size: int, overrides: list[str], rounds: int) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--point", f"{axis}={size}", *overrides]
    command.append(f"--rounds={rounds}")
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def exponent(sizes: list[int], values: list[float]) -> float:
    """Slope of the last two points in logarithms: 1 is linear."""
    return math.log(values[-1] / values[-2]) / math.log(sizes[-1] / sizes[-2])


def draw(path: str, results: dict[str, dict[int, dict[str, Any]]]) -> None:
    """One column per axis: seconds of an iteration and its phases above, peak memory below."""
    import matplotlib.pyplot as plt

    figure, rows = plt.subplots(2, len(results), figsize=(3.2 * len(results), 5), sharex="col")
    for (above, below), (axis, points) in zip(rows.T, results.items(), strict=True):
        sizes = list(points)
        for phase in ("all", "rollout", "ppo", "encoder"):
            times = [points[size][phase] for size in sizes]
            style = {"color": "black"} if phase == "all" else {"alpha": 0.6}
            above.loglog(sizes, times, "o-", markersize=3, label=phase, **style)
        last = points[sizes[-1]]["all"]
        above.loglog(sizes, [last * size / sizes[-1] for size in sizes], ":", color="grey")
        below.loglog(sizes, [points[size]["gb"] for size in sizes], "o-", color="black")
        last = points[sizes[-1]]["gb"]
        below.loglog(sizes, [last * size / sizes[-1] for size in sizes], ":", color="grey")
        below.set_xlabel(axis)
    rows[0, 0].set_ylabel("s per iteration")
    rows[1, 0].set_ylabel("peak memory [GB]")
    rows[0, 0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main() -> None:
    """Measure one point, or every axis."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="*", help="key=value of the configuration")
    parser.add_argument("--point", help="AXIS=SIZE: measure it in this process")
    parser.add_argument("--axes", nargs="+", default=list(AXES), choices=list(AXES))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--plot", help="file to draw into")
    args = parser.parse_args()
    if args.point:
        axis, _, size = args.point.partition("=")
        print(json.dumps(measure(axis, int(size), args.overrides, args.rounds)))
        return
    results: dict[str, dict[int, dict[str, Any]]] = {}
    for axis in args.axes:
        sizes = AXES[axis][2]
        results[axis] = {}
        for size in sizes:
            found = results[axis][size] = point(axis, size, args.overrides, args.rounds)
            print(f"{axis} {size}: {found}", flush=True)
        slopes = {n: exponent(sizes, [p[n] for p in results[axis].values()]) for n in ("all", "gb")}
        print(f"{axis}: exponents {slopes}", flush=True)
    if args.plot:
        draw(args.plot, results)


if __name__ == "__main__":
    main()
