"""Inputs for the launchers of ``encode_context`` and what must come out, from its definition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cuda_host.cases import Array, Case
from cuda_host.layout import ask
from mg2l.ops import reference


class Sizes(NamedTuple):
    """Sizes of a call."""

    contexts: int
    transitions: int
    agents: int
    features: int
    units: tuple[int, ...]


def padded(width: int) -> int:
    """Widths are padded to a multiple of four."""
    return -(-width // 4) * 4


def pad(array: Array, axes: int) -> Array:
    """Zeros after the last ``axes`` axes, up to the padded width."""
    rest = [(0, 0)] * (array.ndim - axes)
    return np.pad(array, [*rest, *((0, padded(n) - n) for n in array.shape[-axes:])])


def packed_layer(weight: Array | None, bias: Array) -> Array:
    """``[sets, *]``: weights transposed, weights and biases, padded; or a query."""
    sets = len(bias)
    if weight is None:
        return pad(bias, 1)
    wide = pad(weight, 2)
    parts = [wide.swapaxes(1, 2), wide]
    return np.concatenate([*(part.reshape(sets, -1) for part in parts), pad(bias, 1)], 1)


def gradient_layer(weight: Array, bias: Array) -> Array:
    """``[sets, *]`` gradients of a layer as they lie in a part's sums."""
    return np.concatenate([pad(weight, 2).reshape(len(bias), -1), pad(bias, 1)], 1)


def to_bfloat16(array: Array) -> Array:
    """The bits, as ``uint16``."""
    bits: Array = torch.from_numpy(array).bfloat16().view(torch.uint16).numpy()
    return bits


def from_bfloat16(bits: Array) -> Array:
    """Bits as float32."""
    wide: Array = torch.from_numpy(bits).view(torch.bfloat16).float().numpy()
    return wide


