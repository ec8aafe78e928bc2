"""Networks of all agents at once: stacked weights ``[G, out, in]``, one batched product per layer.

``G`` is the number of agents when each has its own network, and 1 when they share one. Inputs are
``[A, rows, in]``; with shared weights the agents' rows are one batch.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def _initialise(weight: Tensor, orthogonal: bool, gain: float) -> None:
    for matrix in weight:
        if orthogonal:
            nn.init.orthogonal_(matrix, gain)
        else:
            nn.init.xavier_uniform_(matrix, gain)


class _Affine(torch.autograd.Function):
    """``y = x W^T + b`` per group, with the weights' gradient written in their own layout.

    Autograd's own would come transposed, and be copied at every step.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        to_x = torch.bmm(grad, weight) if ctx.needs_input_grad[0] else None
        return to_x, torch.bmm(grad.transpose(1, 2), x), grad.sum(1)


class StackedLinear(nn.Module):
    """``y[a] = x[a] W[a]^T + b[a]`` for all agents: ``[A, rows, in] -> [A, rows, out]``."""

    def __init__(
        self, groups: int, inputs: int, outputs: int, gain: float, orthogonal: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(groups, outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(groups, outputs))
        _initialise(self.weight.data, orthogonal, gain)

    def forward(self, x: Tensor) -> Tensor:
        groups, outputs, inputs = self.weight.shape
        rows = x.reshape(groups, -1, inputs)
        y: Tensor = _Affine.apply(rows, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], outputs)


class StackedMLP(nn.Module):
    """Hidden layers of an actor or critic: linear, activation, LayerNorm, ``1 + layers`` times.

    The norm has no affine part of its own: the next layer's weights hold it.
    """

    def __init__(
        self, groups: int, inputs: int, hidden: int, layers: int, relu: bool, orthogonal: bool
    ) -> None:
        super().__init__()
        self.relu = relu
        gain = nn.init.calculate_gain("relu" if relu else "tanh")
        widths = [inputs] + [hidden] * (1 + layers)
        self.layers = nn.ModuleList(
            StackedLinear(groups, i, o, gain, orthogonal) for i, o in itertools.pairwise(widths)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
            x = F.relu(x, inplace=True) if self.relu else torch.tanh(x)
            x = F.layer_norm(x, x.shape[-1:])
        return x


class StackedGRU(nn.Module):
    """A GRU per agent over time, with its state reset where an episode begins.

    The gates follow Cho et al. (2014, arXiv:1406.1078) in the form of ``torch.nn.GRU``.
    """

    def __init__(self, groups: int, hidden: int, layers: int, orthogonal: bool) -> None:
        super().__init__()
        self.hidden = hidden
        gain = 1.0
        self.input = nn.ModuleList(
            StackedLinear(groups, hidden, 3 * hidden, gain, orthogonal) for _ in range(layers)
        )
        self.state = nn.ModuleList(
            StackedLinear(groups, hidden, 3 * hidden, gain, orthogonal) for _ in range(layers)
        )

    def forward(self, x: Tensor, state: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """Run over ``steps`` steps.

        Args:
            x: ``[A, steps, rows, H]``.
            state: ``[A, rows, layers, H]`` before the first step.
            first: ``[steps, rows]`` bool; the state is zeroed before a step where it is true.

        Returns:
            outputs ``[A, steps, rows, H]`` (layer-normalised) and the state after the last step.
        """
        keep = (~first).to(x.dtype)[None, :, :, None]
        last = []
        for index, (input_gates, state_gates) in enumerate(
            zip(self.input, self.state, strict=True)
        ):
            gates = input_gates(x.flatten(1, 2)).unflatten(1, x.shape[1:3])
            h, outputs = state[:, :, index], []
            for t in range(x.shape[1]):
                h = h * keep[:, t]
                reset_x, update_x, new_x = gates[:, t].chunk(3, -1)
                reset_h, update_h, new_h = state_gates(h).chunk(3, -1)
                update = torch.sigmoid(update_x + update_h)
                new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
                h = new + update * (h - new)
                outputs.append(h)
            x = torch.stack(outputs, 1)
            last.append(h)
        return F.layer_norm(x, x.shape[-1:]), torch.stack(last, 2)
