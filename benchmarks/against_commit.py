"""Race iterations of this tree and of a commit: ``python benchmarks/against_commit.py c40242a``.

The commit is checked out below ``--folder``, its operators are compiled there, and both train with
the Python that runs this, each in a process of its own that lives through the race. Iterations
alternate, in another order every round, so that a busy machine slows both alike. Prints seconds to
the end of the first iteration, with the exploration and the encoder updates before it, then median
seconds of an iteration, wall time and time on the processor, and the median ratio over rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVS = ("mpe-spread", "mpe-hunting", "mujoco-cheetah-dir")

CONTESTANT = """
import json, resource, sys, time
import torch
try:
    from mg2l.config.files import load_config
    from mg2l.training.learner import Learner
    from mg2l.training.loop import exempt_from_gc, iterate
except ModuleNotFoundError:  # where they were at c40242a
    from mg2l.algo.learner import Learner
    from mg2l.loading import load_config
    from mg2l.train import iterate
    exempt_from_gc = lambda: None  # training did not do it yet

algo, env, *values = sys.argv[1:]
config = load_config("default", algo, env, ["n_iters=1000000", *values])
begun = time.perf_counter()
learner = Learner(config, torch.device("cpu"))
exempt_from_gc()  # as training does
learner.prepare()
done = 0
for line in sys.stdin:
    wall, processor = time.perf_counter(), time.process_time()
    metrics = iterate(learner, done)
    done += 1
    times = {k: v for k, v in metrics.items() if k.startswith("time/")}
    seconds = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
    if done == 1:
        seconds["first"] = time.perf_counter() - begun
    seconds["gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(seconds | times), flush=True)
"""


def build(commit: str, folder: Path) -> Path:
    """Check a commit out and compile its operators, unless they are there."""
    tree = folder / commit
    if not (tree / "mg2l" / "_C.abi3.so").exists():
        tree.mkdir(parents=True, exist_ok=True)
        archive = subprocess.run(
            ["git", "archive", commit], cwd=ROOT, check=True, capture_output=True
        )
        subprocess.run(["tar", "x"], cwd=tree, input=archive.stdout, check=True)
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        subprocess.run(command, cwd=tree, check=True, env={**os.environ, "MG2L_CUDA": "0"})
    return tree


class Contestant:
    """Trains in a process of its own, an iteration whenever asked."""

    def __init__(self, tree: Path, algo: str, env: str, values: list[str], threads: int) -> None:
        environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", CONTESTANT, algo, env, *values], cwd=tree, env=environment,
            text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def iterate(self) -> dict[str, float]:
        """Seconds of one iteration."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):
                seconds: dict[str, float] = json.loads(line)
                return seconds
        raise SystemExit(f"error: a contestant ended with status {self.process.wait()}")

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def race(contestants: dict[str, Contestant], rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of each by phase, and ``ratio``, the first one's over the second's."""
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    order = list(contestants)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            seconds[name].append(contestants[name].iterate())
    results = {
        name: {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        for name, rows in seconds.items()
    }
    first, second = seconds.values()
    results["ratio"] = {
        key: statistics.median(a[key] / b[key] for a, b in zip(first, second, strict=True))
        for key in ("wall", "processor", "gb")
    }
    return results


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit", help="what to race against")
    parser.add_argument("values", nargs="*", help="key=value of the configuration of both")
    parser.add_argument("--algo", default="mg2l")
    parser.add_argument("--envs", nargs="+", default=list(ENVS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "mg2l-races")
    options = parser.parse_args()
    trees = {options.commit: build(options.commit, options.folder.resolve()), "this tree": ROOT}
    for env in options.envs:
        contestants: dict[str, Contestant] = {}
        first = {}
        try:
            for name, tree in trees.items():  # which begin one after the other
                one = Contestant(tree, options.algo, env, options.values, options.threads)
                contestants[name] = one
                first[name] = one.iterate()["first"]
            results = race(contestants, options.rounds)
        finally:
            for one in contestants.values():
                one.close()
        print(f"{options.algo} on {env}, whose first iterations ended after", flush=True)
        print(" ", *(f"{name} {seconds:.2f}" for name, seconds in first.items()), flush=True)
        for name, found in results.items():
            print(
                f"  {name:10}", *(f"{key} {value:.3f}" for key, value in found.items()), flush=True
            )


if __name__ == "__main__":
    main()
