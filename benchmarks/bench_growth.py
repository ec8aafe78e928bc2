"""How time and peak memory of a training iteration grow with the size of the problem.

``python benchmarks/bench_growth.py --plot docs/growth.png`` measures every axis, and draws it; each
point is a `mg2l` run in a process of its own, so that its peak memory is its own. A point is the
fastest of the iterations after the first, without exploration; memory is the process's, libraries
included. On one thread, the default, seconds are those on the processor, which other work on the
machine changes little; on several they are the wall clock's, for an idle machine.

``--point agents=32 critic=pooled`` measures one, with any overrides. ``--points FILE`` keeps all
that were measured, by this command and by earlier ones, and what is drawn is what it holds:
``--axes agents --sizes 64 --points docs/growth.json --plot docs/growth.png`` replaces one.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Axis(NamedTuple):
    """What grows."""

    env: str
    key: str
    sizes: list[int]
    label: str
    overrides: tuple[str, ...] = ()
    """``key=value`` at all sizes."""


TEAMS = [2, 4, 8, 16, 32, 64]

AXES = {
    "agents": Axis("mpe-spread", "n_agents", TEAMS, "agents, critic: joint"),
    "pooled-agents": Axis(
        "mpe-spread", "n_agents", TEAMS, "agents, critic: pooled", ("critic=pooled",)
    ),
    "foragers": Axis(
        "magent-gather", "n_agents", TEAMS, "agents, magent-gather", ("n_ae_rollout_threads=6",)
    ),
    "tasks": Axis("mpe-goals", "n_tasks", [3, 10, 30, 100, 300, 1000], "tasks"),
    "sub-environments": Axis(
        "mpe-spread", "n_rollout_threads", [32, 128, 512, 1024, 4096], "sub-environments"
    ),
    "contexts": Axis(
        "mpe-spread", "update_contexts", [100, 300, 1000, 3000, 10_000], "contexts of an update"
    ),
    "transitions": Axis(
        "mpe-spread", "ae_batch_size", [100, 300, 1000, 3000, 10_000], "transitions of a context"
    ),
}
"""Observations of `mpe-spread` hold the positions of all agents and landmarks, of which there is
one more: the numbers that a team observes are quadratic in agents, and joint critics' first layers,
one for each agent, which read all of them, are cubic. Those of `magent-gather` have one width.
Tasks are those of training, contexts all those of an encoder update, and transitions those of a
context from which actors' and critics' latents are inferred."""

PHASES = ("rollout", "ppo", "encoder")

UNCHANGED = {"n_init_updates": 1, "n_init_rollouts": 1, "n_ae_rollout_threads": 32, "gpu_id": -1}
"""Keys that an iteration does not depend on, at values with which the first comes soon."""


def timed(clock: Callable[[], float], seconds: dict[str, float], phase: str, work: Any) -> Any:
    """What ``work`` returns; the seconds that it took are ``seconds[phase]``."""
    start = clock()
    result = work()
    seconds[phase] = clock() - start
    return result


def measure(
    axis: Axis, size: int, overrides: list[str], rounds: int, threads: int
) -> dict[str, float]:
    """Seconds of each phase of an iteration and peak memory [GB] of this process."""
    import torch

    from mg2l.config.files import load_config
    from mg2l.training.learner import Learner

    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    given: dict[str, Any] = {}
    for pair in [*axis.overrides, *overrides]:
        name, _, value = pair.partition("=")
        given[name] = int(value) if value.lstrip("-").isdigit() else value
    algo, env = given.pop("algo", "mg2l"), given.pop("env", axis.env)
    keys = {axis.key: size}
    if axis.key == "n_agents" and env == "mpe-spread":  # as many are a task
        keys["n_landmarks"] = size + 1
    config = load_config(algo=algo, env=env, overrides=UNCHANGED | keys | given)
    learner = Learner(config, torch.device("cpu"))
    learner.prepare()
    found: list[dict[str, float]] = []
    for _ in range(rounds + 1):
        seconds: dict[str, float] = {}
        tasks = learner.draw_tasks()
        rollout = timed(clock, seconds, "rollout", lambda: learner.collect(tasks))  # noqa: B023
        timed(clock, seconds, "ppo", lambda: learner.update_policy(rollout, tasks))  # noqa: B023
        timed(clock, seconds, "encoder", learner.update_inference)
        found.append({"all": sum(seconds.values())} | seconds)
    learner.close()
    best = min(found[1:], key=lambda times: times["all"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {name: round(value, 3) for name, value in (best | {"gb": peak}).items()}


def point(axis: str, size: int, arguments: list[str]) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--point", f"{axis}={size}", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


Points = dict[str, dict[int, dict[str, float]]]
"""What `measure` returned at each size of each axis."""


def read(path: Path | None) -> Points:
    """Points of earlier commands."""
    if path is None or not path.exists():
        return {}
    held: dict[str, dict[str, dict[str, float]]] = json.loads(path.read_text())
    return {axis: {int(size): found for size, found in of.items()} for axis, of in held.items()}


def ordered(points: Points) -> Points:
    """All axes in the order of `AXES`, with growing sizes."""
    return {axis: dict(sorted(points[axis].items())) for axis in AXES if axis in points}


def table(points: Points) -> str:
    """Rows of Markdown: sizes, seconds and memory of each axis, and slopes."""
    lines = []
    for axis, found in points.items():
        sizes = list(found)
        cells = [", ".join(f"{size:,}" for size in sizes)]
        for name in ("all", "gb"):
            values = [found[size][name] for size in sizes]
            cells.append(", ".join(f"{value:.3g}" for value in values))
            if len(sizes) > 1:
                cells.append(f"{exponent(sizes, values):.2f}")
        lines.append(f"| {AXES[axis].label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def exponent(sizes: list[int], values: list[float]) -> float:
    """Slope of the last two points in logarithms: 1 is linear."""
    return math.log(values[-1] / values[-2]) / math.log(sizes[-1] / sizes[-2])


def draw(path: str, points: Points) -> None:
    """One column per axis: seconds of an iteration and its phases above, peak memory below.

    A dotted line through the last point is linear.
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FixedLocator, NullLocator

    shape = (2.6 * len(points), 4.6)
    figure, rows = plt.subplots(2, len(points), figsize=shape, sharex="col", squeeze=False)
    for (above, below), (axis, found) in zip(rows.T, points.items(), strict=True):
        sizes = list(found)
        for phase in ("all", *PHASES):
            times = [found[size][phase] for size in sizes]
            style = {"color": "black"} if phase == "all" else {"alpha": 0.6}
            above.loglog(sizes, times, "o-", markersize=3, label=phase, **style)
        below.loglog(
            sizes, [found[size]["gb"] for size in sizes], "o-", markersize=3, color="black"
        )
        for axes, name in ((above, "all"), (below, "gb")):
            last = found[sizes[-1]][name]
            axes.loglog(sizes, [last * size / sizes[-1] for size in sizes], ":", color="grey")
            low = min(found[size][n] for size in sizes for n in ("all", *PHASES)) / 1.5
            axes.set_ylim(bottom=low if name == "all" else 0.2)
        below.set_xlabel(AXES[axis].label)
        for axes in (above, below):
            axes.xaxis.set_major_locator(FixedLocator(sizes[::2]))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(lambda size, _: f"{size:,.0f}")
            axes.yaxis.set_minor_locator(NullLocator())
        below.yaxis.set_major_locator(FixedLocator([0.25, 0.5, 1, 2, 4, 8, 16]))
        below.yaxis.set_major_formatter("{x:g}")
    rows[0, 0].set_ylabel("s per iteration")
    rows[1, 0].set_ylabel("peak memory [GB]")
    rows[0, 0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main() -> None:
    """Measure one point, or every axis."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", help="key=value of the configuration")
    parser.add_argument("--point", help="AXIS=SIZE: measure it in this process")
    parser.add_argument("--axes", nargs="*", default=list(AXES), choices=list(AXES))
    parser.add_argument("--sizes", nargs="+", type=int, help="of every axis, instead of its own")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--points", type=Path, help="file that keeps what was measured")
    parser.add_argument("--plot", help="file to draw into")
    args = parser.parse_args()
    if args.point:
        name, _, size = args.point.partition("=")
        found = measure(AXES[name], int(size), args.overrides, args.rounds, args.threads)
        print(json.dumps(found))
        return
    points = read(args.points)
    arguments = [*args.overrides, f"--rounds={args.rounds}", f"--threads={args.threads}"]
    for name in args.axes:
        for size in args.sizes or AXES[name].sizes:
            points.setdefault(name, {})[size] = point(name, size, arguments)
            print(f"{name} {size}: {points[name][size]}", flush=True)
            points = ordered(points)
            if args.points is not None:
                args.points.write_text(json.dumps(points, indent=1) + "\n")
    print(table(points))
    if args.plot:
        draw(args.plot, points)


if __name__ == "__main__":
    main()
