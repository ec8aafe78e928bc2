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

from mg2l.nn.vjp import Pull
from mg2l.ops import reference
from mg2l.ops.backend import NATIVE, Backend


def _initialise(weight: Tensor, orthogonal: bool, gain: float) -> None:
    for matrix in weight:
        if orthogonal:
            nn.init.orthogonal_(matrix, gain)
        else:
            nn.init.xavier_uniform_(matrix, gain)


class _Affine(torch.autograd.Function):
    """``y = x W^T + b`` per group, with the weights' gradient written in their own layout.

    Autograd's own gradient would be transposed, and copied at every step.
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


class _SharedAffine(torch.autograd.Function):
    """`_Affine` of rows ``[x, z]`` that all groups share, which are never copied per group.

    ``x`` takes no gradient, and that of ``z`` is formed without it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
        rows = x if z is None else torch.cat([x, z], -1)
        ctx.save_for_backward(rows, weight)
        ctx.fixed = x.shape[-1]
        rows = rows.expand(len(weight), *rows.shape)
        return torch.baddbmm(bias.unsqueeze(1), rows, weight.transpose(1, 2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None, Tensor, Tensor]:
        rows, weight = ctx.saved_tensors
        to_z = None
        if ctx.needs_input_grad[1]:
            to_z = torch.bmm(grad, weight[..., ctx.fixed :]).sum(0)
        to_weight = torch.bmm(grad.transpose(1, 2), rows.expand(len(grad), *rows.shape))
        return None, to_z, to_weight, grad.sum(1)


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

    def vjp(self, x: Tensor) -> tuple[Tensor, Pull]:
        """`forward`, and what takes its gradient back; see `mg2l.nn.vjp`."""
        groups, outputs, inputs = self.weight.shape
        rows = x.reshape(groups, -1, inputs)
        y = torch.baddbmm(self.bias.unsqueeze(1), rows, self.weight.transpose(1, 2))

        def pull(grad: Tensor) -> Tensor:
            grad = grad.reshape(y.shape)
            self.weight.grad, self.bias.grad = torch.bmm(grad.transpose(1, 2), rows), grad.sum(1)
            return torch.bmm(grad, self.weight).view(x.shape)

        return y.view(*x.shape[:-1], outputs), pull

    def shared(self, x: Tensor, z: Tensor | None, one_hot: Tensor | None) -> Tensor:
        """Outputs ``[A, rows, out]`` of all agents for the same inputs, of which there is one row.

        Args:
            x: ``[rows, X]``, through which no gradient flows.
            z: ``[rows, Z]``, the inputs after them, or None.
            one_hot: ``[A, 1, A]``, the last inputs, in which agents with shared weights differ;
                None where each has its own.
        """
        weight = self.weight if one_hot is None else self.weight[..., : -len(one_hot)]
        y: Tensor = _SharedAffine.apply(x, z, weight, self.bias)  # type: ignore[no-untyped-call]
        return y if one_hot is None else y + self.weight[..., -len(one_hot) :].mT.movedim(0, 1)


class StackedMLP(nn.Module):
    """Hidden layers of an actor or critic: linear, activation, LayerNorm, ``1 + layers`` times.

    The norm has no affine part of its own: the next layer's weights hold it.
    """

    def __init__(
        self,
        groups: int,
        inputs: int,
        hidden: int,
        layers: int,
        relu: bool,
        orthogonal: bool,
        backend: Backend = NATIVE,
    ) -> None:
        super().__init__()
        self.relu, self.backend = relu, backend
        gain = nn.init.calculate_gain("relu" if relu else "tanh")
        widths = [inputs] + [hidden] * (1 + layers)
        self.layers = nn.ModuleList(
            StackedLinear(groups, i, o, gain, orthogonal) for i, o in itertools.pairwise(widths)
        )

    def forward(self, x: Tensor, output: StackedLinear | None = None) -> Tensor:
        """Features ``[A, rows, H]``, or what a linear layer ``output`` makes of them."""
        return self._compute(x, [*self.layers], output)

    @property
    def has_vjp(self) -> bool:
        """Whether there is a `vjp`: the operator is compiled."""
        return self.backend.stacked_mlp is not reference.stacked_mlp

    def vjp(self, x: Tensor, output: StackedLinear | None, want_x: bool) -> tuple[Tensor, Pull]:
        """`forward`, and what takes its gradient back; see `mg2l.nn.vjp`."""
        from mg2l.ops.stacked_mlp import stacked_mlp_vjp  # of the operator, if it is compiled

        layers: list[Any] = [*self.layers] if output is None else [*self.layers, output]
        weights, biases = [x.weight for x in layers], [x.bias for x in layers]
        groups, _, inputs = weights[0].shape
        rows = x if len(x) == groups else x.reshape(groups, -1, inputs)
        y, pull_rows = stacked_mlp_vjp(
            rows,
            weights,
            biases,
            relu=self.relu,
            plain_last=output is not None,
            want_x=want_x,
            bfloat16=self.backend.bfloat16,
        )

        def pull(grad: Tensor) -> Tensor | None:
            to_rows, *gradients = pull_rows(grad.reshape(y.shape))
            for parameters, own in zip((weights, biases), gradients, strict=True):
                for parameter, gradient in zip(parameters, own, strict=True):
                    parameter.grad = gradient
            return None if to_rows is None else to_rows.view(x.shape)

        return y if len(x) == groups else y.view(*x.shape[:-1], y.shape[-1]), pull

    def shared(
        self,
        x: Tensor,
        z: Tensor | None,
        one_hot: Tensor | None,
        output: StackedLinear | None = None,
    ) -> Tensor:
        """`forward` of the inputs of `StackedLinear.shared`."""
        first, *rest = list[Any](self.layers)
        if one_hot is None and (z is None or not z.requires_grad):
            rows = x if z is None else torch.cat([x, z], -1)
            return self._compute(
                rows.expand(len(first.weight), *rows.shape), [first, *rest], output
            )
        assert isinstance(first, StackedLinear)
        hidden = first.shared(x, z, one_hot)
        hidden = F.relu(hidden) if self.relu else torch.tanh(hidden)
        hidden = F.layer_norm(hidden, hidden.shape[-1:])
        if not rest:
            return hidden if output is None else output(hidden)
        return self._compute(hidden, rest, output)

    def _compute(self, x: Tensor, hidden: list[Any], output: StackedLinear | None) -> Tensor:
        """Normalised layers, and a linear one if there is one, of rows ``[A, rows, in]``."""
        layers = hidden if output is None else [*hidden, output]
        weights = [layer.weight for layer in layers]
        groups, _, inputs = weights[0].shape
        y = self.backend.stacked_mlp(
            x if len(x) == groups else x.reshape(groups, -1, inputs),
            weights,
            [layer.bias for layer in layers],
            relu=self.relu,
            plain_last=output is not None,
            bfloat16=self.backend.bfloat16 and torch.is_grad_enabled(),
        )
        return y if len(x) == groups else y.view(*x.shape[:-1], y.shape[-1])


class _GRULayer(torch.autograd.Function):
    """A GRU's steps through time, with the gradient of its weights as one product at the end.

    Autograd's own backward would take several times as long as the forward pass: it multiplies and
    adds the weights' gradient at every step, and fills a gradient of all steps for each of them.
    """

    @staticmethod
    def forward(
        ctx: Any, gates: Tensor, state: Tensor, keep: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        hidden = state.shape[-1]
        weight_t, offset = weight.transpose(1, 2), bias.unsqueeze(1)
        before, outputs, opened, news, candidates = [], [], [], [], []
        for of_input, kept in zip(gates.unbind(1), keep.unbind(1), strict=True):
            held = state * kept
            of_state = torch.baddbmm(offset, held, weight_t)
            both = torch.sigmoid(of_input[..., : 2 * hidden] + of_state[..., : 2 * hidden])
            candidate = of_state[..., 2 * hidden :]
            new = torch.tanh(of_input[..., 2 * hidden :] + both[..., :hidden] * candidate)
            state = new + both[..., hidden:] * (held - new)
            before.append(held)
            outputs.append(state)
            opened.append(both)
            news.append(new)
            candidates.append(candidate)
        saved = [torch.stack(x, 1) for x in (before, opened, news, candidates)]
        ctx.save_for_backward(*saved, keep, weight)
        return torch.stack(outputs, 1), state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, carry: Tensor) -> tuple[Tensor | None, ...]:
        before, opened, new, candidate, keep, weight = ctx.saved_tensors
        reset, update = opened.chunk(2, -1)
        # How the two gates and the new state change with what they are functions of.
        slopes = (
            candidate * reset * (1 - reset),
            (before - new) * update * (1 - update),
            (1 - update) * (1 - new.square()),
            reset,
            update,
            keep,
            grad,
        )
        to_input, to_state = [], []
        for step in zip(*(x.unbind(1)[::-1] for x in slopes), strict=True):
            of_reset, of_update, of_new, opened_by, held_by, kept, out = step
            carry = carry + out
            new_part = carry * of_new
            reset_part, update_part = new_part * of_reset, carry * of_update
            to_input.append(torch.cat([reset_part, update_part, new_part], -1))
            to_state.append(torch.cat([reset_part, update_part, new_part * opened_by], -1))
            carry = torch.baddbmm(carry * held_by, to_state[-1], weight) * kept
        for_input, for_state = (torch.stack(x[::-1], 1) for x in (to_input, to_state))
        rows = for_state.flatten(1, 2)
        to_weight = torch.bmm(rows.transpose(1, 2), before.flatten(1, 2))
        return for_input, carry, None, to_weight, rows.sum(1)


class StackedGRU(nn.Module):
    """A GRU per agent over time, whose state is reset at the start of an episode.

    The gates follow Cho et al. (2014, arXiv:1406.1078) in the form of ``torch.nn.GRU``.
    """

    keeps_states = True
    """Whether states are small enough to be kept for every step of a rollout."""

    def __init__(self, groups: int, hidden: int, layers: int, orthogonal: bool) -> None:
        super().__init__()
        self.groups = groups
        self.state_shape: tuple[int, ...] = (layers, hidden)
        gain = 1.0
        self.input = nn.ModuleList(
            StackedLinear(groups, hidden, 3 * hidden, gain, orthogonal) for _ in range(layers)
        )
        self.state = nn.ModuleList(
            StackedLinear(groups, hidden, 3 * hidden, gain, orthogonal) for _ in range(layers)
        )

    def initial_state(self, agents: int, rows: int) -> Tensor:
        """The state before the reset step, ``[A, rows, layers, H]``."""
        one = next(self.parameters())
        shape = (agents, rows, *self.state_shape)
        return torch.zeros(shape, device=one.device, dtype=one.dtype)

    def forward(self, x: Tensor, state: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        """Run over ``steps`` steps.

        Args:
            x: ``[A, steps, rows, H]``.
            state: ``[A, rows, layers, H]`` before the first step.
            reset: ``[steps, rows]`` bool; the state is zeroed before a step where it is true.

        Returns:
            outputs ``[A, steps, rows, H]`` (layer-normalised) and the state after the last step.
        """
        agents, steps, rows, hidden = x.shape
        groups = self.groups
        shared = agents // groups  # agents of a network, whose rows are one batch
        keep = (~reset).to(x.dtype).repeat(1, shared)[None, :, :, None]
        last = []
        for index, (input_gates, state_gates) in enumerate(
            zip(self.input, self.state, strict=True)
        ):
            gates = input_gates(x.flatten(1, 2)).view(groups, shared, steps, rows, 3 * hidden)
            x, h = _GRULayer.apply(  # type: ignore[no-untyped-call]
                gates.transpose(1, 2).flatten(2, 3),
                state[:, :, index].reshape(groups, shared * rows, hidden),
                keep,
                state_gates.weight,
                state_gates.bias,
            )
            x = x.view(groups, steps, shared, rows, hidden).transpose(1, 2).flatten(0, 1)
            last.append(h.view(agents, rows, hidden))
        return F.layer_norm(x, x.shape[-1:]), torch.stack(last, 2)
