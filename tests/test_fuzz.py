"""Random calls of every operator against its definition in float64.

Shapes, strides, dtypes, empty axes, NaN and infinities, with a fixed seed; and the same under
AddressSanitizer, with calls that must be refused.
"""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mg2l import ops
from mg2l.ops import NAMES, reference

CASES = 600
BATCH = 50


class Draw:
    """Random arguments."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.torch = torch.Generator().manual_seed(seed)
        self.dtype = torch.float64 if self.rng.random() < 0.4 else torch.float32

    def size(self, most: int, least: int = 0) -> int:
        """Mostly small; now and then an edge, or past a tile of a kernel."""
        choice = self.rng.random()
        if choice < 0.15:
            return least
        return int(self.rng.integers(least, (most if choice > 0.8 else min(most, least + 5)) + 1))

    def strided(self, *shape: int) -> Tensor:
        """Numbers with some memory layout."""
        x = torch.randn(shape, generator=self.torch, dtype=self.dtype)
        choice = self.rng.random()
        if choice < 0.2 and len(shape) > 1:
            return x.movedim(0, -1).contiguous().movedim(-1, 0)
        if choice < 0.4:
            return torch.stack([x, x + 1], -1)[..., 0]
        if choice < 0.5 and shape and shape[0]:
            return x[:1].expand(shape)
        return x

    def floats(self, *shape: int) -> Tensor:
        """`strided`, at times with a few that are not finite."""
        x = self.strided(*shape)
        if x.numel() and self.rng.random() < 0.25:
            x = x.clone()
            for _ in range(int(self.rng.integers(1, 3))):
                at = int(self.rng.integers(x.numel()))
                value = float(self.rng.choice([math.nan, math.inf, -math.inf]))
                x[np.unravel_index(at, x.shape)] = value
        return x

    def flags(self, *shape: int, probability: float = 0.3) -> Tensor:
        return torch.as_tensor(self.rng.random(shape) < probability)

    def indices(self, *shape: int, below: int) -> Tensor:
        return torch.as_tensor(self.rng.integers(0, max(below, 1), shape))

    def maybe(self, value: Any, probability: float = 0.4) -> Any:
        return value if self.rng.random() < probability else None


def gae(draw: Draw) -> tuple[list[Any], dict[str, Any]]:
    batch = [draw.size(40) for _ in range(draw.size(2))]
    shape = [draw.size(30), *batch]
    rows = (draw.floats(*shape), draw.floats(shape[0] + 1, *batch))
    options: dict[str, Any] = {"final_values": draw.maybe(draw.floats(*shape))}
    if draw.rng.random() < 0.4:
        options["value_mean"] = draw.strided(*batch)
        options["value_std"] = draw.strided(*batch).abs() + 0.1
    flags = (draw.flags(*shape), draw.flags(*shape))
    return [*rows, *flags, float(draw.rng.random()), float(draw.rng.random())], options


def pia_pool(draw: Draw) -> tuple[list[Any], dict[str, Any]]:
    axes = [draw.size(6) for _ in range(draw.size(2))]
    width = draw.size(40, 1)
    dim = int(draw.rng.integers(len(axes) + 1))
    shape = [*axes[:dim], draw.size(70, 1), *axes[dim:]]
    options = {"dim": dim, "mask": draw.maybe(draw.flags(*shape, probability=0.8))}
    options["return_weights"] = bool(draw.rng.random() < 0.5)
    return [draw.floats(*shape, width), draw.floats(draw.size(3), width)], options


def encode_context(draw: Draw) -> tuple[list[Any], dict[str, Any]]:
    contexts, transitions = draw.size(4), draw.size(100, 1)
    agents, features = draw.size(3, 1), draw.size(20, 1)
    own = [agents] if draw.rng.random() < 0.3 else []
    weights, biases = [], []
    inputs = features
    for _ in range(draw.size(3, 1)):
        units = draw.size(36, 1)
        weights.append(draw.floats(*own, units, inputs))
        biases.append(draw.floats(*own, units))
        inputs = units
    options: dict[str, Any] = {
        "approximate": str(draw.rng.choice(["none", "tanh"])),
        "return_weights": bool(draw.rng.random() < 0.5),
    }
    rows = draw.floats(contexts, transitions, agents, features)
    if draw.rng.random() < 0.3:
        held = draw.size(30, 1)
        rows = draw.floats(held, agents, features)
        options["index"] = draw.indices(contexts, transitions, below=held)
    return [rows, weights, biases, draw.floats(*own, inputs)], options


def pairwise_lse(draw: Draw) -> tuple[list[Any], dict[str, Any]]:
    groups = [draw.size(3) for _ in range(draw.size(2))]
    queries, keys, width = draw.size(60), draw.size(80, 1), draw.size(20)
    options: dict[str, Any] = {"scale": float(draw.rng.normal())}
    if draw.rng.random() < 0.4:
        options["std"] = draw.floats(*groups, keys, width).abs() + 0.3
    if draw.rng.random() < 0.3:
        options["query_labels"] = draw.indices(*groups, queries, below=4)
        options["key_labels"] = draw.indices(*groups, keys, below=4)
    options["mask"] = draw.maybe(draw.flags(*groups, queries, keys, probability=0.7))
    options["clip"] = draw.maybe(float(draw.rng.uniform(0.5, 5)))
    own = draw.indices(*groups, queries, below=keys)
    return [draw.floats(*groups, queries, width), draw.floats(*groups, keys, width), own], options


def stacked_mlp(draw: Draw) -> tuple[list[Any], dict[str, Any]]:
    # Finite: where features are not, torch masks gradients by each activation, we by the row.
    groups, rows, layers = draw.size(3), draw.size(120), draw.size(3, 1)
    widths = [draw.size(20, 1), *(draw.size(36, 8) for _ in range(layers))]
    x = draw.strided(groups, rows, widths[0])
    weights = [draw.strided(groups, o, i) for i, o in itertools.pairwise(widths)]
    biases = [draw.strided(groups, units) for units in widths[1:]]
    options = {"relu": bool(draw.rng.random() < 0.5)}
    options["plain_last"] = layers > 1 and bool(draw.rng.random() < 0.5)
    return [x, weights, biases], options


def film(draw: Draw) -> tuple[list[Any], dict[str, Any]]:
    groups, rows, width = draw.size(3), draw.size(120), draw.size(140)
    shared = draw.rng.random() < 0.6
    latents = draw.size(50, 1) if shared else rows
    index = draw.indices(rows, below=latents) if shared else None
    features, generated = draw.floats(groups, rows, width), draw.floats(groups, latents, 2 * width)
    return [features, generated, index], {}


def surrogate(draw: Draw) -> tuple[list[Any], dict[str, Any]]:
    shape = draw.size(4), draw.size(9000 if draw.rng.random() < 0.1 else 300)
    log_probs, *others = (draw.strided(*shape) for _ in range(3))
    weights = draw.maybe(draw.strided(*shape))
    clip = float(draw.rng.uniform(0.01, 2))
    return [log_probs, *others, 0.3 if weights is None else weights, clip], {}


def gaussian_surrogate(draw: Draw) -> tuple[list[Any], dict[str, Any]]:
    ((*rows, weights, clip), _), width = surrogate(draw), draw.size(9)
    agents, count = rows[0].shape
    groups = agents if draw.rng.random() < 0.5 else 1
    options: dict[str, Any] = {"clip": clip, "entropy_coef": float(draw.rng.uniform(0, 2))}
    options["own"] = draw.maybe(draw.flags(agents, 1, width, probability=0.7))
    mean, action = draw.strided(agents, count, width), draw.strided(agents, count, width)
    log_std = draw.strided(groups, 1, width) * 0.3
    return [mean, log_std, action, *rows[1:], weights], options


def value_loss(draw: Draw) -> tuple[list[Any], dict[str, Any]]:
    (*rows, weights, _), _ = surrogate(draw)
    names = ("clip", "delta")
    options = {name: draw.maybe(float(draw.rng.uniform(0.01, 2))) for name in names}
    return [*rows, weights], options


def contrast(draw: Draw) -> tuple[list[Any], dict[str, Any]]:
    groups, rows = draw.size(3), draw.size(300, 1)
    keys, width = draw.size(40, 1), draw.size(40, 1)
    positive = torch.from_numpy(draw.rng.integers(keys, size=rows))
    options = {name: float(draw.rng.uniform(0.01, 2)) for name in ("temperature", "kl_weight")}
    options["std_floor"] = 1e-3
    raw, some = draw.strided(groups, rows, 2 * width), draw.strided(keys, width)
    if torch.equal(some[0], some[-1]):  # which key is the nearest would be a matter of rounding
        some = torch.randn(some.shape, generator=draw.torch, dtype=draw.dtype)
    return [raw, some, positive], options


def gelu_mlp(draw: Draw) -> tuple[list[Any], dict[str, Any]]:
    widths = [draw.size(40), *(draw.size(70, 1) for _ in range(draw.size(4, 1)))]
    pairs = list(itertools.pairwise(widths))
    weights = [draw.strided(o, i) * 0.3 for i, o in pairs]
    return [
        draw.floats(draw.size(900), widths[0]),
        weights,
        [draw.strided(o) for _, o in pairs],
    ], {}


def innovation_moments(draw: Draw) -> tuple[list[Any], dict[str, Any]]:
    contexts, steps, agents = draw.size(4), draw.size(70), draw.size(3)
    features = draw.size(9, 1)
    shape: tuple[int, ...] = contexts, steps, agents
    places: Tensor | None = None
    if steps and draw.rng.random() < 0.5:  # each context has rows of its own
        own = draw.size(steps, 1)
        places = torch.from_numpy(draw.rng.integers(own, size=(contexts, steps)))
        places += own * torch.arange(contexts).unsqueeze(1)
        shape = contexts * own, agents
    series, coefficients = draw.strided(*shape, draw.size(20, 1)), draw.floats(3).clamp(-1, 1)
    transitions = draw.strided(*shape, features).detach().round()  # many are equal
    return [series, transitions, coefficients, draw.size(features, 1)], {"places": places}


def clip_norms(draw: Draw) -> tuple[list[Any], dict[str, Any]]:
    groups = draw.size(4)
    shapes = [
        [groups, *(draw.size(70) for _ in range(draw.size(2)))] for _ in range(draw.size(9, 1))
    ]
    gradients = [draw.floats(*shape).contiguous() for shape in shapes]
    limit = float(draw.rng.choice([0.01, 1.0, 30.0, math.inf]))
    return [gradients, limit], {"per_group": bool(draw.rng.random() < 0.5)}


def wide(value: Any) -> Any:
    """Arguments in float64, each with memory of its own."""
    if isinstance(value, list):
        return [wide(item) for item in value]
    if isinstance(value, dict):
        return {name: wide(item) for name, item in value.items()}
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().double().clone()
    return value


def leaves(value: Any) -> list[Tensor]:
    """Floating-point tensors among arguments."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [leaf for item in value for leaf in leaves(item)]
    return [value] if isinstance(value, Tensor) and value.is_floating_point() else []


