"""Action distributions of all agents: diagonal Gaussian, masked categorical, and teams of both.

Where agents differ, their outputs are padded to the widest agent's. Padding is never drawn, has a
log-probability and an entropy of exactly 0, and no gradient.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mg2l.envs.actions import ActionLayout
from mg2l.nn.stacked import StackedLinear

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class Head(Protocol):
    """What an actor draws from: a module that maps features of all agents to distributions."""

    outputs: tuple[str, ...]
    """Names of what `raw` returns."""

    def act(
        self, hidden: Tensor, mask: Tensor | None, deterministic: bool, generator: Any
    ) -> tuple[Tensor, Tensor]:
        """Actions ``[A, rows]`` or ``[A, rows, W]`` and their log-probabilities ``[A, rows]``."""

    def evaluate(
        self, hidden: Tensor, action: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy ``[A, rows]`` [nats] of given actions."""

    def raw(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """What the distributions are made of, padding and all, ``[A, rows, *]`` each."""

    def own_raw(self, agent: int, raw: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What is one agent's, without padding, of its part ``[rows, *]`` of what `raw` gave."""

    def of_agent(self, agent: int) -> nn.Module:
        """A head of one agent alone, without padding: it shares no memory with this one."""


def make_head(
    layout: ActionLayout, groups: int, hidden: int, gain: float, orthogonal: bool
) -> GaussianHead | CategoricalHead | FactoredHead | MixedHead:
    """The head for a team's action spaces.

    Args:
        layout: of the team's actions.
        groups: A where each agent has its own weights, 1 where they share them.
        hidden: H.
        gain: of the output layers' initialisation.
        orthogonal: initialise with orthogonal matrices.
    """
    size = (groups, hidden)
    if not layout.choices:
        own = None if min(layout.sizes) == layout.numbers else _agents(layout.own_numbers)
        return GaussianHead(*size, layout.numbers, gain, orthogonal, own)
    if layout.numbers:
        return MixedHead(*size, layout, gain, orthogonal)
    if layout.equal and not layout.shape:
        return CategoricalHead(*size, layout.options, gain, orthogonal)
    return FactoredHead(*size, layout, gain, orthogonal)


def _agents(values: Any) -> Tensor:
    """``[A, *]`` for ``[A, rows, *]``."""
    return torch.as_tensor(values).unsqueeze(1)


def _slice(layer: StackedLinear, agent: int, outputs: int) -> StackedLinear:
    """The first outputs of one agent's layer."""
    one = StackedLinear(1, layer.weight.shape[2], outputs, 1.0, orthogonal=False)
    group = agent if len(layer.weight) > 1 else 0
    one.weight.data = layer.weight.data[group : group + 1, :outputs].clone()
    one.bias.data = layer.bias.data[group : group + 1, :outputs].clone()
    return one


class GaussianHead(nn.Module):
    """``a ~ N(mean(h), diag std^2)`` with a standard deviation that does not depend on the state.

    The density is that of the unclipped action: environments clip.

    Args:
        groups: A, or 1 where agents share weights.
        hidden: H.
        size: numbers of the widest action.
        gain: of the output layer's initialisation.
        orthogonal: initialise with orthogonal matrices.
        own: ``[A, 1, size]`` bool, which numbers an agent has; None is all.
    """

    outputs = ("action_mean", "action_std")
    own: Tensor | None

    def __init__(
        self,
        groups: int,
        hidden: int,
        size: int,
        gain: float,
        orthogonal: bool,
        own: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.mean = StackedLinear(groups, hidden, size, gain, orthogonal)
        self.log_std = nn.Parameter(torch.zeros(groups, 1, size))
        self.register_buffer("own", own, persistent=False)

    def act(
        self, hidden: Tensor, mask: Tensor | None, deterministic: bool, generator: Any
    ) -> tuple[Tensor, Tensor]:
        """Actions ``[A, rows, size]`` and their log-probabilities ``[A, rows]`` [nats]."""
        mean = self.mean(hidden)
        if deterministic:
            action = mean
        else:
            noise = torch.randn(mean.shape, generator=generator, device=mean.device)
            action = mean + self.log_std.exp() * noise
        if self.own is not None:
            action = action * self.own
        return action, self._log_prob(mean, action)

    def evaluate(
        self, hidden: Tensor, action: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy ``[A, rows]`` [nats] of given actions."""
        mean = self.mean(hidden)
        entropy = self.log_std + 0.5 + _LOG_SQRT_2PI
        if self.own is not None:
            entropy = entropy * self.own
        return self._log_prob(mean, action), entropy.sum(-1).expand(mean.shape[:-1])

    def raw(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """Means and standard deviations, ``[A, rows, size]`` each."""
        mean = self.mean(hidden)
        return mean, self.log_std.exp().expand_as(mean)

    def own_raw(self, agent: int, raw: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """See `Head.own_raw`."""
        return tuple(value[..., : self._size(agent)] for value in raw)

    def _size(self, agent: int) -> int:
        return self.log_std.shape[-1] if self.own is None else int(self.own[agent].sum())

    def of_agent(self, agent: int) -> GaussianHead:
        """See `Head.of_agent`."""
        size = self._size(agent)
        one = GaussianHead(1, self.mean.weight.shape[2], size, 1.0, orthogonal=False)
        one.mean = _slice(self.mean, agent, size)
        group = agent if len(self.log_std) > 1 else 0
        one.log_std.data = self.log_std.data[group : group + 1, :, :size].clone()
        return one

    def _log_prob(self, mean: Tensor, action: Tensor) -> Tensor:
        error = (action - mean) * torch.exp(-self.log_std)
        if self.own is not None:
            constant = ((self.log_std + _LOG_SQRT_2PI) * self.own).sum(-1)
            return -0.5 * (error * self.own).square().sum(-1) - constant
        constant = self.log_std.sum(-1) + mean.shape[-1] * _LOG_SQRT_2PI
        return -0.5 * error.square().sum(-1) - constant


class CategoricalHead(nn.Module):
    """``a ~ softmax(logits(h))`` over the actions that the mask allows."""

    outputs = ("logits",)

    def __init__(self, groups: int, hidden: int, size: int, gain: float, orthogonal: bool) -> None:
        super().__init__()
        self.logits = StackedLinear(groups, hidden, size, gain, orthogonal)

    def act(
        self, hidden: Tensor, mask: Tensor | None, deterministic: bool, generator: Any
    ) -> tuple[Tensor, Tensor]:
        """Actions ``[A, rows]`` int64 and their log-probabilities ``[A, rows]`` [nats]."""
        log_probs = self._log_probs(hidden, mask)
        if deterministic:
            action = log_probs.argmax(-1)
        else:
            flat = log_probs.exp().flatten(0, -2)
            action = torch.multinomial(flat, 1, generator=generator).view(log_probs.shape[:-1])
        return action, log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def evaluate(
        self, hidden: Tensor, action: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy ``[A, rows]`` [nats] of given actions."""
        log_probs = self._log_probs(hidden, mask)
        chosen = log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)
        # A forbidden action has probability 0 and log-probability -inf; 0 * -inf counts as 0.
        entropy = -(log_probs.exp() * log_probs.clamp(min=-1e4)).sum(-1)
        return chosen, entropy

    def raw(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """Logits ``[A, rows, n]``, unmasked."""
        return (self.logits(hidden),)

    def own_raw(self, agent: int, raw: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """See `Head.own_raw`."""
        return raw

    def of_agent(self, agent: int) -> CategoricalHead:
        """See `Head.of_agent`."""
        _, size, hidden = self.logits.weight.shape
        one = CategoricalHead(1, hidden, size, 1.0, orthogonal=False)
        one.logits = _slice(self.logits, agent, size)
        return one

    def _log_probs(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        logits = self.logits(hidden)
        if mask is not None:
            logits = logits.masked_fill(~mask, float("-inf"))
        return torch.log_softmax(logits, -1)


class FactoredHead(nn.Module):
    """Independent choices ``a_k ~ softmax(logits_k(h))``, in other numbers and sizes per agent.

    Logits of an agent's choices lie one after the other, as in a mask of actions, and are gathered
    into a grid of choices x options. A choice that an agent does not have is a single option.

    Args:
        groups: A, or 1 where agents share weights.
        hidden: H.
        layout: of the team's actions.
        gain: of the output layer's initialisation.
        orthogonal: initialise with orthogonal matrices.
    """

    outputs = ("logits",)
    columns: Tensor
    real: Tensor
    padding: Tensor

    def __init__(
        self, groups: int, hidden: int, layout: ActionLayout, gain: float, orthogonal: bool
    ) -> None:
        super().__init__()
        self.logits = StackedLinear(groups, hidden, layout.options, gain, orthogonal)
        self.layout, self.single = layout, not layout.shape
        columns = _agents(layout.columns)
        real = columns < layout.options
        padding = ~_agents(layout.own_choices)
        first = torch.arange(columns.shape[-1]) == 0
        self.register_buffer("columns", columns.flatten(2), persistent=False)
        self.register_buffer("real", real, persistent=False)
        self.register_buffer("padding", padding.unsqueeze(-1) & first, persistent=False)

    def act(
        self, hidden: Tensor, mask: Tensor | None, deterministic: bool, generator: Any
    ) -> tuple[Tensor, Tensor]:
        """Actions ``[A, rows, choices]`` int64, or ``[A, rows]`` where nobody has more than one.

        Also their log-probabilities ``[A, rows]`` [nats].
        """
        log_probs = self._log_probs(hidden, mask)
        if deterministic:
            action = log_probs.argmax(-1)
        else:
            flat = log_probs.exp().flatten(0, -2)
            action = torch.multinomial(flat, 1, generator=generator).view(log_probs.shape[:-1])
        chosen = log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1).sum(-1)
        return action.squeeze(-1) if self.single else action, chosen

    def evaluate(
        self, hidden: Tensor, action: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy ``[A, rows]`` [nats] of given actions."""
        log_probs = self._log_probs(hidden, mask)
        action = action.unsqueeze(-1) if self.single else action
        action = action.masked_fill(self.padding[..., 0], 0).unsqueeze(-1)
        chosen = log_probs.gather(-1, action).squeeze(-1).sum(-1)
        entropy = -(log_probs.exp() * log_probs.clamp(min=-1e4)).sum((-1, -2))
        return chosen, entropy

    def raw(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """Logits ``[A, rows, options]``, unmasked."""
        return (self.logits(hidden),)

    def own_raw(self, agent: int, raw: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """See `Head.own_raw`."""
        return (raw[0][..., : sum(self.layout.counts[agent])],)

    def of_agent(self, agent: int) -> FactoredHead:
        """See `Head.of_agent`."""
        layout = ActionLayout([self.layout.spaces[agent]])
        one = FactoredHead(1, self.logits.weight.shape[2], layout, 1.0, orthogonal=False)
        one.logits = _slice(self.logits, agent, layout.options)
        return one

    def _log_probs(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """``[A, rows, choices, largest count]``."""
        logits = self._grid(self.logits(hidden), 0.0)
        allowed = self.real if mask is None else self.real & self._grid(mask, False)
        return torch.log_softmax(logits.masked_fill(~(allowed | self.padding), float("-inf")), -1)

    def _grid(self, row: Tensor, padding: float) -> Tensor:
        """``[A, rows, options]`` as a grid."""
        columns = self.columns.expand(-1, row.shape[1], -1)
        grid = F.pad(row, (0, 1), value=padding).gather(-1, columns)
        return grid.view(*columns.shape[:2], *self.real.shape[2:])


class MixedHead(nn.Module):
    """Numbers of some agents, choices of others.

    Either part is padding alone for the others, so log-probabilities and entropies add up.

    Args:
        groups: A, or 1 where agents share weights.
        hidden: H.
        layout: of the team's actions.
        gain: of the output layers' initialisation.
        orthogonal: initialise with orthogonal matrices.
    """

    outputs = ("action_mean", "action_std", "logits")

    def __init__(
        self, groups: int, hidden: int, layout: ActionLayout, gain: float, orthogonal: bool
    ) -> None:
        super().__init__()
        self.sizes, (self.width,) = layout.sizes, layout.shape
        own = _agents(layout.own_numbers)
        self.numbers = GaussianHead(groups, hidden, layout.numbers, gain, orthogonal, own)
        self.choices = FactoredHead(groups, hidden, layout, gain, orthogonal)

    def act(
        self, hidden: Tensor, mask: Tensor | None, deterministic: bool, generator: Any
    ) -> tuple[Tensor, Tensor]:
        """Actions ``[A, rows, W]`` and their log-probabilities ``[A, rows]`` [nats]."""
        numbers, of_numbers = self.numbers.act(hidden, mask, deterministic, generator)
        choices, of_choices = self.choices.act(hidden, mask, deterministic, generator)
        numbers = F.pad(numbers, (0, self.width - numbers.shape[-1]))
        choices = F.pad(choices, (0, self.width - choices.shape[-1]))
        return numbers + choices, of_numbers + of_choices

    def evaluate(
        self, hidden: Tensor, action: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy ``[A, rows]`` [nats] of given actions."""
        numbers = action[..., : self.numbers.log_std.shape[-1]]
        choices = action[..., : self.choices.padding.shape[2]].long()
        found = (
            self.numbers.evaluate(hidden, numbers, mask),
            self.choices.evaluate(hidden, choices, mask),
        )
        return found[0][0] + found[1][0], found[0][1] + found[1][1]

    def raw(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """Means, standard deviations and logits."""
        return (*self.numbers.raw(hidden), *self.choices.raw(hidden))

    def own_raw(self, agent: int, raw: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """See `Head.own_raw`: the numbers' or the choices'."""
        if self.sizes[agent]:
            return self.numbers.own_raw(agent, raw[:2])
        return self.choices.own_raw(agent, raw[2:])

    def of_agent(self, agent: int) -> GaussianHead | FactoredHead:
        """See `Head.of_agent`."""
        part: GaussianHead | FactoredHead = self.numbers if self.sizes[agent] else self.choices
        return part.of_agent(agent)
