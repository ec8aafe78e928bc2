"""Networks of a single agent, cut out of those of all: what it needs to act alone."""

from __future__ import annotations

import copy
import math
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from mg2l.algorithms.base import TaskInference
from mg2l.algorithms.belief import BeliefEncoder, BeliefInference, belief_latent
from mg2l.algorithms.context import ContextInference
from mg2l.algorithms.corro import CORRO
from mg2l.algorithms.encoder import TransitionAggregator, TransitionMoments
from mg2l.algorithms.focal import FOCAL
from mg2l.algorithms.ma_pearl import MAPearl, posterior
from mg2l.algorithms.mappo import MAPPO
from mg2l.algorithms.mate import MATE
from mg2l.algorithms.mg2l.algorithm import MG2L
from mg2l.algorithms.oracle import Oracle
from mg2l.algorithms.rl2 import RL2
from mg2l.algorithms.varibad import VariBAD
from mg2l.estimators.gaussian import Gaussian
from mg2l.nn.aggregators import PIAHead
from mg2l.nn.distributions import CategoricalHead, GaussianHead
from mg2l.nn.moments import RunningMoments
from mg2l.nn.normaliser import RunningNorm
from mg2l.nn.policy import Actor
from mg2l.nn.stacked import StackedLinear
from mg2l.nn.vision import ImageEncoder, StackedConv
from mg2l.ops.path import TORCH

ToldBy = Literal["nothing", "features", "last_step", "context", "belief"]
_Networks = TypeVar("_Networks", bound=nn.Module)


class Standardise(nn.Module):
    """``(x - mean) / std`` by moments that do not change any more, in float32.

    The networks of a run fold those of transitions into their first layer. Where a feature hardly
    varies, that subtracts large numbers from each other, and costs digits that onnxruntime and
    torch lose in different ways.

    Args:
        moments: of rows ``[F]``, or ``[G, F]``.
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
    """Stands for the moments of networks whose transitions come standardised already."""

    def standardise(self, transitions: Tensor) -> Tensor:
        return transitions

    def fold(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return weight, bias


def cut(networks: _Networks, agent: int) -> _Networks:
    """A copy for one agent: on the CPU, in plain torch, nothing to train.

    Args:
        networks: of all agents, stacked; what they share stays whole. Transitions are for the
            copy to come standardised.
        agent: whose weights are kept.
    """
    one = copy.deepcopy(networks).cpu().requires_grad_(False).eval()
    for part in list(one.modules()):
        if isinstance(part, (StackedLinear, StackedConv, GaussianHead)):
            for name, stacked in list(part.named_parameters(recurse=False)):
                group = agent if len(stacked) > 1 else 0
                own = nn.Parameter(stacked[group : group + 1].clone(), requires_grad=False)
                part.register_parameter(name, own)
        if isinstance(part, (ImageEncoder, BeliefEncoder)):
            part.groups = 1
        if isinstance(part, (TransitionAggregator, PIAHead)):
            part.path = TORCH
        for name, child in list(part.named_children()):
            if isinstance(child, TransitionMoments):
                part.add_module(name, _Standardised())
            elif isinstance(child, RunningNorm):
                part.add_module(name, _FrozenNorm(child, agent))
    return one


class Policy(nn.Module):
    """``pi^i(a^i | o^i, z^i)``.

    Args:
        actor: policies of all agents.
        agent: i.
    """

    def __init__(self, actor: Actor, agent: int) -> None:
        super().__init__()
        self.body, self.head = cut(actor.body, agent), cut(actor.head, agent)
        if self.body.identity is not None:
            self.body.identity = self.body.identity[agent : agent + 1].clone()

    @property
    def outputs(self) -> list[str]:
        """Names of what ``forward`` returns."""
        drawn_from = (
            ["logits"] if isinstance(self.head, CategoricalHead) else ["action_mean", "action_std"]
        )
        return drawn_from if self.body.gru is None else [*drawn_from, "next_state"]

    def forward(
        self, observation: Tensor, told: Tensor | None = None, state: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """What an action is drawn from, and the next recurrent state.

        Args:
            observation: ``[B, O]``.
            told: ``[B, D]`` of the task, if the policy is told anything.
            state: ``[B, layers, H]``, if it is recurrent; zeros at the beginning.

        Returns:
            Logits ``[B, n]``, or mean and standard deviation ``[B, size]``.
        """
        joined = self.body.inputs(
            observation.unsqueeze(0), None if told is None else told.unsqueeze(0)
        )
        first = None
        if state is not None:  # whoever begins an episode gives zeros
            first = torch.zeros(1, observation.shape[0], dtype=torch.bool)
            state = state.unsqueeze(0)
        features, state = self.body(joined, state, first)
        if isinstance(self.head, CategoricalHead):
            drawn_from = [self.head.logits(features)[0]]
        else:
            mean = self.head.mean(features)
            drawn_from = [mean[0], self.head.log_std.exp().expand_as(mean)[0]]
        return (*drawn_from, *([] if state is None else [state[0]]))


class LocalInference(nn.Module):
    """``q(z^i | c^i)``; a subclass for every algorithm that infers from contexts.

    Args:
        inference: of all agents.
        agent: i.
    """

    outputs = ("z_mean", "z_std")

    fixed_length = False
    """Whether contexts must have the length that it was exported with."""

    def __init__(self, inference: ContextInference, agent: int) -> None:
        super().__init__()
        self.standardise = Standardise(inference.moments()[0])

    def infer(self, context: Tensor) -> Gaussian:
        """``[B, 1, D]`` of standardised contexts ``[B, T, 1, F]``."""
        raise NotImplementedError

    def forward(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation ``[B, D]`` of ``z^i``, of contexts ``[B, T, F]``."""
        found = self.infer(self.standardise(context).unsqueeze(2))
        return found.mean[:, 0], found.std[:, 0]


