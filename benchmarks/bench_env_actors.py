"""From which cost of a step sub-environments in Ray actors pay.

``python -m benchmarks.bench_env_actors --write docs`` writes its table between its marks into
``scaling.md`` of that folder, after two minutes on two idle cores.

Rollouts of mpe-spread whose steps take a given time more (they sleep, so that a busy machine
changes nothing), collected in this process and by actors, alternating. It starts a Ray of its own
on this machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.bench_scale import put
from mg2l.config.files import load_config
from mg2l.training import loop
from mg2l.training.learner import Learner

SLOW = Path(__file__).with_name("slow_spread.py").resolve()

COSTS = (0, 1, 3, 10, 30, 100, 300)  # [us]


def seconds(learner: Learner) -> float:
    tasks = learner.draw_tasks()
    start = time.perf_counter()
    learner.collect(tasks)
    return time.perf_counter() - start


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--actors", type=int, default=2)
    words.add_argument("--envs", type=int, default=32)
    words.add_argument("--steps", type=int, default=100)
    words.add_argument("--rounds", type=int, default=15)
    words.add_argument("--write", type=Path, metavar="FOLDER", help="of the page, as docs")
    arguments = words.parse_args()
    import ray

    torch.set_num_threads(1)
    ray.init(num_cpus=arguments.actors, include_dashboard=False, log_to_driver=False)
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    lines = [
        f"Rollouts of {arguments.envs} sub-environments x {arguments.steps} steps, medians of "
        f"{arguments.rounds} rounds in turns; {arguments.actors} actors on one machine:",
        "",
        "| a step of one sub-environment [us] | here [ms] | actors [ms] | actors / here |",
        "|---|---|---|---|",
    ]
    print("\n".join(lines))
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "slow.yaml"
        file.write_text(f"family: slow-spread\nmodule: {SLOW}\n")
        for cost in COSTS:
            keys = {
                "step_us": cost, "n_rollout_threads": arguments.envs, "gpu_id": -1,
                "max_ep_len": arguments.steps,
            }  # fmt: skip
            both = [
                loop.build(
                    load_config("default", "mappo", str(file), {**keys, "env_actors": count}),
                    torch.device("cpu"),
                )
                for count in (0, arguments.actors)
            ]
            for learner in both:
                seconds(learner)
            rows = [[seconds(learner) for learner in both] for _ in range(arguments.rounds)]
            here, there = (statistics.median(column) for column in zip(*rows, strict=True))
            ratios.append(statistics.median(there / here for here, there in rows))
            cells = (f"{cost}", f"{here * 1e3:.1f}", f"{there * 1e3:.1f}", f"{ratios[-1]:.2f}")
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
            for learner in both:
                learner.close()
    ray.shutdown()
    lines += ["", verdict(ratios)]
    print(lines[-1])
    if arguments.write:
        put(arguments.write / "scaling.md", "bench_env_actors", lines)


def verdict(ratios: list[float]) -> str:
    """From which cost of a step the ratios, one of each of `COSTS`, are below 1."""
    above = [k for k, ratio in enumerate(ratios) if ratio >= 1]
    if not above:
        return "They pay at every cost of a step."
    last = above[-1]
    if last == len(COSTS) - 1:
        return f"They pay at none of these costs of a step, up to {COSTS[last]} us."
    part = (ratios[last] - 1) / (ratios[last] - ratios[last + 1])
    cost = COSTS[last] + part * (COSTS[last + 1] - COSTS[last])
    return f"They pay from {cost:.0f} us a step of one sub-environment."


if __name__ == "__main__":
    main()
