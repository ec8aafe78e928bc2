"""The multi-level task encoder: transitions -> agents -> global and local representations."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mg2l.config.sections import EncoderConfig
from mg2l.estimators.gaussian import STD_FLOOR, Gaussian
from mg2l.experience.replay import Context, as_context
from mg2l.nn.aggregators import (
    AttentionBlock,
    GaussianProduct,
    Mean,
    PIAHead,
    Recurrent,
    Transformer,
)
from mg2l.nn.moments import RunningMoments
from mg2l.nn.stacked import StackedLinear
from mg2l.nn.vision import ImageEncoder, Vision
from mg2l.ops.path import NATIVE, Path
from mg2l.ops.results import EncodedContext


class Encoding(NamedTuple):
    """What an encoder says of B contexts."""

    task: Gaussian
    """Global representation ``z``, ``[B, D]``."""

    local: Gaussian
    """Each agent's own representation ``z^i``, ``[B, A, D]``; its gradients stop at ``x^i``."""


class TransitionMoments(RunningMoments):
    """Moments of every feature of all transitions explored so far.

    They are taken over agents too, so that the agents' transitions stay comparable.

    Args:
        features: width F of a transition.
    """

    def __init__(self, features: int) -> None:
        super().__init__(features)

    def update(self, rows: Tensor, kept: Tensor | None = None) -> None:
        """Merge transitions ``[*, F]``, of which those count that ``kept`` ``[*]`` holds."""
        super().update(rows.flatten(0, -2), None if kept is None else kept.flatten())

    def fold(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """A layer on standardised transitions as a layer on transitions as they are.

        Args:
            weight: ``[H, F]``.
            bias: ``[H]``.

        Returns:
            Weight and bias that give the same; unchanged before the first update.
        """
        scaled = weight.double() / self.std.double()
        shift = scaled @ self.mean.double()
        return scaled.to(weight.dtype), (bias.double() - shift).to(bias.dtype)


class TransitionEncoder(nn.Module):
    """Features of single transitions, which are standardised first; shared by all agents.

    Args:
        config: hidden layers.
        transition: width F of a transition.
        outputs: width of the layer after the hidden ones.
        vision: where the image lies in an observation, if it is read as one.
    """

    def __init__(
        self, config: EncoderConfig, transition: int, outputs: int, vision: Vision | None = None
    ) -> None:
        super().__init__()
        self.image = None if vision is None else ImageEncoder(vision)
        inputs = transition + (0 if self.image is None else 2 * self.image.gain)
        sizes = [inputs, *config.hidden_sizes_mlp]
        self.moments = TransitionMoments(transition)
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in itertools.pairwise(sizes))
        self.output = nn.Linear(sizes[-1], outputs)

    def forward(self, context: Context | Tensor) -> Tensor:
        """``[B, A, T, outputs]`` of B contexts."""
        features: Tensor = self.output(self._hidden(context))
        return features

    def _layers(self) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of every hidden layer, the first one on transitions as they are."""
        layers: list[tuple[Tensor, Tensor]] = [
            (x.weight, x.bias) for x in self.layers if isinstance(x, nn.Linear)
        ]
        if self.image is not None:  # what comes from images is standardised before
            return layers
        return [self.moments.fold(*layers[0]), *layers[1:]]

    def _hidden(self, context: Context | Tensor) -> Tensor:
        """Hidden features ``[B, A, T, H]`` of standardised transitions."""
        hidden = as_context(context).gather()
        if self.image is not None:
            hidden = self._see(hidden)
        for weight, bias in self._layers():
            hidden = F.gelu(F.linear(hidden, weight, bias))
        return hidden.transpose(1, 2)

    def _see(self, transitions: Tensor) -> Tensor:
        """Transitions ``[*, F]``, standardised, the images of both observations as features."""
        assert self.image is not None
        width = self.image.vision.observation
        rows = self.moments.standardise(transitions).flatten(0, -2).unsqueeze(0)
        before, between, after = rows.split([width, rows.shape[-1] - 2 * width, width], -1)
        seen = [self.image.see(before), between, self.image.see(after)]
        return torch.cat(seen, -1).view(*transitions.shape[:-1], -1)


class TransitionAggregator(TransitionEncoder):
    """Transition encoder and aggregation encoder: ``c^i = {(o, a, r, o')_t}_t -> x^i``.

    Shared by all agents; no agent's transitions reach another agent's ``x^i``.
    """

    def __init__(
        self,
        config: EncoderConfig,
        transition: int,
        path: Path = NATIVE,
        vision: Vision | None = None,
    ) -> None:
        width = config.context_dim
        super().__init__(config, transition, width, vision)
        self.path = path
        self.blocks = nn.Sequential()
        self.aggregate: nn.Module
        if config.aggregator == "pia":
            self.blocks = nn.Sequential(
                *(AttentionBlock(width, config.n_heads) for _ in range(config.n_blocks))
            )
            self.aggregate = PIAHead(width, width, path)
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
    def _fused(self) -> bool:
        """Whether one operator takes transitions to what the attention head pools."""
        return len(self.blocks) == 0 and self.image is None

    def _pool(self, context: Context | Tensor, weights: bool) -> EncodedContext:
        """Hidden features pooled by the attention head, ``[B, A, H]``, and its weights."""
        assert isinstance(self.aggregate, PIAHead)
        drawn, layers = as_context(context), self._layers()
        return self.path.encode_context(
            drawn.rows,
            [weight for weight, _ in layers],
            [bias for _, bias in layers],
            self.aggregate.folded_query(self.output),
            index=drawn.index,
            return_weights=weights,
        )

    def priorities(self, context: Context | Tensor) -> Tensor:
        """How much each transition says of the task: B contexts -> ``[B, A, T]``, summing to 1.

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
    """``x^i -> (mu^i, sigma^i)``; without ``local_to_encoder``, on inputs cut off from the graph.

    There is one network per agent, or one for all of them where they share it.
    """

    def __init__(self, config: EncoderConfig, agents: int, share: bool) -> None:
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
        """``x``: ``[B, A, D]``; returns ``[B, A, 2 D]``, raw means and spreads."""
        hidden = (x if self.to_encoder else x.detach()).transpose(0, 1)
        for layer in self.layers:
            hidden = F.gelu(layer(hidden))
        raw: Tensor = self.head(hidden).transpose(0, 1)
        return raw


class TaskEncoder(nn.Module):
    """Global inference from everybody's experience, local inference from each agent's own.

    Args:
        config: sizes and aggregator.
        agents: A.
        transition: width F of a transition ``(o, a, r, o')``.
        path: operators to compute with.
        share: one local inference network for all agents.
        vision: where the image lies in an observation, if it is read as one.
    """

    def __init__(
        self,
        config: EncoderConfig,
        agents: int,
        transition: int,
        path: Path = NATIVE,
        share: bool = False,
        vision: Vision | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.aggregator = TransitionAggregator(config, transition, path, vision)
        self.over_agents = PIAHead(config.context_dim, 2 * config.context_dim, path)
        self.local = LocalInference(config, agents, share)

    def forward(self, context: Context | Tensor) -> Encoding:
        """``context``: B contexts, as drawn from a replay or ``[B, T, A, F]`` float32."""
        x = self.aggregator(context)
        return Encoding(self._gaussian(self.over_agents(x)), self._gaussian(self.local(x)))

    def infer_local(self, context: Context | Tensor) -> Gaussian:
        """The agents' own representations alone, ``[B, A, D]``."""
        return self._gaussian(self.local(self.aggregator(context)))

    def infer_task(self, context: Context | Tensor) -> Gaussian:
        """The global representation alone, ``[B, D]``."""
        return self._gaussian(self.over_agents(self.aggregator(context)))

    def project(self, z: Tensor) -> Tensor:
        """Put points ``[*, D]`` where representations live.

        That is on the sphere of radius ``sqrt(D)``, around which ``N(0, I)`` concentrates, or
        anywhere.
        """
        if self.config.bounded_by == "none":
            return z
        placed: Tensor = F.normalize(z, dim=-1) * z.shape[-1] ** 0.5
        return placed

    def _gaussian(self, raw: Tensor) -> Gaussian:
        mean, spread = raw.chunk(2, -1)
        mean = self.project(mean)
        if self.config.dist == "deterministic":
            return Gaussian(mean, torch.zeros_like(mean))
        return Gaussian(mean, F.softplus(spread) + STD_FLOOR)
