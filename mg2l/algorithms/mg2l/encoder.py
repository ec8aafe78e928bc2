"""The multi-level task encoder: transitions -> agents -> global and local representations."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mg2l.algorithms.base import Encoding
from mg2l.algorithms.mg2l.config import MG2LConfig
from mg2l.algorithms.mg2l.regression import TransitionRegression
from mg2l.algorithms.transition_encoder import TransitionEncoder
from mg2l.estimators.gaussian import STD_FLOOR, Gaussian
from mg2l.experience.replay import Context, as_context
from mg2l.nn.aggregators import (
    AttentionBlock,
    GaussianProduct,
    Mean,
    PIAHead,
    Recurrent,
    RunningPool,
    Transformer,
)
from mg2l.nn.sphere import unit, unit_gradient
from mg2l.nn.stacked import StackedLinear
from mg2l.nn.vision import Vision
from mg2l.nn.vjp import Both, Pull
from mg2l.ops import reference
from mg2l.ops.backend import NATIVE, Backend
from mg2l.ops.results import EncodedContext


class RawEncoding(NamedTuple):
    """What networks make of B contexts: means before they are projected, and raw deviations."""

    task: Tensor
    """Of the global representation, ``[B, 2 D]``."""

    local: Tensor
    """Of each agent's own, ``[A, B, 2 D]``."""


