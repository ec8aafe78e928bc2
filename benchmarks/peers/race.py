"""Race training loops: ``python -m benchmarks.peers.race --hidden 128 256 --minibatches 1 4``.

Contestants are processes that run for the whole race and take turns, in another order every
round, so that a busy machine slows all of them alike. Prints median seconds of an iteration and
each one's ratio to ours, the median over rounds, and writes them to ``--out`` as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("ours", "torch_mappo", "jax_mappo", "benchmarl_mappo")


class Contestant:
    """A process that iterates when asked to."""

    def __init__(
        self, name: str, hidden: int, minibatches: int, python: str, threads: int, device: str
    ) -> None:
        flags = f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'}"
        threading = {"OMP_NUM_THREADS": str(threads), "XLA_FLAGS": flags}
        threading |= {"PEER_DEVICE": device, "JAX_PLATFORMS": device}
        command = [python, "-m", "benchmarks.peers.contestant", name, str(hidden), str(minibatches)]
        processors = sorted(os.sched_getaffinity(0))[:threads]
        self.name = name
        self.process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **threading}, text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, processors),  # XLA takes all it finds
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.setup = self._answer()["setup"]

    def iterate(self) -> float:
        """Seconds of one iteration."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._answer()["iteration"]

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"error: {self.name} ended with status {self.process.wait()}")
        answer: dict[str, float] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def race(contestants: list[Contestant], rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of each, and its ratio to ``ours``."""
    seconds: dict[str, list[float]] = {one.name: [] for one in contestants}
    for _ in range(rounds):
        random.shuffle(contestants)
        for one in contestants:
            seconds[one.name].append(one.iterate())
    ours = seconds["ours"]
    return {
        name: {
            "seconds": statistics.median(times),
            "over_ours": statistics.median(t / own for t, own in zip(times, ours, strict=True)),
        }
        for name, times in seconds.items()
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.race", description=__doc__)
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--minibatches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--only", nargs="+", default=list(NAMES[:3]), choices=NAMES)
    parser.add_argument("--benchmarl", metavar="PYTHON", help="Python that has BenchMARL and VMAS")
    parser.add_argument("--out", type=Path)
    return parser.parse_args(arguments)


def main() -> None:
    """Entry point."""
    options = parse()
    names = ["ours", *(name for name in options.only if name != "ours")]
    if options.benchmarl and "benchmarl_mappo" not in names:
        names.append("benchmarl_mappo")
    table = []
    for hidden in options.hidden:
        for minibatches in options.minibatches:
            contestants: list[Contestant] = []
            try:
                for name in names:
                    python = sys.executable
                    if name == "benchmarl_mappo":
                        python = options.benchmarl or python
                    contestants.append(
                        Contestant(
                            name, hidden, minibatches, python, options.threads, options.device
                        )
                    )
                results = race(contestants, options.rounds)
            finally:
                for one in contestants:
                    one.close()
            row = {"hidden": hidden, "minibatches": minibatches, "results": results}
            table.append(row)
            print(f"width {hidden}, {minibatches} minibatches an epoch", flush=True)
            for name, found in results.items():
                print(
                    f"  {name:16} {found['seconds']:7.3f} s   {found['over_ours']:5.2f} x ours",
                    flush=True,
                )
            if options.out:
                options.out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
