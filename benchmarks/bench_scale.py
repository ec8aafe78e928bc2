"""Data-parallel training: iterations of two processes, their messages, and a model fitted to them.

``python -m benchmarks.bench_scale --write docs`` measures on this machine, in about four minutes on
two idle cores, and writes ``scale_out.json``, the plot ``scale_out.png`` and, between their marks,
the tables of ``scaling.md`` into that folder; with ``--fit`` from the measurements that lie there.

Iterations are timed in turns, each process with one thread: of one process while the other idles,
of both at once as runs of their own, of both with as much work each as that one in a single run
(weak scaling), and of both that share its work (strong). First they exchange through memory, as
processes of one machine do, then by Gloo over TCP, as those of two do.
"""

from __future__ import annotations

import argparse
import json
import math
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mg2l.config.files import load_config
from mg2l.core.distributed import world
from mg2l.training.learner import Learner
from mg2l.training.loop import iterate

FLOATS = (1, 1_000, 10_000, 40_000, 120_000, 1_000_000)
"""Sizes of the sums that are timed [float32]."""

KINDS = {
    "one": "one process, the other core idle",
    "beside": "two, each a run of its own",
    "weak": "two, one run, as much work for each (weak)",
    "strong": "two, one run, the same work together (strong)",
}
WAYS = {"memory": "shared memory", "gloo": "Gloo over TCP"}

SIZES = (2, 8, 64, 512)
MEASURED, PAGE, PLOT = "scale_out.json", "scaling.md", "scale_out.png"


# Measuring, by two processes of torchrun.


def learner(algo: str, num_envs: int, times: int) -> Learner:
    """A learner with ``times`` the work of one of ``num_envs`` sub-environments."""
    values = {
        "gpu_id": -1,
        "n_rollout_threads": num_envs * times,
        "n_ae_rollout_threads": 32 * times,
        "n_init_rollouts": 1,
        "n_init_updates": 1,
        "sample_ae_interval": 1_000_000,
    }
    if algo.startswith("mg2l"):
        values["update_contexts"] = 160 * times
    else:
        del values["n_init_updates"]
    made = Learner(load_config("default", algo, "mpe-spread", values), torch.device("cpu"))
    made.prepare()
    return made


def measure(algo: str, num_envs: int, rounds: int) -> dict[str, Any]:
    """Medians over rounds of what an iteration takes, by kind, and of ratios within a round."""
    with world.local():
        alone = learner(algo, num_envs, 1)
    kinds = {
        "one": alone,
        "beside": alone,
        "weak": learner(algo, num_envs, world.size),
        "strong": learner(algo, num_envs, 1),
    }
    rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    for _ in range(rounds + 1):
        for kind, trained in kinds.items():
            world.any(False)
            world.take_counts()
            if kind != "one" or world.is_main:
                with world.local() if kind in ("one", "beside") else nullcontext():
                    row = iterate(trained, 0)
                if kind != "one":  # both have ended when the slower one has
                    row["time/iteration"] = largest(row["time/iteration"])
                rows[kind].append(row)
    return {} if not world.is_main else summary({k: v[1:] for k, v in rows.items()}, alone)


def largest(seconds: float) -> float:
    """The largest value of all processes."""
    return float(world.gather(torch.tensor([seconds], dtype=torch.float64)).max())


def summary(rows: dict[str, list[dict[str, Any]]], alone: Learner) -> dict[str, Any]:
    """Medians over the rounds of each kind."""
    names = ("time/iteration", "time/ppo", "time/encoder", "time/rollout", "time/comm")
    found: dict[str, Any] = {}
    for kind, measured in rows.items():
        medians = {n: statistics.median(r[n] for r in measured) for n in names if n in measured[0]}
        ratios = [
            one["time/iteration"] / row["time/iteration"]
            for one, row in zip(rows["one"], measured, strict=True)
        ]
        found[kind] = medians | {"ratio to one": statistics.median(ratios)}
    for name in ("comm/reductions", "comm/bytes"):
        found["weak"][name] = int(statistics.median(row[name] for row in rows["weak"]))
    ppo = alone.config.ppo
    found["overlapped"] = 2 * ppo.ppo_epoch * ppo.num_mini_batch
    return found


