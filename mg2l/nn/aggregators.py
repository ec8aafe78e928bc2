"""From the transitions of a context to one vector per agent, and from agents to one vector.

Every aggregator maps ``[*, T, in] -> [*, out]`` over its next-to-last axis. Except for ``rnn``, the
result does not depend on the order of the transitions.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mg2l.nn.vjp import Pull, linear
from mg2l.ops import reference
from mg2l.ops.backend import NATIVE, Backend


class RunningPool(NamedTuple):
    """What an aggregator needs of all transitions so far."""

    pooled: Tensor
    """``[N, A, *]``, a weighted mean over them."""

    mass: Tensor
    """``[N, A]``, sum of their weights; 0 of an agent without transitions."""

    kept: tuple[Tensor, ...]
    """``[N, *]``, what else the aggregator needs."""


class PIAHead(nn.Module):
    """Permutation-invariant attention head: one learned query shared by all inputs.

    ``w_t = softmax_t(q . W_k x_t / sqrt(d))`` and ``y = W_o (sum_t w_t W_v x_t)`` (Zhao et al.,
    2025, section III). The weights are also the inputs' priorities.

    Since the weights sum to 1 and all but the softmax is linear, ``W_k`` folds into the query and
    the other products are applied once to the pooled input, never to every ``x_t``; with
    ``pool`` the same holds for a linear layer before the head.
    """

    def __init__(self, inputs: int, outputs: int, backend: Backend = NATIVE) -> None:
        super().__init__()
        self.backend = backend
        self.query = nn.Parameter(torch.randn(inputs))
        self.key = nn.Linear(inputs, inputs, bias=False)
        self.value = nn.Linear(inputs, inputs)
        self.output = nn.Linear(inputs, outputs)

    def folded_query(self, before: nn.Linear | None = None) -> Tensor:
        """``q`` with ``W_k``, the scale and a linear layer ``before`` the head folded in, ``[in]``.

        The bias of ``before`` shifts all logits alike, and drops out.
        """
        query = self.key.weight.t() @ self.query / math.sqrt(len(self.query))
        return query if before is None else before.weight.t() @ query

    def read_out(self, pooled: Tensor, before: nn.Linear | None = None) -> Tensor:
        """All linear layers after pooling: ``[*, in] -> [*, out]``."""
        if before is not None:
            pooled = before(pooled)
        read: Tensor = self.output(self.value(pooled))
        return read

    def read_out_vjp(self, pooled: Tensor, before: nn.Linear | None = None) -> tuple[Tensor, Pull]:
        """`read_out` of rows ``[n, in]``, and what takes its gradient back."""
        x, pulls = pooled, []
        for layer in (before, self.value, self.output):
            if layer is not None:
                x, pull_layer = linear(layer, x)
                pulls.append(pull_layer)

        def pull(grad: Tensor | None) -> Tensor | None:
            for pull_layer in reversed(pulls):
                grad = pull_layer(grad)
            return grad

        return x, pull

    def folded_query_vjp(self, before: nn.Linear | None = None) -> tuple[Tensor, Pull]:
        """`folded_query`, and what takes its gradient back; it adds to that of ``before``."""
        scale = 1 / math.sqrt(len(self.query))
        query = self.folded_query()

        def pull(grad: Tensor) -> None:
            if before is not None:
                assert before.weight.grad is not None
                before.weight.grad.addr_(query, grad)
                grad = before.weight @ grad
            self.key.weight.grad = torch.outer(self.query, grad).mul_(scale)
            self.query.grad = (self.key.weight @ grad).mul_(scale)

        return query if before is None else before.weight.t() @ query, pull

    @property
    def has_vjp(self) -> bool:
        """Whether there is a `vjp`: the operator is compiled."""
        return self.backend.pia_pool is not reference.pia_pool

    def vjp(self, x: Tensor) -> tuple[Tensor, Pull]:
        """`forward` of sets ``[B, T, in]``, and what takes its gradient back."""
        from mg2l.ops.pia_pool import pia_pool_vjp  # of the operator, if it is compiled

        query, pull_query = self.folded_query_vjp()
        pooled, pull_pooled = pia_pool_vjp(x, query.unsqueeze(0))
        y, pull_read = self.read_out_vjp(pooled.squeeze(1))

        def pull(grad: Tensor) -> Tensor:
            to_pooled = pull_read(grad)
            assert to_pooled is not None
            to_x, to_query = pull_pooled(to_pooled.unsqueeze(1))
            pull_query(to_query.squeeze(0))
            return to_x

        return y, pull

    def pool(self, hidden: Tensor, before: nn.Linear | None = None) -> tuple[Tensor, Tensor]:
        """Pool ``x_t = before(h_t)`` without forming it.

        Args:
            hidden: ``[*, T, in]``.
            before: linear layer between ``hidden`` and the head's inputs; None if there is none.

        Returns:
            ``[*, out]`` and, without gradients, the weights ``[*, T]``, which sum to 1.
        """
        query = self.folded_query(before).unsqueeze(0)
        pooled, weights = self.backend.pia_pool(hidden, query, return_weights=True)
        assert weights is not None
        return self.read_out(pooled.squeeze(-2), before), weights.squeeze(-2)

    def forward(self, x: Tensor) -> Tensor:
        query = self.folded_query().unsqueeze(0)
        return self.read_out(self.backend.pia_pool(x, query).pooled.squeeze(-2))


class AttentionBlock(nn.Module):
    """Multi-head self-attention and feed forward, each with Add & LayerNorm; no positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
        )
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -3)
        q, k, v = self.qkv(flat).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = self.norm1(x + self.output(attended))
        normed: Tensor = self.norm2(x + self.feed_forward(x))
        return normed


class Transformer(nn.Module):
    """Attention blocks over the inputs and a learned summary token, which is read out."""

    def __init__(self, width: int, outputs: int, heads: int, blocks: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(width) * 0.02)
        self.blocks = nn.Sequential(*(AttentionBlock(width, heads) for _ in range(blocks)))
        self.output = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        token = self.token.expand(*x.shape[:-2], 1, -1)
        y: Tensor = self.output(self.blocks(torch.cat([token, x], -2))[..., 0, :])
        return y


class Recurrent(nn.Module):
    """A GRU over the inputs in the order given; its last state is read out."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.gru = nn.GRU(width, width, batch_first=True)
        self.output = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        _, last = self.gru(x.flatten(0, -3))
        y: Tensor = self.output(last[0]).view(*x.shape[:-2], -1)
        return y


def product_of_gaussians(means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and precision ``[*, D]`` of the normalised product of factors ``[*, T, D]``.

    Precisions add up, and the mean is weighted by them (Rakelly et al., 2019, arXiv:1903.08254,
    eq. 2).
    """
    precisions = 1 / variances
    precision = precisions.sum(-2)
    return (precisions * means).sum(-2) / precision, precision


class GaussianProduct(nn.Module):
    """Each input is a Gaussian factor; mean and log-variance of the product are read out.

    Rakelly et al., 2019, arXiv:1903.08254, eq. 2.
    """

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.factor = nn.Linear(width, 2 * width)
        self.output = nn.Linear(2 * width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        means, raw = self.factor(x).chunk(2, -1)
        mean, precision = product_of_gaussians(means, F.softplus(raw) + 1e-6)
        y: Tensor = self.output(torch.cat([mean, -precision.log()], -1))
        return y


class Mean(nn.Module):
    """The plain average."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.output = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.output(x.mean(-2))
        return y
