"""Decentralised execution: networks of a single agent, sliced out of those of all."""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from torch import Tensor, nn

from mg2l.algorithms.transition_encoder import TransitionMoments
from mg2l.estimators.gaussian import Gaussian
from mg2l.nn.distributions import GaussianHead
from mg2l.nn.moments import RunningMoments
from mg2l.nn.normaliser import RunningNorm
from mg2l.nn.stacked import StackedLinear
from mg2l.nn.vision import StackedConv
from mg2l.ops.backend import TORCH, Backend

_Networks = TypeVar("_Networks", bound=nn.Module)


class Standardise(nn.Module):
    """``(x - mean) / std`` by moments that do not change any more, in float32.

    The networks of a run fold those of transitions into their first layer. Where a feature hardly
    varies, that subtracts large numbers from each other, and costs digits that onnxruntime and
    torch lose in different ways.

    Args:
        moments: moments of rows ``[F]``, or ``[G, F]``.
        group: which of the G.
    """

    mean: Tensor
    rest: Tensor
    std: Tensor

    def __init__(self, moments: RunningMoments, group: int | None = None) -> None:
        super().__init__()
        mean, std = moments.mean.cpu(), moments.std.cpu()
        if group is not None:
            mean, std = mean[group], std[group]
        self.register_buffer("mean", mean.float())
        self.register_buffer("rest", (mean - mean.float()).float())  # what float32 has no room for
        self.register_buffer("std", std.float())

    def forward(self, rows: Tensor) -> Tensor:
        """Rows ``[*, F]``."""
        return (rows - self.mean - self.rest) / self.std

    standardise = forward


class _FrozenNorm(nn.Module):
    """`RunningNorm` of one agent, its moments part of the program."""

    def __init__(self, norm: RunningNorm, agent: int) -> None:
        super().__init__()
        group = agent if len(norm.moments.mean) > 1 else 0
        self.standardise = Standardise(norm.moments, group)
        self.limit, self.image = norm.limit if norm.known else math.inf, norm.image

    def forward(self, observations: Tensor) -> Tensor:
        numbers: Tensor = self.standardise(observations[..., self.image :])
        numbers = numbers.clamp(-self.limit, self.limit)
        if not self.image:
            return numbers
        return torch.cat([observations[..., : self.image], numbers], -1)


class _Standardised(nn.Module):
    """Identity in place of the moments, for networks whose transitions are standardised already."""

    def standardise(self, transitions: Tensor) -> Tensor:
        return transitions

    def fold(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return weight, bias


def slice_agent(networks: _Networks, agent: int) -> _Networks:
    """A copy for one agent: on the CPU, in plain torch, without gradients.

    Args:
        networks: stacked networks of all agents; shared ones stay whole. The copy expects
            transitions that are standardised already.
        agent: whose weights are kept.
    """
    one = copy.deepcopy(networks).cpu().requires_grad_(False).eval()
    for part in list(one.modules()):
        if isinstance(part, (StackedLinear, StackedConv, GaussianHead)):
            for name, stacked in list(part.named_parameters(recurse=False)):
                group = agent if len(stacked) > 1 else 0
                own = nn.Parameter(stacked[group : group + 1].clone(), requires_grad=False)
                part.register_parameter(name, own)
        if hasattr(part, "groups"):
            part.groups = 1  # type: ignore[assignment]
        if isinstance(getattr(part, "backend", None), Backend):
            part.backend = TORCH  # type: ignore[assignment]
        for name, child in list(part.named_children()):
            if isinstance(child, TransitionMoments):
                part.add_module(name, _Standardised())
            elif isinstance(child, RunningNorm):
                part.add_module(name, _FrozenNorm(child, agent))
    return one


class AgentNetwork(nn.Module):
    """An agent's inference network for export; arguments of ``forward`` are its inputs by name."""

    outputs: tuple[str, ...]
    """Names of the outputs of ``forward``."""

    fixed_length: bool = False
    """Whether contexts must have the length that it is exported with."""

    def initial_latent(self) -> Tensor | None:
        """Latent ``[D]`` of the policy before any transition, where there is a fixed one."""
        return None


class ContextAgent(AgentNetwork):
    """``q(z^i | c^i)`` of one agent; a subclass defines how it is inferred.

    Args:
        moments: by which transitions are standardised.
    """

    outputs = ("z_mean", "z_std")

    def __init__(self, moments: RunningMoments) -> None:
        super().__init__()
        self.standardise = Standardise(moments)

    def infer(self, context: Tensor) -> Gaussian:
        """``[B, 1, D]`` of standardised contexts ``[B, T, 1, F]``."""
        raise NotImplementedError

    def forward(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation ``[B, D]`` of ``z^i``, of contexts ``[B, T, F]``."""
        z = self.infer(self.standardise(context).unsqueeze(2))
        return z.mean[:, 0], z.std[:, 0]
