"""Values and their gradients without autograd, which on a minibatch takes as long as a layer.

A method ``vjp`` computes what its counterpart does, without a graph, and returns a `Pull` beside it
(``torch.func.vjp`` calls it ``vjp_fn``). Where there is no closed form, autograd computes both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Pull = Callable[..., Tensor | None]
"""Maps gradients of the values to that of the input, or None where it is not wanted.

Those of parameters are written into their ``grad``, which must be empty before.
"""

PullTwo = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""The same of two inputs."""

Both = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]
"""Calls a function on each of two items, in turns (``map``) or at the same time."""


def linear(layer: nn.Linear, x: Tensor) -> tuple[Tensor, Pull]:
    """``layer(x)`` of rows ``[n, in]``."""

    def pull(grad: Tensor) -> Tensor:
        layer.weight.grad, layer.bias.grad = grad.t() @ x, grad.sum(0)
        return grad @ layer.weight

    return F.linear(x, layer.weight, layer.bias), pull


def by_autograd(
    function: Callable[[Any], Sequence[Tensor]], x: Tensor | None, want_x: bool
) -> tuple[list[Tensor], Pull]:
    """Values of a function of ``x`` and of parameters, and what takes gradients back."""
    leaf = None if x is None else x.detach().requires_grad_(want_x)
    with torch.enable_grad():
        values = function(leaf)

    def pull(*gradients: Tensor) -> Tensor | None:
        with torch.enable_grad():
            products = [(y * g).sum() for y, g in zip(values, gradients, strict=True)]
            # Of a number: for a vector and its gradient torch imports its symbolic algebra.
            torch.stack(products).sum().backward()
        return None if leaf is None else leaf.grad

    return [y.detach() for y in values], pull