class TransitionAggregator(TransitionEncoder):
    """Transition encoder and aggregation encoder: ``c^i = {(o, a, r, o')_t}_t -> x^i``.

    Shared by all agents; no agent's transitions reach another agent's ``x^i``.
    """

    def __init__(
        self,
        config: MG2LConfig,
        transition: int,
        backend: Backend = NATIVE,
        vision: Vision | None = None,
    ) -> None:
        width = config.context_dim
        super().__init__(config.hidden_sizes_mlp, transition, width, vision)
        self.backend = backend
        self.blocks = nn.Sequential()
        self.aggregate: nn.Module
        if config.aggregator == "pia":
            self.blocks = nn.Sequential(
                *(AttentionBlock(width, config.n_heads) for _ in range(config.n_blocks))
            )
            self.aggregate = PIAHead(width, width, backend)
        elif config.aggregator == "transformer":
            self.aggregate = Transformer(width, width, config.n_heads, max(config.n_blocks, 1))
        elif config.aggregator == "rnn":
            self.aggregate = Recurrent(width, width)
        elif config.aggregator == "gaussian_product":
            self.aggregate = GaussianProduct(width, width)
        else:
            self.aggregate = Mean(width, width)

    def forward(self, context: Context | Tensor) -> Tensor:
        """``context``: B contexts; returns ``x``: ``[B, A, D]``."""
        head = self.aggregate
        if isinstance(head, PIAHead) and self._fused:
            return head.read_out(self._pool(context, False).pooled, self.output)
        x: Tensor = head(self.blocks(super().forward(context)))
        return x

    @property
    def has_vjp(self) -> bool:
        """Whether there is a `vjp`: one operator pools transitions, and it is compiled."""
        compiled = self.backend.encode_context is not reference.encode_context
        return compiled and self.pools_as_it_goes

    def vjp(self, context: Context, both: Both | None = None) -> tuple[Tensor, Pull]:
        """`forward`, and what takes its gradient back; see `mg2l.nn.vjp`.

        With ``both``, halves of the contexts are encoded apart, whose gradients are added.
        """
        from mg2l.ops.encode_context import encode_context_vjp  # of the operator, if it is compiled

        head = self.aggregate
        assert isinstance(head, PIAHead)
        hidden: list[Any] = [*self.layers]
        weights, biases = zip(*self._layers(), strict=True)
        query, pull_query = head.folded_query_vjp(self.output)

        def encode(part: Context) -> tuple[Tensor, Callable[[Tensor], Any]]:
            layers, bfloat16 = (weights, biases, query), self.backend.bfloat16
            return encode_context_vjp(part.rows, *layers, index=part.index, bfloat16=bfloat16)

        if both is None:
            pooled, pull_pooled = encode(context)
        else:
            parts, pulls = zip(*both(encode, context.halves()), strict=True)
            pooled = torch.cat(parts)

            def pull_pooled(grad: Tensor) -> Any:
                work = [*zip(pulls, grad.tensor_split(2), strict=True)]
                one, two = both(lambda part: part[0](part[1]), work)
                for sums, others in zip((*one[:2], [one[2]]), (*two[:2], [two[2]]), strict=True):
                    torch._foreach_add_(sums, others)
                return one

        x, pull_read = head.read_out_vjp(pooled.flatten(0, 1), self.output)

        def pull(grad: Tensor) -> None:
            to_pooled = pull_read(grad.flatten(0, 1))
            assert to_pooled is not None
            to_weights, to_biases, to_query = pull_pooled(to_pooled.view_as(pooled))
            pull_query(to_query)
            to_weights[0], to_biases[0] = self.moments.unfold(to_weights[0], to_biases[0])
            for layer, to_weight, to_bias in zip(hidden, to_weights, to_biases, strict=True):
                layer.weight.grad, layer.bias.grad = to_weight, to_bias

        return x.view(*pooled.shape[:2], -1), pull

    def begin(self, rows: Tensor, weight: Tensor) -> RunningPool:
        """Pool transitions ``[N, T, A, F]``, each of which counts ``weight`` ``[N]`` times.

        Kept is the largest logit of a weight, ``[N, A]``; weights are ``exp(logit - largest)``.
        """
        hidden, logits = self._scored(rows)
        peak = logits.amax(-1)
        each = (logits - peak.unsqueeze(-1)).exp()
        total = each.sum(-1, keepdim=True)
        pooled = ((each / total).unsqueeze(-2) @ hidden).squeeze(-2)
        return RunningPool(pooled, total.squeeze(-1) * weight.unsqueeze(-1), (peak,))

    def extend(self, pool: RunningPool | None, rows: Tensor, alive: Tensor) -> RunningPool:
        """Add a transition ``[N, A, F]`` of each agent that is ``alive`` ``[N, A]``."""
        hidden, logits = self._scored(rows.unsqueeze(1))
        hidden, logits = hidden.squeeze(2), logits.squeeze(2)
        if pool is None:
            return RunningPool(hidden, alive, (logits,))
        largest = pool.kept[0]
        peak = torch.maximum(largest, logits)
        before, now = pool.mass * (largest - peak).exp(), alive * (logits - peak).exp()
        mass = before + now
        part = (now / mass.clamp(min=1e-30)).unsqueeze(-1)
        return RunningPool(torch.lerp(pool.pooled, hidden, part), mass, (peak,))

    def _scored(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden features ``[N, A, T, H]`` of transitions ``[N, T, A, F]``, and their logits."""
        assert isinstance(self.aggregate, PIAHead)
        hidden = self._hidden(rows)
        return hidden, hidden @ self.aggregate.folded_query(self.output)

    def read_out(self, pool: RunningPool) -> Tensor:
        """``x``, ``[N, A, D]``, of all transitions in a pool."""
        assert isinstance(self.aggregate, PIAHead)
        return self.aggregate.read_out(pool.pooled, self.output)

    @property
    def pools_as_it_goes(self) -> bool:
        """Whether transitions can be pooled one after the other."""
        return self._fused and isinstance(self.aggregate, PIAHead)

    @property
    def _fused(self) -> bool:
        """Whether one operator maps transitions to the pooled features of the attention head."""
        return len(self.blocks) == 0 and self.image is None

    def _pool(self, context: Context | Tensor, weights: bool) -> EncodedContext:
        """Hidden features pooled by the attention head, ``[B, A, H]``, and its weights."""
        assert isinstance(self.aggregate, PIAHead)
        drawn, layers = as_context(context), self._layers()
        return self.backend.encode_context(
            drawn.rows,
            [weight for weight, _ in layers],
            [bias for _, bias in layers],
            self.aggregate.folded_query(self.output),
            index=drawn.index,
            bfloat16=self.backend.bfloat16 and torch.is_grad_enabled(),
            return_weights=weights,
        )

    def priorities(self, context: Context | Tensor) -> Tensor:
        """Attention weight of each transition: B contexts -> ``[B, A, T]``, summing to 1.

        Raises:
            ValueError: the aggregator has no attention head.
        """
        if not isinstance(self.aggregate, PIAHead):
            raise ValueError("priorities need aggregator 'pia'")
        if not self._fused:
            return self.aggregate.pool(self.blocks(super().forward(context)))[1]
        weights = self._pool(context, True).weights
        assert weights is not None
        return weights


class LocalInference(nn.Module):
    """``x^i -> (mu^i, sigma^i)``; without ``local_to_encoder``, inputs are detached.

    There is one network per agent, or one for all of them where they share it.
    """

    def __init__(self, config: MG2LConfig, agents: int, share: bool) -> None:
        super().__init__()
        self.to_encoder = config.local_to_encoder
        groups = 1 if share else agents
        sizes = [config.context_dim, *config.hidden_sizes_mlp]
        self.layers = nn.ModuleList(
            StackedLinear(groups, inputs, outputs, 2**0.5)
            for inputs, outputs in itertools.pairwise(sizes)
        )
        self.head = StackedLinear(groups, sizes[-1], 2 * config.context_dim, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """``x``: ``[B, A, D]``; returns ``[A, B, 2 D]``, raw means and standard deviations."""
        hidden = (x if self.to_encoder else x.detach()).transpose(0, 1)
        for layer in self.layers:
            hidden = F.gelu(layer(hidden))
        raw: Tensor = self.head(hidden)
        return raw

    def vjp(self, x: Tensor) -> tuple[Tensor, Pull]:
        """`forward`, and what takes its gradient back; see `mg2l.nn.vjp`."""
        batch, agents, width = x.shape
        layers: list[Any] = [*self.layers]
        hidden = x.transpose(0, 1).reshape(len(self.head.weight), -1, width)
        pulls, inputs = [], []
        for layer in layers:
            before, pull_layer = layer.vjp(hidden)
            hidden = F.gelu(before)
            pulls.append(pull_layer)
            inputs.append(before)
        raw, pull_head = self.head.vjp(hidden)

        def pull(grad: Tensor) -> Tensor | None:
            to_hidden = pull_head(grad.reshape(raw.shape))
            for pull_layer, before in zip(reversed(pulls), reversed(inputs), strict=True):
                to_hidden = pull_layer(torch.ops.aten.gelu_backward(to_hidden, before))
            assert to_hidden is not None
            return to_hidden.view(agents, batch, width).transpose(0, 1) if self.to_encoder else None

        return raw.view(agents, batch, -1), pull


class Coefficients(nn.Module):
    """Coefficients of a regression as they are: ``x^i`` is the mean of ``z^i``."""

    def forward(self, x: Tensor) -> Tensor:
        """``x``: ``[B, A, D]``; returns ``[A, B, 2 D]``."""
        return torch.cat([x, torch.zeros_like(x)], -1).transpose(0, 1)


class TaskEncoder(nn.Module):
    """Global inference from joint experience, local inference from each agent's own.

    Args:
        config: sizes and aggregator.
        agents: A.
        transition: width F of a transition ``(o, a, r, o')``.
        backend: operators to compute with.
        share: one local inference network for all agents.
        vision: where the image lies in an observation, if it is read as one.
        reward: the reward's column in a transition, for ``aggregator: regression``.
    """

    def __init__(
        self,
        config: MG2LConfig,
        agents: int,
        transition: int,
        backend: Backend = NATIVE,
        share: bool = False,
        vision: Vision | None = None,
        reward: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        self.aggregator: TransitionAggregator | TransitionRegression
        if config.aggregator == "regression":
            sizes, width = config.hidden_sizes_mlp, config.context_dim
            self.aggregator = TransitionRegression(sizes, transition, reward, width, backend)
            self.local: LocalInference | Coefficients = Coefficients()
        else:
            self.aggregator = TransitionAggregator(config, transition, backend, vision)
            self.local = LocalInference(config, agents, share)
        self.over_agents = PIAHead(config.context_dim, 2 * config.context_dim, backend)

    def forward(self, context: Context | Tensor) -> Encoding:
        """``context``: B contexts, as drawn from a replay or ``[B, T, A, F]`` float32."""
        return self.gaussians(self.raw(context))

    def raw(self, context: Context | Tensor) -> RawEncoding:
        """What `gaussians` makes representations of."""
        return self.raw_of(self.aggregator(context))

    @property
    def has_vjp(self) -> bool:
        """Whether there is a `vjp`."""
        aggregator = self.aggregator
        networks = isinstance(aggregator, TransitionAggregator) and aggregator.has_vjp
        return networks and self.over_agents.has_vjp

    def vjp(self, context: Context) -> tuple[RawEncoding, Pull]:
        """`raw`, and what takes gradients of both back, if need be of the global one alone."""
        assert isinstance(self.aggregator, TransitionAggregator)
        assert isinstance(self.local, LocalInference)
        x, pull_x = self.aggregator.vjp(context)
        task, pull_task = self.over_agents.vjp(x)
        local, pull_local = self.local.vjp(x)

        def pull(to_task: Tensor, to_local: Tensor | None) -> None:
            to_x, from_local = pull_task(to_task), None
            assert to_x is not None
            if to_local is not None:
                from_local = pull_local(to_local)
            pull_x(to_x if from_local is None else to_x.add_(from_local))

        return RawEncoding(task, local), pull

    def gaussians(self, raw: RawEncoding) -> Encoding:
        """Representations."""
        return Encoding(self._gaussian(raw.task), self._gaussian(raw.local.transpose(0, 1)))

    def read_out(self, pool: RunningPool) -> Encoding:
        """Representations of what agents have seen so far."""
        return self.gaussians(self.raw_of(self.aggregator.read_out(pool)))

    def raw_of(self, x: Tensor) -> RawEncoding:
        """`raw`, given what the aggregator makes of B contexts, ``[B, A, D]``."""
        return RawEncoding(self.over_agents(x), self.local(x))

    def infer_local(self, context: Context | Tensor) -> Gaussian:
        """Only the agents' own representations, ``[B, A, D]``."""
        return self._gaussian(self.local(self.aggregator(context)).transpose(0, 1))

    def infer_task(self, context: Context | Tensor) -> Gaussian:
        """Only the global representation, ``[B, D]``."""
        return self._gaussian(self.over_agents(self.aggregator(context)))

    def task_vjp(self, context: Context, both: Both) -> tuple[Tensor, Pull]:
        """Means of `infer_task`, and what takes their gradient back; see `mg2l.nn.vjp`."""
        assert isinstance(self.aggregator, TransitionAggregator)
        x, pull_x = self.aggregator.vjp(context, both)
        raw, pull_raw = self.over_agents.vjp(x)
        mean = raw.chunk(2, -1)[0]

        def pull(grad: Tensor) -> None:
            if self.config.bounded_by != "none":
                grad = unit_gradient(mean, grad * grad.shape[-1] ** 0.5)
            to_x = pull_raw(torch.cat([grad, torch.zeros_like(grad)], -1))
            assert to_x is not None
            pull_x(to_x)

        return self.project(mean), pull

    def project(self, z: Tensor) -> Tensor:
        """Project points ``[*, D]`` to the space of representations.

        That is the sphere of radius ``sqrt(D)``, around which ``N(0, I)`` concentrates, or all
        of the space.
        """
        if self.config.bounded_by == "none":
            return z
        projected: Tensor = unit(z) * z.shape[-1] ** 0.5
        return projected

    def _gaussian(self, raw: Tensor) -> Gaussian:
        mean, raw_std = raw.chunk(2, -1)
        mean = self.project(mean)
        if self.config.dist == "deterministic":
            return Gaussian(mean, torch.zeros_like(mean))
        return Gaussian(mean, F.softplus(raw_std) + STD_FLOOR)