def agree(found: Tensor, expected: Tensor, single: bool, what: str) -> None:
    """As close as the precision allows, and not finite in the same places."""
    assert found.shape == expected.shape, what
    a, b = found.double(), expected.double()
    finite = b.isfinite()
    assert torch.equal(a.isfinite(), finite), f"{what}: not finite in other places"
    size = b[finite].abs().max().item() if finite.any() else 0.0
    tolerance = 2e-4 if single else 1e-9
    torch.testing.assert_close(
        a[finite], b[finite], rtol=tolerance, atol=tolerance * max(size, 1.0), msg=what
    )


def named(found: Any, expected: Any) -> list[tuple[str, Any, Any]]:
    """Results by name; those of an operator that returns one alone have none."""
    if isinstance(found, Tensor):
        return [("result", found, expected)]
    return list(zip(found._fields, found, expected, strict=True))


def check(name: str, seed: int) -> None:
    """One random call: values and gradients."""
    draw = Draw(seed)
    arguments, options = globals()[name](draw)
    single = draw.dtype == torch.float32
    exact_arguments, exact_options = wide(arguments), wide(options)
    mine, theirs = leaves([arguments, options]), leaves([exact_arguments, exact_options])
    if name == "encode_context" and "index" in options:
        mine, theirs = mine[1:], theirs[1:]
    if name == "clip_norms":  # which writes into its arguments
        mine, theirs = [], []
    for leaf in (*mine, *theirs):
        leaf.requires_grad_()
    found = getattr(ops, name)(*arguments, **options)
    expected = getattr(reference, name)(*exact_arguments, **exact_options)
    what = f"{name}, seed {seed}"
    pairs = [(part, a, b) for part, a, b in named(found, expected) if isinstance(a, Tensor)]
    loss, exact_loss = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for part, a, b in pairs:
        if a.dtype == torch.int64:
            assert part == "rank" or torch.equal(a, b), what  # near ties may differ in float32
            continue
        agree(a.detach(), b.detach(), single, f"{what}: {part}")
        if b.requires_grad and part != "moments":
            to = torch.randn(b.shape, generator=draw.torch, dtype=torch.float64)
            loss = loss + (a.double() * to).sum()
            exact_loss = exact_loss + (b * to).sum()
    if name == "clip_norms":
        for a, b in zip(arguments[0], exact_arguments[0], strict=True):
            agree(a, b, single, f"{what}: clipped")
    if not exact_loss.requires_grad or not mine:
        return
    mine_grads: Any = torch.autograd.grad(loss, mine, allow_unused=True)
    exact_grads: Any = torch.autograd.grad(exact_loss, theirs, allow_unused=True)
    for index, (a, b) in enumerate(zip(mine_grads, exact_grads, strict=True)):
        empty = all(part.numel() == 0 for _, part, _ in pairs)
        if empty or a is None or b is None:
            assert a is None or not a.any(), what
            assert empty or b is None or not b.any(), what
        else:
            agree(a, b, single, f"{what}: gradient {index}")