class _Encoded(LocalInference):
    def __init__(self, inference: MG2L, agent: int) -> None:
        super().__init__(inference, agent)
        if inference.options.told_actors != "local":
            raise ValueError(
                "told_actors=global: all agents act on what is inferred from everybody's "
                "transitions"
            )
        self.encoder = cut(inference.acting, agent)
        del self.encoder.over_agents
        # torch specialises a GRU to the length that it is exported with.
        self.fixed_length = inference.options.aggregator == "rnn"

    def infer(self, context: Tensor) -> Gaussian:
        return self.encoder.infer_local(context)


class _Posterior(LocalInference):
    def __init__(self, inference: MAPearl, agent: int) -> None:
        super().__init__(inference, agent)
        self.factors = cut(inference.factors, agent)

    def infer(self, context: Tensor) -> Gaussian:
        return posterior(self.factors(context))


class _Embedded(LocalInference):
    def __init__(self, inference: FOCAL, agent: int) -> None:
        super().__init__(inference, agent)
        self.embedding = cut(inference.embedding, agent)

    def infer(self, context: Tensor) -> Gaussian:
        mean = torch.tanh(self.embedding(context)).mean(2)
        return Gaussian(mean, torch.zeros_like(mean))


class _Attended(LocalInference):
    def __init__(self, inference: CORRO, agent: int) -> None:
        super().__init__(inference, agent)
        self.codes, self.attention = cut(inference.codes, agent), cut(inference.attention, agent)

    def infer(self, context: Tensor) -> Gaussian:
        mean = self.attention(self.codes(context))
        return Gaussian(mean, torch.zeros_like(mean))


class Belief(nn.Module):
    """One step of the belief ``q(z^i | transitions so far)``, of VariBAD or MATE.

    Args:
        inference: of all agents.
        agent: i.

    Raises:
        ValueError: the belief is formed from everybody's transitions.
    """

    outputs = ("told", "next_state")

    def __init__(self, inference: BeliefInference, agent: int) -> None:
        super().__init__()
        if inference.joint:
            raise ValueError(
                "mate_encoding=joint: all agents act on a belief from everybody's transitions"
            )
        self.standardise = Standardise(inference.moments)
        self.encoder = cut(inference.encoder, agent)
        self.state_shape = (1, self.encoder.hidden)

    def forward(self, transition: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take in a transition.

        Args:
            transition: ``[B, F]``.
            state: ``[B, 1, H]`` before it; zeros at the beginning.

        Returns:
            What the policy is told from now on, ``[B, 2 D]``, and the next state.
        """
        rows = self.standardise(transition)[None, None]
        begins = torch.zeros(1, transition.shape[0], dtype=torch.bool)
        features, state = self.encoder(rows, state.unsqueeze(0), begins)
        return self._told(features[:, 0]), state[0]

    def initial(self) -> Tensor:
        """What the policy is told before any transition, ``[2 D]``."""
        return self._told(torch.zeros(1, 1, self.encoder.hidden))[0]

    def _told(self, features: Tensor) -> Tensor:
        return belief_latent(self.encoder.read_out(features))[0]


_KINDS: dict[type[TaskInference], tuple[ToldBy, Any]] = {
    MG2L: ("context", _Encoded),
    MAPearl: ("context", _Posterior),
    FOCAL: ("context", _Embedded),
    CORRO: ("context", _Attended),
    VariBAD: ("belief", Belief),
    MATE: ("belief", Belief),
    MAPPO: ("nothing", None),
    Oracle: ("features", None),
    RL2: ("last_step", None),
}
"""What an agent is told by, and what infers it, of every algorithm."""


def told_by(inference: TaskInference) -> ToldBy:
    """Where what an agent's policy is told of the task comes from.

    Raises:
        ValueError: it is not known how an agent of the algorithm acts alone.
    """
    if type(inference) not in _KINDS:
        raise ValueError(f"it is not known how an agent of {type(inference).__name__} acts alone")
    return _KINDS[type(inference)][0]


def infer_alone(inference: TaskInference, agent: int) -> LocalInference | Belief | None:
    """What an agent infers the task with; None where its algorithm infers nothing.

    Raises:
        ValueError: the agents do not infer each from its own transitions, or as `told_by`.
    """
    told_by(inference)
    kind = _KINDS[type(inference)][1]
    found: LocalInference | Belief | None = None if kind is None else kind(inference, agent)
    return found