def sums(repeats: int = 200) -> dict[int, float]:
    """Median seconds of a sum over two idle processes, by its bytes."""
    found = {}
    for floats in FLOATS:
        x, seconds = torch.ones(floats), []
        for _ in range(repeats if floats < 500_000 else repeats // 5):
            start = time.perf_counter()
            world.sum(x)
            seconds.append(time.perf_counter() - start)
        found[4 * floats] = statistics.median(seconds)
    return found


def work(out: Path, algo: str, num_envs: int, rounds: int) -> None:
    """What each of the processes does; the main one writes what came out."""
    torch.set_num_threads(1)
    world.connect()
    world.join(torch.device("cpu"))
    found = measure(algo, num_envs, rounds)
    found |= {"sums": sums(), "algo": algo, "num_envs": num_envs, "rounds": rounds}
    if world.is_main:
        out.write_text(json.dumps(found, indent=1) + "\n")
    world.leave()


# The model.


Kind = Callable[[float, float], Callable[[int, float], float]]


class Network(NamedTuple):
    """How long a sum over W processes takes."""

    name: str
    seconds: Callable[[int, float], float]
    """Time for W processes and so many bytes [s]."""
    overlaps: bool = True
    """Whether it sums while a process computes."""


def doubling(latency: float, bandwidth: float) -> Callable[[int, float], float]:
    """Recursive doubling, by which CPUs sum (`World.start_sum`): log2 W steps of all bytes.

    Args:
        latency: of a step [s].
        bandwidth: [B/s].
    """

    def seconds(size: int, count: float) -> float:
        return math.ceil(math.log2(size)) * (latency + count / bandwidth)

    return seconds


def tree(size: int, count: float) -> float:
    """NCCL's model of its own tree with the protocol for small messages (`src/graph/tuning.cc`).

    Nodes have 8 GPUs that are linked by NVLink, and 400 Gbit/s of InfiniBand for each GPU.
    """
    nodes = max(1, size // 8)
    inside = 0.6e-6 * (1.8 if nodes > 1 else 1.0)
    hops = 2 * ((size // nodes - 1) * inside + math.ceil(math.log2(nodes)) * 5e-6)
    return 6.8e-6 + hops + count / (400e9 / 8 * 0.9 / 3.8 / 2)


def expected_maximum(size: int) -> float:
    """Expected maximum of so many standard normal draws."""
    x = np.linspace(-8, 8, 4001)
    below = np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x])
    middle = (x[1:] + x[:-1]) / 2
    return float((middle * np.diff(below**size)).sum())


def adding(latency: float, bandwidth: float) -> Callable[[int, float], float]:
    """What processes do that share memory: each adds the messages of all W (`SharedMemory`).

    Args:
        latency: of a sum [s].
        bandwidth: of a sum of two [B/s].
    """

    def seconds(size: int, count: float) -> float:
        return latency + size / 2 * count / bandwidth

    return seconds


class Model:
    """Seconds of an iteration of W processes with as much work each (weak scaling).

    ``T(W) = T + B m(W) + O max(0, m(W) - h) + skew e(W) / e(2)``: the time T of an iteration on a
    machine on which other processes work, too; B sums that are waited for and O that overlap with
    the computation of other gradients, which takes h; m(W), the time of a sum; and the time by
    which the slowest process is behind, where e(W) is the expected maximum of W normal draws. Skew
    is what two processes take beyond the rest, whatever the reason.

    Args:
        found: what `work` has written.
        kind: time of a sum, of a latency and a bandwidth.
        overlaps: as of a `Network`.
    """

    def __init__(self, found: dict[str, Any], kind: Kind, overlaps: bool = True) -> None:
        sizes = np.array([int(size) for size in found["sums"]], float)
        seconds = np.array(list(found["sums"].values()))
        columns = np.stack([np.ones_like(sizes), sizes], 1) / seconds[:, None]
        solved = np.linalg.lstsq(columns, np.ones_like(sizes), rcond=None)[0]  # relative errors
        self.latency, self.bandwidth = float(solved[0]), 1 / float(max(solved[1], 1e-15))
        weak = found["weak"]
        self.one = float(found["one"]["time/iteration"])
        self.base = float(found["beside"]["time/iteration"])
        self.sums, self.overlapped = int(weak["comm/reductions"]), int(found["overlapped"])
        self.bytes = float(weak["comm/bytes"]) / self.sums
        self.hidden = float(found["one"]["time/ppo"]) / self.overlapped
        self.here = Network("as measured", kind(self.latency, self.bandwidth), overlaps)
        self.skew = max(0.0, weak["time/iteration"] - self.base - self.waiting(2, self.here))

    def waiting(self, size: int, network: Network) -> float:
        """Seconds of an iteration in which all wait for sums."""
        each = network.seconds(size, self.bytes)
        total: float = (self.sums - self.overlapped) * each
        hidden = self.hidden if network.overlaps else 0.0
        return total + self.overlapped * max(0.0, each - hidden)

    def efficiency(self, size: int, network: Network) -> float:
        """``T(1) / T(W)``."""
        skew = self.skew * expected_maximum(size) / expected_maximum(2)
        return float(self.one / (self.base + self.waiting(size, network) + skew))


class Prediction(NamedTuple):
    """Efficiencies of a network, by the model of the processes that were measured."""

    model: Model
    network: Network
    most: int
    """Processes that it can have."""

    def efficiency(self, size: int) -> float | None:
        """``T(1) / T(W)``; None where there can be no such W."""
        return self.model.efficiency(size, self.network) if size <= self.most else None


def models(found: dict[str, Any]) -> dict[str, Model]:
    """One fitted to the measurements of each way to exchange."""
    memory = Model(found["memory"], adding, overlaps=False)
    return {"memory": memory, "gloo": Model(found["gloo"], doubling)}


def predictions(fitted: dict[str, Model]) -> list[Prediction]:
    """What is predicted, from what was measured here."""
    memory, gloo = fitted["memory"], fitted["gloo"]
    # Firestone et al., NSDI 2018; a step also takes what Gloo takes on this machine.
    bandwidth = 1 / (1 / gloo.bandwidth + 8 / 32e9)
    cloud = doubling(gloo.latency + 15e-6, bandwidth)
    inside = adding(memory.latency, memory.bandwidth)
    return [
        Prediction(memory, Network("shared memory of one machine", inside, False), 64),
        Prediction(gloo, Network("gloo, Azure AccelNet (15 us, 32 Gbit/s)", cloud), 512),
        Prediction(memory, Network("nccl, 8 GPUs a node, 400 Gbit/s InfiniBand", tree), 512),
    ]


# Writing.


def table(found: dict[str, Any]) -> list[str]:
    """Lines of Markdown: what was measured, and what is predicted from it."""
    first, fitted = found["memory"], models(found)
    envs = first["num_envs"]
    counts = {"one": f"{envs}", "beside": f"2 x {envs}", "weak": f"{2 * envs}", "strong": f"{envs}"}
    lines = [
        f"Measured: `{first['algo']}` on `mpe-spread`, medians of {first['rounds']} rounds, one "
        "thread a process; the ratio is the median of ratios within a round.",
        "",
        "| processes | exchange | sub-environments | s / iteration | one process / this |",
        "|---|---|---|---|---|",
    ]
    for way, name in WAYS.items():
        for kind, processes in KINDS.items():
            row = found[way][kind]
            ratio = "" if kind == "one" else f"{row['ratio to one']:.2f}"
            exchange = name if kind in ("weak", "strong") else ""
            cells = [processes, exchange, counts[kind], f"{row['time/iteration']:.3f}", ratio]
            lines.append(f"| {' | '.join(cells)} |")
    for way, model in fitted.items():
        weak = found[way]["weak"]
        lines += [
            "",
            f"{WAYS[way]}: an iteration has {model.sums} sums of {weak['comm/bytes'] / 1e6:.1f} MB "
            f"together; {model.overlapped} of them overlap with computation, and "
            f"{weak['time/comm']:.3f} s are waited. Fitted: {1e6 * model.latency:.0f} us for a "
            f"step of a sum, {model.bandwidth / 1e9:.1f} GB/s, {1e3 * model.skew:.0f} ms of skew.",
        ]
    lines += [
        "",
        "**Prediction, not measured**: efficiency of weak scaling, of processes that compute as "
        "fast as this machine's cores do.",
        "",
        "| network | " + " | ".join(f"W = {size}" for size in SIZES[1:]) + " |",
        "|---|" + "---|" * len(SIZES[1:]),
    ]
    for prediction in predictions(fitted):
        values = [prediction.efficiency(size) for size in SIZES[1:]]
        cells = ["" if value is None else f"{value:.2f}" for value in values]
        lines.append(f"| {prediction.network.name} | " + " | ".join(cells) + " |")
    return lines


def plot(found: dict[str, Any], path: Path) -> None:
    """Draw predictions, marked as such, and what was measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    sizes = [2**power for power in range(1, 10)]
    for prediction in predictions(models(found)):
        shown = [size for size in sizes if size <= prediction.most]
        efficiency = [prediction.efficiency(size) or 0.0 for size in shown]
        axes.plot(shown, efficiency, "--", label=f"prediction: {prediction.network.name}")
    for (way, name), mark in zip(WAYS.items(), ("ko", "kx"), strict=True):
        measured = found[way]["weak"]["ratio to one"]
        axes.plot([2], [measured], mark, label=f"measured: {name}, two cores of one machine")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("processes W")
    axes.set_ylabel("efficiency of weak scaling, T(1) / T(W)")
    axes.set_title("Prediction from a model fitted to two processes", fontsize=10)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def write(folder: Path, found: dict[str, Any]) -> None:
    """Write measurements, plot and tables into a folder."""
    lines = table(found)
    print("\n".join(lines))
    (folder / MEASURED).write_text(json.dumps(found, indent=1) + "\n")
    plot(found, folder / PLOT)
    put(folder / PAGE, "bench_scale", [*lines, "", f"![Efficiency by processes]({PLOT})"])


def put(page: Path, name: str, lines: Sequence[str]) -> None:
    """Write lines between the marks of a name into a page."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    head, first, rest = page.read_text().partition(begin)
    _, last, tail = rest.partition(end)
    if not first or not last:
        raise SystemExit(f"{page}: must have the lines {begin} and {end}")
    page.write_text("\n".join([head + begin, *lines, end + tail]))


def start(options: argparse.Namespace, way: str) -> dict[str, Any]:
    """Measure with two processes, for Gloo as if each were on a machine of its own."""
    nodes = 2 if way == "gloo" else 1
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
        free.close()
        out = Path(folder) / MEASURED
        words = [f"--algo={options.algo}", f"--num-envs={options.num_envs}"]
        words += [f"--rounds={options.rounds}", f"--work={out}"]
        torchrun = ["torch.distributed.run", f"--nnodes={nodes}", f"--nproc-per-node={2 // nodes}"]
        torchrun += ["--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", "--local-addr=127.0.0.1"]
        command = [sys.executable, "-m", *torchrun, "-m", "benchmarks.bench_scale", *words]
        agents = [subprocess.Popen(command) for _ in range(nodes)]
        statuses = [agent.wait() for agent in agents]
        if any(statuses):
            raise SystemExit("a process has failed")
        found: dict[str, Any] = json.loads(out.read_text())
    return found


def main() -> None:
    """Measure, or fit what was measured; print, or write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--algo", default="mg2l")
    parser.add_argument("--num-envs", type=int, default=64, help="sub-environments of one process")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="of the page, as docs")
    parser.add_argument("--fit", action="store_true", help="measure nothing, but fit again")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.algo, options.num_envs, options.rounds)
        return
    if options.fit:
        found = json.loads(((options.write or Path("docs")) / MEASURED).read_text())
    else:
        found = {way: start(options, way) for way in WAYS}
    if options.write:
        write(options.write, found)
    else:
        print("\n".join(table(found)))


if __name__ == "__main__":
    main()