@pytest.mark.parametrize("batch", range(CASES // BATCH))
def test_random_calls(batch):
    for seed in range(batch * BATCH, (batch + 1) * BATCH):
        check(NAMES[seed % len(NAMES)], seed)


# Raw entries of the dispatcher, which autograd calls: every one checks what it reads.

RAW = torch.ops.mg2l


def abuse() -> list[Any]:
    """Calls that must raise, each with what its message says."""
    x, q = torch.randn(50, 20, 3, 16), torch.randn(4, 16)
    pooled, lse, _ = RAW.pia_pool(x, q, None, False)
    one, none = torch.zeros(1), torch.zeros(0)
    context, weights, biases = torch.randn(30, 5, 3, 12), [torch.randn(16, 12)], [torch.randn(16)]
    query, rows = torch.randn(16), torch.randn(30, 3, 12)
    y, y_lse, _ = RAW.encode_context(context, weights, biases, query, None, False, False, False)
    index, far = torch.zeros(5, 7, dtype=torch.int64), torch.full((5, 7), 10**9)
    few = (torch.zeros(5, 3, 16), torch.zeros(5, 3))
    queries, keys, own = torch.randn(1, 40, 16), torch.randn(1, 400, 16), torch.arange(40)[None]
    more = (1.0, None, None, None, None, None)
    given = (queries, keys, own)
    scores = RAW.pairwise_lse(*given, *more)
    saved, grads = (scores[0], scores[1], scores[4]), [torch.ones(1, 40)] * 4
    flags, steps = torch.zeros(30, 4, dtype=torch.bool), torch.zeros(30, 4)

    layers = (weights, biases, query)
    row, short = torch.zeros(2, 5), torch.zeros(2, 4)
    flat, key, each = torch.zeros(2, 5, 6), torch.ones(4, 3), torch.arange(5) % 4
    doubled = torch.zeros(2, 4, 12)

    inputs, units = torch.randn(2, 5, 3), ([torch.randn(2, 4, 3)], [torch.zeros(2, 4)])
    top, kept, moments = RAW.stacked_mlp(inputs, *units, True, False, False, True)

    def mlp(grad: Tensor, y: Tensor, kept: Tensor, moments: Tensor) -> Any:
        held = (y, kept, moments)
        return RAW.stacked_mlp_backward(grad, inputs, *units, True, False, False, *held, True)

    spread = torch.zeros(2, 1, 6)

    def gaussian(log_std: Tensor, own: Any, before: Tensor, clip: float) -> Any:
        rows = (before, row, None, 1.0)
        return RAW.gaussian_surrogate(flat, log_std, flat, *rows, clip, 0.01, own)

    def pool(grad: Tensor, a: Tensor, b: Tensor) -> Any:
        return RAW.pia_pool_backward(grad, x, q, None, a, b)

    def encode(grad: Tensor, a: Tensor, b: Tensor, rows: Tensor, at: Any, want: bool) -> Any:
        return RAW.encode_context_backward(grad, rows, *layers, at, False, False, a, b, want)

    def walk(grad: Tensor, ended: Tensor) -> Any:
        return RAW.gae_backward(steps, grad, ended, flags, 0.9, 0.9, True)

    def pairs(gradients: list[Tensor], own: Tensor, left: tuple[Tensor, ...]) -> Any:
        return RAW.pairwise_lse_backward(*gradients, queries, keys, own, *more, *left)

    return [
        ("grad must have shape", lambda: pool(one, pooled, lse)),
        ("pooled must have shape", lambda: pool(pooled, none, lse)),
        ("lse must have shape", lambda: pool(pooled, pooled, one)),
        ("float32, got float64", lambda: pool(pooled.double(), pooled, lse)),
        ("float32, got int64", lambda: pool(pooled, pooled.long(), lse)),
        ("grad_pooled must have shape", lambda: encode(one, y, y_lse, context, None, True)),
        ("pooled must have shape", lambda: encode(y, none, y_lse, context, None, True)),
        ("lse must have shape", lambda: encode(y, y, one, context, None, True)),
        ("float32, got float64", lambda: encode(y.double(), y, y_lse, context, None, True)),
        ("get no gradients", lambda: encode(few[0], *few, rows, index, True)),
        ("index must be in", lambda: encode(few[0], *few, rows, far, False)),
        ("index must be in", lambda: encode(few[0], *few, rows, -far, False)),
        ("grad_lse must have shape", lambda: pairs([one, *grads[1:]], own, saved)),
        (
            "grad_positive must be float32",
            lambda: pairs([*grads[:3], grads[3].double()], own, saved),
        ),
        ("lse must have shape", lambda: pairs(grads, own, (none, *saved[1:]))),
        ("negatives must be int64", lambda: pairs(grads, own, (*saved[:2], saved[2].int()))),
        ("positive must lie in", lambda: pairs(grads, own + 10**9, saved)),
        ("positive must lie in", lambda: pairs(grads, own - 1, saved)),
        ("scale must be finite", lambda: RAW.pairwise_lse(*given, math.nan, *more[1:])),
        ("clip must be positive", lambda: RAW.pairwise_lse(*given, *more[:5], math.nan)),
        ("grad_returns must have shape", lambda: walk(one, flags)),
        ("terminated must have shape", lambda: walk(steps, none.bool())),
        ("terminated must be bool", lambda: walk(steps, steps)),
        ("grad must have shape", lambda: mlp(one, top, kept, moments)),
        ("y must have shape", lambda: mlp(top, one, kept, moments)),
        ("kept must have shape", lambda: mlp(top, top, one, moments)),
        ("moments must have shape", lambda: mlp(top, top, kept, none)),
        ("generated must have shape", lambda: RAW.film(flat, flat, None)),
        ("index must be in", lambda: RAW.film(flat, doubled, each + 10**9)),
        ("index must be in", lambda: RAW.film_backward(flat, flat, doubled, each - 1)),
        ("index must have shape", lambda: RAW.film_backward(flat, flat, doubled, each[1:])),
        ("grad must have shape", lambda: RAW.film_backward(one, flat, doubled, each)),
        ("log_probs must have shape", lambda: RAW.surrogate(none, none, none, None, 1.0, 0.2)),
        ("before must have shape", lambda: RAW.surrogate(row, short, row, None, 1.0, 0.2)),
        ("weights must be float32", lambda: RAW.surrogate(row, row, row, row.bool(), 1.0, 0.2)),
        ("clip must be positive", lambda: RAW.surrogate(row, row, row, None, 1.0, math.nan)),
        ("log_std must have shape", lambda: gaussian(one, None, row, 0.2)),
        ("own must be bool", lambda: gaussian(spread, key, row, 0.2)),
        ("before must have shape", lambda: gaussian(spread, None, short, 0.2)),
        ("clip must be positive", lambda: gaussian(spread, None, row, math.nan)),
        ("target must be float32", lambda: RAW.value_loss(row, row, row.int(), None, 1, 1, None)),
        ("delta must be positive", lambda: RAW.value_loss(row, row, row, None, 1.0, None, 0.0)),
        ("raw must have shape", lambda: RAW.contrast(row, row, each, 0.2, 0.1, 1e-3)),
        ("keys must have shape", lambda: RAW.contrast(flat, none, each, 0.2, 0.1, 1e-3)),
        ("positive must lie in", lambda: RAW.contrast(flat, key, each + 10**9, 0.2, 0.1, 1e-3)),
        ("must be contiguous", lambda: RAW.clip_norms([spread.mT[:, ::2]], 1.0, False)),
        ("must have shape", lambda: RAW.clip_norms([row, one], 1.0, True)),
        ("limit must be positive", lambda: RAW.clip_norms([row], math.nan, True)),
        ("temperature must be positive", lambda: RAW.contrast(flat, key, each, 0.0, 0.1, 1e-3)),
    ]  # fmt: skip


REFUSALS = 49


@pytest.mark.parametrize("case", range(REFUSALS))
def test_raw_entries_refuse(case):
    message, call = abuse()[case]
    with pytest.raises(RuntimeError, match=message):
        call()


@pytest.mark.parametrize("name", sorted({*NAMES} - {"clip_norms"}))
def test_there_is_no_second_derivative(name):
    """Torch would return a wrong one with a warning."""
    draw = Draw(3)
    draw.dtype = torch.float64
    x = torch.randn(4, 3, 2, 5, dtype=torch.float64, requires_grad=True)
    flags, one = torch.zeros(4, 3, dtype=torch.bool), torch.ones(2, 5, dtype=torch.float64)
    acted = x.permute(0, 2, 3, 1)
    calls = {
        "gae": lambda: (
            ops.gae(x[:, :, 0, 0], torch.zeros(5, 3).double(), flags, flags, 0.9, 0.9).advantages
        ),
        "pia_pool": lambda: ops.pia_pool(x, torch.ones(1, 5).double()).pooled,
        "encode_context": lambda: (
            ops.encode_context(
                x, [torch.eye(5).double()], [torch.zeros(5).double()], torch.ones(5).double()
            ).pooled
        ),
        "pairwise_lse": lambda: (
            ops.pairwise_lse(x[0, 0], x[0, 1].detach(), torch.tensor([0, 1])).lse
        ),
        "stacked_mlp": lambda: ops.stacked_mlp(
            x[0], [torch.eye(5).double().expand(3, 5, 5)], [torch.zeros(3, 5).double()]
        ),
        "film": lambda: ops.film(x[0], x[1].repeat(1, 1, 2)),
        "surrogate": lambda: ops.surrogate(x[0, 0], one, one, 1.0, 0.2).loss,
        "gaussian_surrogate": lambda: (
            ops.gaussian_surrogate(
                acted[0], x[1, :1, :1, :3], acted[1], one, one, 1.0, clip=0.2, entropy_coef=0.1
            ).loss
        ),
        "value_loss": lambda: ops.value_loss(x[0, 0], one, one, 1.0).loss,
        "contrast": lambda: (
            ops.contrast(
                x[:, :, 0, :4],
                torch.eye(2).double(),
                torch.tensor([0, 1, 1]),
                temperature=0.2,
                kl_weight=0.1,
                std_floor=1e-3,
            ).loss
        ),
        "gelu_mlp": lambda: ops.gelu_mlp(
            x[0, 0], [torch.eye(5).double()] * 2, [torch.zeros(5).double()] * 2
        ),
        "innovation_moments": lambda: ops.innovation_moments(
            x, torch.zeros(4, 3, 2, 2).double(), torch.full((3,), 0.5).double(), 1
        ),
    }
    (first,) = torch.autograd.grad(calls[name]().square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=f"{name}: there are first derivatives only"):
        torch.autograd.grad(first.sum(), x)


@pytest.mark.parametrize("groups", [(0,), (0, 2), (2, 0), ()])
def test_empty_groups_of_pairwise_lse(groups):
    queries, keys = torch.zeros(*groups, 3, 4, requires_grad=True), torch.zeros(*groups, 5, 4)
    found = ops.pairwise_lse(queries, keys, torch.zeros(*groups, 3, dtype=torch.int64))
    assert all(part.shape == (*groups, 3) for part in found)
    (grad,) = torch.autograd.grad(found.lse.sum(), queries)
    assert grad.shape == queries.shape


def test_inputs_that_are_not_there_are_not_looked_at():
    x = torch.randn(2, 6, 4, requires_grad=True)
    mask = torch.tensor([[1, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0]]).bool()
    query = torch.randn(2, 4, requires_grad=True)
    with torch.no_grad():
        x[~mask] = math.nan
    pooled = ops.pia_pool(x, query, mask=mask).pooled
    assert pooled.isfinite().all()
    assert (pooled[1] == 0).all()
    grads = torch.autograd.grad(pooled.square().sum(), [x, query])
    assert all(grad.isfinite().all() for grad in grads)
    assert (grads[0][~mask] == 0).all()


def test_no_heads():
    x = torch.randn(2, 3, 4, requires_grad=True)
    query = torch.zeros(0, 4, requires_grad=True)
    grads = torch.autograd.grad(ops.pia_pool(x, query).pooled.sum(), [x, query])
    assert (grads[0] == 0).all()
    assert grads[1].shape == (0, 4)


# The same under AddressSanitizer.

ROOT = Path(__file__).resolve().parents[1]


def build(folder: Path) -> Path:
    """A package like this one, whose operators watch every access to memory."""
    from torch.utils.cpp_extension import include_paths, library_paths

    objects = []
    running: list[subprocess.Popen[bytes]] = []
    common = ["-std=c++17", "-O0", "-g1", "-fPIC", "-fsanitize=address", "-ffp-contract=fast"]
    common += ["-Wno-psabi", "-fvisibility=hidden", "-DTORCH_TARGET_VERSION=0x020d000000000000"]
    common += [f"-isystem{path}" for path in include_paths()]
    for source in sorted((ROOT / "csrc").glob("*.cpp")):
        objects.append(str(folder / f"{source.stem}.o"))
        running.append(subprocess.Popen(["g++", *common, "-c", source, "-o", objects[-1]]))
        if len(running) >= (os.cpu_count() or 1):
            assert running.pop(0).wait() == 0
    assert all(process.wait() == 0 for process in running)
    package = folder / "mg2l"
    package.mkdir()
    for path in (ROOT / "mg2l").iterdir():
        if path.name != "_C.abi3.so":
            (package / path.name).symlink_to(path)
    library = package / "_C.abi3.so"
    torch_libraries = [*(f"-L{path}" for path in library_paths()), "-ltorch_cpu", "-lc10"]
    subprocess.run(
        ["g++", "-shared", "-fsanitize=address", *objects, "-o", library, *torch_libraries],
        check=True,
    )
    return library


@pytest.mark.ci
def test_address_sanitizer(tmp_path):
    """Nothing reads or writes what is not its own, also in calls that are refused."""
    build(tmp_path)
    preloaded = [  # libstdc++ too, or the sanitizer does not find what throws exceptions
        subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    code = (
        "import torch, test_fuzz as f, mg2l.ops.native\n"
        f"assert str(mg2l.ops.native.CPU_LIBRARY).startswith({str(tmp_path)!r})\n"
        "torch.set_num_threads(2)\n"
        "for seed in range(200): f.check(f.NAMES[seed % len(f.NAMES)], seed)\n"
        "refused = 0\n"
        "for message, call in f.abuse():\n"
        "    try: call()\n"
        "    except RuntimeError: refused += 1\n"
        "print('refused', refused)"
    )
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(preloaded),
        "ASAN_OPTIONS": "detect_leaks=0:protect_shadow_gap=0",
        "PYTHONPATH": f"{tmp_path}:{ROOT / 'tests'}",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[:3000]
    assert f"refused {REFUSALS}" in done.stdout
