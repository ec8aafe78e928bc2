"""Times what a GPU does: ``python -m benchmarks.gpu --out gpu.json`` and the parts to time.

Medians of rounds, after a warm-up, with the device synchronised around each. ``kernels`` are
operators, forward and with the backward pass, against their definitions in torch and against the
predictions of docs/kernels.md; ``ways`` are the two of `pairwise_lse`, tiles and products, at sizes
around the one from which products are used; ``first_layer`` is that of `encode_context`, within the
kernel or as a product before it; ``iterations`` are whole ones on the device and on the CPU, by
phase; ``worlds`` are rollouts of many particle worlds. ``--table`` writes what a JSON file holds as
Markdown. `benchmarks/gpu.sh` runs all of it.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mg2l.config import files
from mg2l.core.transfer import synchronize
from mg2l.ops import backend, native
from mg2l.training.learner import Learner
from mg2l.training.loop import iterate

PARTS = ("kernels", "ways", "first_layer", "iterations", "worlds")
PREDICTED = {
    "gae 512x1024": (11.0, None),
    "gae 2048x4096": (75.0, None),
    "pia_pool 64,512,64": (25.0, 70.0),
    "encode_context 128,100,2": (40.0, 150.0),
    "pairwise_lse 1024": (17.0, 48.0),
    "pairwise_lse 8192": (360.0, 1200.0),
}
"""Microseconds on an H100, forward and with the backward pass: docs/kernels.md."""

PREDICTED_WAYS = {
    ("tiles", 512): (17.0, 37.0),
    ("products", 512): (14.0, 35.0),
    ("tiles", 1024): (22.0, 77.0),
    ("products", 1024): (17.0, 48.0),
    ("tiles", 8192): (1400.0, 4300.0),
    ("products", 8192): (360.0, 1200.0),
    ("products, TF32", 8192): (220.0, 670.0),
}
"""The same for the two ways of `pairwise_lse`, by queries, which are as many as keys."""

Call = Callable[[], Any]


def seconds(call: Call, device: torch.device, rounds: int) -> float:
    """Median time of a call."""
    for _ in range(3):
        call()
    times = []
    for _ in range(rounds):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def cases(device: torch.device) -> Iterator[tuple[str, str, list[Tensor], Callable[..., Any]]]:
    """Name, operator, leaves, and what to compute from the operator and the leaves."""

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, device=device)

    for steps, columns in ((512, 1024), (2048, 4096)):
        flags = torch.rand(2, steps, columns, device=device) < 0.01
        yield (
            f"gae {steps}x{columns}", "gae", [randn(steps, columns), randn(steps + 1, columns)],
            lambda op, r, v, flags=flags: op(r, v, flags[0], flags[1], 0.99, 0.95).advantages,
        )  # fmt: skip
    yield (
        "pia_pool 64,512,64", "pia_pool", [randn(64, 512, 64), randn(1, 64) / 8],
        lambda op, x, q: op(x, q).pooled,
    )  # fmt: skip
    rows = randn(20_000, 2, 23)
    index = torch.randint(20_000, (128, 100), device=device)
    weights = [randn(64, width) / width**0.5 for width in (23, 64, 64)]
    biases = [randn(64) for _ in weights]
    yield (
        "encode_context 128,100,2", "encode_context", [*weights, *biases, randn(64) / 8],
        lambda op, *p: op(rows, list(p[:3]), list(p[3:6]), p[6], index=index).pooled,
    )  # fmt: skip
    for count in (1024, 8192):
        own = torch.arange(count, device=device)
        yield (
            f"pairwise_lse {count}", "pairwise_lse", [randn(count, 64) / 8, randn(count, 64)],
            lambda op, q, k, own=own: op(q, k, own).lse,
        )  # fmt: skip
    for groups, rows_, widths in ((2, 3200, (12, 128, 128)), (2, 800, (24, 128, 128))):
        layers = [randn(groups, o, i) / i**0.5 for i, o in itertools.pairwise(widths)]
        offsets = [randn(groups, layer.shape[1]) for layer in layers]
        x = randn(groups, rows_, widths[0])
        yield (
            f"stacked_mlp {groups},{rows_}", "stacked_mlp", [*layers, *offsets],
            lambda op, *p, x=x: op(x, list(p[: len(p) // 2]), list(p[len(p) // 2 :]), relu=True,
                                   plain_last=False),
        )  # fmt: skip
    for rows_, latents in ((2_000, 2_000), (2_000, 160), (102_400, 160)):
        which = None if latents == rows_ else torch.randint(latents, (rows_,), device=device)
        yield (
            f"film 2,{rows_},{latents},128", "film",
            [randn(2, rows_, 128), randn(2, latents, 256)],
            lambda op, f, g, which=which: op(f, g, which),
        )  # fmt: skip
    for rows_ in (800, 102_400):
        before, aim = randn(2, 2, rows_)
        yield (
            f"surrogate 2,{rows_}", "surrogate", [randn(2, rows_)],
            lambda op, x, a=before, b=aim: op(x, a, b, 1 / x.shape[1], 0.2).loss,
        )  # fmt: skip
        action = randn(2, rows_, 2)
        yield (
            f"gaussian_surrogate 2,{rows_},2", "gaussian_surrogate",
            [randn(2, rows_, 2), randn(2, 1, 2)],
            lambda op, m, s, act=action, a=before, b=aim: op(
                m, s, act, a, b, 1 / m.shape[1], clip=0.2, entropy_coef=0.01
            ).loss,
        )  # fmt: skip
        yield (
            f"value_loss 2,{rows_}", "value_loss", [randn(2, rows_)],
            lambda op, x, a=before, b=aim: op(x, a, b, 1 / x.shape[1], clip=0.2, delta=10.0).loss,
        )  # fmt: skip
    for groups, rows_, keys in ((1, 160, 3), (2, 160, 40), (2, 16_000, 40)):
        own = torch.randint(keys, (rows_,), device=device)
        yield (
            f"contrast {groups},{rows_},{keys},16", "contrast",
            [randn(groups, rows_, 32), randn(keys, 16)],
            lambda op, x, k, own=own: op(
                x, k, own, temperature=0.2, kl_weight=0.1, std_floor=1e-3
            ).loss,
        )  # fmt: skip
    for rows_ in (20_480, 524_288):
        layers = [randn(o, i) / i**0.5 for i, o in itertools.pairwise((14, 64, 64, 64, 7))]
        offsets = [randn(len(layer)) for layer in layers]
        x = randn(rows_, 14)
        yield (
            f"gelu_mlp {rows_}", "gelu_mlp", [*layers, *offsets],
            lambda op, *p, x=x: op(x, list(p[: len(p) // 2]), list(p[len(p) // 2 :])),
        )  # fmt: skip
    for contexts in (160, 4096):
        transitions = randn(contexts, 64, 2, 15)
        transitions[:, 1:, :, :4] = transitions[:, :-1, :, -4:]
        yield (
            f"innovation_moments {contexts},64,2,9", "innovation_moments",
            [randn(contexts, 64, 2, 9), randn(3)],
            lambda op, x, c, rows_=transitions: op(x, rows_, c, 4),
        )  # fmt: skip


def clipping(device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """Microseconds of `clip_norms`, which has no backward pass, and of its definition."""
    table = []
    for hidden in (128, 1024):
        shapes = ((hidden, 12), (hidden,), (hidden, hidden), (hidden,), (2, hidden), (2,))
        gradients = [torch.randn(2, *shape, device=device) for shape in shapes]
        row: dict[str, Any] = {"case": f"clip_norms {hidden}"}
        for kind, chosen in (("ours", backend.NATIVE), ("definition", backend.TORCH)):
            call = partial(chosen.clip_norms, gradients, 1e-3, per_group=True)
            row[f"{kind} forward"] = 1e6 * seconds(call, device, rounds)
        table.append(row)
    return table


def both(compute: Callable[..., Any], op: Any, leaves: list[Tensor]) -> None:
    """Forward and backward pass."""
    torch.autograd.grad(compute(op, *leaves).sum(), leaves)


def kernels(device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """Microseconds of each operator and of its definition."""
    table = []
    for name, operator, leaves, compute in cases(device):
        row: dict[str, Any] = {"case": name}
        for kind, chosen in (("ours", backend.NATIVE), ("definition", backend.TORCH)):
            op = getattr(chosen, operator)
            few = 3 if kind == "definition" and operator == "gae" else rounds
            with torch.no_grad():
                row[f"{kind} forward"] = 1e6 * seconds(partial(compute, op, *leaves), device, few)
            held = [leaf.clone().requires_grad_() for leaf in leaves]

            row[f"{kind} both"] = 1e6 * seconds(partial(both, compute, op, held), device, few)
        forward, whole = PREDICTED.get(name, (None, None))
        table.append({**row, "predicted forward": forward, "predicted both": whole})
    return table + clipping(device, rounds)


def ways(device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """Microseconds of `pairwise_lse` by tiles and by products, of as many queries as keys.

    The number of scores from which products take less time, forward and backward together, is what
    ``kProductsFrom`` of csrc/cuda/pairwise_lse_layout.h should be.

    Raises:
        OSError: The operators are not compiled for CUDA.
    """
    products_from = ctypes.CDLL(str(native.CUDA_LIBRARY)).mg2l_pairwise_products_from
    products_from.argtypes, products_from.restype = [ctypes.c_int64], ctypes.c_int64
    before, precision = products_from(0), torch.get_float32_matmul_precision()
    table = []
    for count in (128, 256, 512, 1024, 2048, 4096, 8192):
        own = torch.arange(count, device=device)
        leaves = [torch.randn(count, 64, device=device) / 8, torch.randn(count, 64, device=device)]
        held = [leaf.clone().requires_grad_() for leaf in leaves]

        def compute(op: Any, q: Tensor, k: Tensor, own: Tensor = own) -> Tensor:
            lse: Tensor = op(q, k, own).lse
            return lse

        op = backend.NATIVE.pairwise_lse
        for way, least, allowed in (
            ("tiles", 2**62, "highest"),
            ("products", 0, "highest"),
            ("products, TF32", 0, "high"),
        ):
            products_from(least)
            torch.set_float32_matmul_precision(allowed)
            with torch.no_grad():
                forward = 1e6 * seconds(partial(compute, op, *leaves), device, rounds)
            whole = 1e6 * seconds(partial(both, compute, op, held), device, rounds)
            predicted = PREDICTED_WAYS.get((way, count), (None, None))
            table.append(
                {"queries, keys": count, "way": way, "forward": forward, "both": whole,
                 "predicted forward": predicted[0], "predicted both": predicted[1]}
            )  # fmt: skip
    products_from(before)
    torch.set_float32_matmul_precision(precision)
    return table


def first_by_product(op: Any, rows: Tensor, index: Tensor, params: tuple[Tensor, ...]) -> Tensor:
    """`encode_context` of products that torch makes of gathered rows, then an identity."""
    first, *rest, query = params
    weights, biases = rest[: len(rest) // 2], rest[len(rest) // 2 :]
    made = functional.linear(rows[index], first)
    identity = torch.eye(len(first), device=rows.device)
    pooled: Tensor = op(made, [identity, *weights], biases, query).pooled
    return pooled


def first_layer(device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """Microseconds of `encode_context`, its first layer in the kernel or a product before it."""
    op, precision = backend.NATIVE.encode_context, torch.get_float32_matmul_precision()
    table = []
    for features, contexts in itertools.product((23, 128, 372), (128, 1024)):
        rows = torch.randn(20_000, 2, features, device=device)
        index = torch.randint(20_000, (contexts, 100), device=device)
        widths = (features, 64, 64)
        weights = [torch.randn(64, width, device=device) / width**0.5 for width in widths]
        biases = [torch.randn(64, device=device) for _ in weights]
        leaves = [*weights, *biases, torch.randn(64, device=device) / 8]
        held = [leaf.clone().requires_grad_() for leaf in leaves]

        def within(op: Any, *p: Tensor, rows: Tensor = rows, index: Tensor = index) -> Tensor:
            pooled: Tensor = op(rows, list(p[:3]), list(p[3:6]), p[6], index=index).pooled
            return pooled

        def before(op: Any, *p: Tensor, rows: Tensor = rows, index: Tensor = index) -> Tensor:
            return first_by_product(op, rows, index, p)

        for way, compute, allowed in (
            ("within", within, "highest"),
            ("product", before, "highest"),
            ("product, TF32", before, "high"),
        ):
            torch.set_float32_matmul_precision(allowed)
            with torch.no_grad():
                forward = 1e6 * seconds(partial(compute, op, *leaves), device, rounds)
            whole = 1e6 * seconds(partial(both, compute, op, held), device, rounds)
            table.append(
                {"features": features, "contexts": contexts, "way": way, "forward": forward,
                 "both": whole}
            )  # fmt: skip
    torch.set_float32_matmul_precision(precision)
    return table


def iterations(device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """Seconds of an iteration on mpe-spread, by phase, on the device and on the CPU."""
    table = []
    for algo in ("mappo", "mg2l"):
        for envs in (32, 1024):
            for where in dict.fromkeys((device, torch.device("cpu"))):
                values = [f"n_rollout_threads={envs}", "sample_ae_interval=1000"]
                learner = Learner(files.load_config("default", algo, "mpe-spread", values), where)
                learner.prepare()
                found = [iterate(learner, i) for i in range(rounds + 1)][1:]
                keys = ("time/iteration", "time/rollout", "time/ppo", "time/encoder")
                medians = {key: statistics.median(row[key] for row in found) for key in keys}
                table.append({"algo": algo, "envs": envs, "device": str(where), **medians})
                learner.close()
    return table


def worlds(device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """Environment steps per second of rollouts of many worlds."""
    table = []
    for env in ("mpe-spread", "mpe-hunting", "mpe-goals", "mpe-weights", "mpe-hunting-4"):
        for where in dict.fromkeys((device, torch.device("cpu"))):
            config = files.load_config("default", "mappo", env, ["n_rollout_threads=4096"])
            learner = Learner(config, where)
            tasks = learner.draw_tasks()
            took = seconds(partial(learner.collect, tasks), where, rounds)
            steps = config.rollout_envs * config.rollout_steps
            table.append({"env": env, "device": str(where), "env_steps_per_s": steps / took})
            learner.close()
    return table


def as_table(rows: list[dict[str, Any]]) -> str:
    """Rows as Markdown."""
    names = list(rows[0])

    def cell(value: Any) -> str:
        return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

    lines = [names, ["---"] * len(names), *([cell(row.get(n)) for n in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[], metavar="PART")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    device = torch.device(options.device)
    found: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    for part in options.parts:
        rounds = options.rounds if part in PARTS[:3] else max(options.rounds // 6, 1)
        found[part] = globals()[part](device, rounds)
        found["device"] = str(device) if device.type == "cpu" else torch.cuda.get_device_name()
        found["torch"] = torch.__version__
        options.out.write_text(json.dumps(found, indent=1))
        print(as_table(found[part]), flush=True)
    if options.table is not None:
        parts = [f"## {part}\n\n{as_table(found[part])}\n" for part in PARTS if part in found]
        options.table.write_text(
            f"# {found['device']}, torch {found['torch']}\n\n" + "\n".join(parts)
        )


if __name__ == "__main__":
    main()