def case(
    sizes: Sizes,
    dtype: type[np.floating],
    *,
    indexed: bool = False,
    own: bool = False,
    approximate: str = "none",
    pieces: int = 1,
    bfloat16: bool = False,
    return_weights: bool = True,
    backward: bool = False,
) -> Case:
    """A call of ``encode_context`` or ``encode_context_backward``.

    Args:
        sizes: of the call.
        dtype: float32 or float64; float32 with ``bfloat16``.
        indexed: contexts are gathered from rows; then no gradient of them is wanted.
        own: weights per agent.
        approximate: GELU, ``none`` or ``tanh``.
        pieces: splits of a context, or parts of the gradients.
        bfloat16: of contexts and parameters.
        return_weights: the pooling weights as well.
        backward: the gradients.
    """
    contexts, transitions, agents, features, units = sizes
    rng = np.random.default_rng(contexts + transitions + features)
    sets = agents if own else 1

    def draw(*shape: int, scale: float = 1.0) -> Array:
        values = (scale * rng.normal(size=shape)).astype(dtype)
        return from_bfloat16(to_bfloat16(values)) if bfloat16 else values

    rows = 2 * transitions + 3 if indexed else contexts * transitions
    context = draw(rows, agents, features)
    index = rng.integers(rows, size=(contexts, transitions)) if indexed else None
    weights, biases, width = [], [], features
    for unit in units:
        weights.append(draw(sets, unit, width, scale=max(width, 1) ** -0.5))
        biases.append(draw(sets, unit))
        width = unit
    query = draw(sets, width, scale=0.25 * width**-0.5)  # logits of order 1
    # Products of order 1, or rounding of what cancels would show in the gradients.
    grad = (rng.normal(size=(contexts, agents, width)) / width).astype(dtype)

    def define(precision: torch.dtype) -> dict[str, Any]:
        given = [torch.from_numpy(a).to(precision) for a in (context, query, *weights, *biases)]
        leaves = [tensor.requires_grad_() for tensor in given]
        layers, count = leaves[2:], len(units)
        if not own:
            layers = [tensor[0] for tensor in layers]
        whole = leaves[0]
        if index is None:
            whole = whole.view(contexts, transitions, agents, features)
        at = None if index is None else torch.from_numpy(index)
        result = reference.encode_context(
            whole,
            layers[:count],
            layers[count:],
            leaves[1] if own else leaves[1][0],
            index=at,
            approximate=approximate,
            return_weights=True,
        )
        assert result.weights is not None
        lse = _log_sum_exp(whole, layers, leaves[1], at, approximate)
        found: dict[str, Any] = {"pooled": result.pooled, "lse": lse, "weights": result.weights}
        if backward:
            total = (result.pooled * torch.from_numpy(grad).to(precision)).sum()
            gradients = torch.autograd.grad(total, leaves)
            found |= {"grad_context": gradients[0], "grad_query": gradients[1]}
            found["grad_layers"] = [
                (gradients[2 + i].numpy(), gradients[2 + count + i].numpy()) for i in range(count)
            ]
        return {k: v.detach().numpy() if isinstance(v, Tensor) else v for k, v in found.items()}

    wide = dtype is np.float64
    exact = define(torch.float64)
    plain = exact if wide else define(torch.float32)
    stored = to_bfloat16 if bfloat16 else np.ascontiguousarray
    places = [
        ask("packed_offset", features, len(units), units, sets, layer)
        for layer in range(len(units) + 2)
    ]
    packed = np.full(places[-1], np.nan, dtype)
    for place, weight, bias in zip(places, [*weights, None], [*biases, query], strict=False):
        layer = packed_layer(weight, bias).ravel()
        packed[place : place + layer.size] = layer
    inputs: dict[str, Any] = {
        "contexts": contexts,
        "transitions": transitions,
        "agents": agents,
        "features": features,
        "rows": rows,
        "layers": len(units),
        "units": np.array(units, np.int64),
        "own_weights": own,
        "tanh_gelu": approximate == "tanh",
        "context": stored(context),
        "packed": packed,
    }
    if index is not None:
        inputs["index"] = index
    name = "bfloat16" if bfloat16 else "double" if wide else "float"
    storage: Any = np.uint16 if bfloat16 else dtype
    if not backward:
        outputs: dict[str, Array] = {
            "partial": np.empty((contexts * agents * pieces, ask("partial_width", width)), dtype),
            "pooled": np.empty((contexts, agents, width), dtype),
            "lse": np.empty((contexts, agents), dtype),
        }
        names = ["pooled", "lse"]
        if return_weights:
            outputs["weights"] = np.empty((contexts, agents, transitions), storage)
            names += [] if bfloat16 else ["weights"]
        return Case(
            f"mg2l_encode_context_{name}",
            {**inputs, "splits": pieces},
            outputs,
            {key: exact[key] for key in names},
            {key: plain[key] for key in names},
            dtype,
            rounded=exact,
        )

    def sums(found: dict[str, Any]) -> Array:
        layers = [gradient_layer(*layer) for layer in found["grad_layers"]]
        starts = [
            ask("gradient_offset", features, len(units), units, layer)
            for layer in range(len(units) + 2)
        ]
        total = np.full((sets, starts[-1]), np.nan, layers[0].dtype)
        for start, layer in zip(starts, [*layers, pad(found["grad_query"], 1)], strict=False):
            total[:, start : start + layer.shape[1]] = layer
        return total

    inputs |= {"parts": pieces, "grad_pooled": grad}
    inputs |= {key: exact[key].astype(dtype) for key in ("pooled", "lse")}
    outputs = {"partial": np.empty((sets, pieces, sums(exact).shape[1]), dtype)}
    if index is None:
        outputs["grad_context"] = np.empty(context.shape, storage)
    # What parts must add up to, and the gradient of the contexts.
    keys = [] if index is not None or bfloat16 else ["grad_context"]

    result = Case(
        f"mg2l_encode_context_backward_{name}",
        inputs,
        outputs,
        {"sums": sums(exact), **{key: exact[key] for key in keys}},
        {"sums": sums(plain), **{key: plain[key] for key in keys}},
        dtype,
        rounded=exact,
    )
    result.finish = lambda: outputs.update(sums=outputs["partial"].sum(1))
    return result


def _log_sum_exp(
    context: Tensor,
    layers: Sequence[Tensor],
    query: Tensor,
    index: Tensor | None,
    approximate: str,
) -> Tensor:
    """``[B, A]`` of the logits, which the definition does not return."""
    x = context if index is None else context[index]
    count = len(layers) // 2
    for weight, bias in zip(layers[:count], layers[count:], strict=True):
        x = torch.einsum("btaf,ahf->btah", x, weight.expand(x.shape[2], *weight.shape[-2:]))
        x = torch.nn.functional.gelu(x + bias, approximate=approximate)
    logits = torch.einsum("btah,ah->bat", x, query.expand(x.shape[2], -1))
    return logits.logsumexp(-1)
