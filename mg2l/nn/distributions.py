"""Action distributions of all agents: diagonal Gaussian, masked categorical, and teams of both.

Where agents differ, their outputs are padded to the widest agent's. Padding is never drawn, has a
log-probability and an entropy of exactly 0, and no gradient.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mg2l.core.distributed import world
from mg2l.envs.actions import ActionLayout
from mg2l.nn.stacked import StackedLinear
from mg2l.nn.vjp import Pull, by_autograd
from mg2l.ops.backend import Backend
from mg2l.ops.reference import LOG_SQRT_2PI


class Head(Protocol):
    """An actor's output head: a module that maps features of all agents to distributions."""

    outputs: tuple[str, ...]
    """Names of the outputs of `raw`."""

    @property
    def linear(self) -> StackedLinear | None:
        """Layer whose outputs `act` and `evaluate` take; without one they take features."""

    def act(self, x: Tensor, mask: Tensor | None, deterministic: bool, generator: Any) -> Tensor:
        """Actions ``[A, rows]`` or ``[A, rows, W]``."""

    def evaluate(self, x: Tensor, action: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy ``[A, rows]`` [nats] of given actions."""

    def raw(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """Parameters of the distributions with padding, ``[A, rows, *]`` each."""

    def own_raw(self, agent: int, raw: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """One agent's parameters without padding, from its rows ``[rows, *]`` of `raw`."""

    def of_agent(self, agent: int) -> nn.Module:
        """A head of one agent, without padding, that shares no memory with this one."""


def make_head(
    layout: ActionLayout, groups: int, hidden: int, gain: float, orthogonal: bool
) -> GaussianHead | CategoricalHead | FactoredHead | MixedHead:
    """The head for a team's action spaces.

    Args:
        layout: layout of the team's actions.
        groups: A where each agent has its own weights, 1 where they share them.
        hidden: H.
        gain: gain of the output layers' initialisation.
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


class SurrogateRows(NamedTuple):
    """What the surrogate loss is computed from beside the policies and their actions."""

    before: Tensor
    """``[A, rows]`` log-probabilities by the policies that took the actions [nats]."""

    advantages: Tensor
    """``[A, rows]``."""

    weights: Tensor | float
    """``[A, rows]``, what a row counts in the mean of its agent; a number where all count alike."""


class PolicyLoss(NamedTuple):
    """Losses of the policies, ``[A]`` each, as in `mg2l.ops.results.GaussianSurrogate`."""

    loss: Tensor
    surrogate: Tensor
    entropy: Tensor
    kl: Tensor
    clip_fraction: Tensor


def surrogate_by_autograd(
    head: CategoricalHead | FactoredHead | MixedHead,
    x: Tensor,
    action: Tensor,
    mask: Tensor | None,
    rows: SurrogateRows,
    backend: Backend,
    *,
    clip: float,
    entropy_coef: float,
) -> tuple[PolicyLoss, Pull]:
    """`GaussianHead.surrogate` of a head without gradients in closed form."""
    (log_probs, entropy), pull_values = by_autograd(
        lambda x: head.evaluate(x, action, mask), x, want_x=True
    )
    found = backend.surrogate(log_probs, *rows, clip)
    entropies = (entropy * rows.weights).sum(1)

    def pull(factor: float) -> Tensor | None:
        to_entropy = -entropy_coef * factor * rows.weights
        if not isinstance(to_entropy, Tensor):
            to_entropy = torch.full_like(entropy, to_entropy)
        return pull_values(found.slope * factor, to_entropy)

    loss = found.loss - entropy_coef * entropies
    return PolicyLoss(loss, found.loss, entropies, found.kl, found.clip_fraction), pull


class NonFiniteProbabilityError(ValueError):
    """There is no distribution to draw from."""


def draw_categorical(probs: Tensor, generator: Any) -> Tensor:
    """Draws ``[A, rows, *]`` from categorical distributions ``[A, rows, *, n]``.

    ``argmax_k p_k / e_k`` with ``e_k ~ Exp(1)`` is ``k`` with probability ``p_k``: the exponential
    race by which ``torch.multinomial`` draws, too, here for own rows alone.

    Raises:
        NonFiniteProbabilityError: a probability is NaN or infinite.
    """
    # A GPU would be waited for; there the log-probabilities of a rollout are checked at its end.
    if probs.device.type == "cpu" and not bool(probs.isfinite().all()):
        raise NonFiniteProbabilityError("a probability is NaN or infinite")

    def exponential(shape: list[int]) -> Tensor:
        return probs.new_empty(shape).exponential_(generator=generator)

    return (probs / world.draw(exponential, probs.shape, dim=1)).argmax(-1)


def _agents(values: Any) -> Tensor:
    """``[A, *]`` for ``[A, rows, *]``."""
    return torch.as_tensor(values).unsqueeze(1)


def _slice(layer: StackedLinear, agent: int, outputs: int) -> StackedLinear:
    """The first outputs of one agent's layer, as a layer."""
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
        gain: gain of the output layer's initialisation.
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

    @property
    def linear(self) -> StackedLinear | None:
        """See `Head.linear`."""
        return self.mean

    def act(self, x: Tensor, mask: Tensor | None, deterministic: bool, generator: Any) -> Tensor:
        """Actions ``[A, rows, size]``."""
        if deterministic:
            action = x
        else:

            def randn(shape: list[int]) -> Tensor:
                return torch.randn(shape, generator=generator, device=x.device)

            action = x + self.log_std.exp() * world.draw(randn, x.shape, dim=1)
        return action if self.own is None else action * self.own

    def evaluate(self, x: Tensor, action: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy ``[A, rows]`` [nats] of given actions."""
        return self._log_prob(x, action), self._entropy(x)

    def _entropy(self, x: Tensor) -> Tensor:
        entropy = self.log_std + (0.5 + LOG_SQRT_2PI)
        if self.own is not None:
            entropy = entropy * self.own
        return entropy.sum(-1).expand(x.shape[:-1])

    def surrogate(
        self, x: Tensor, action: Tensor, rows: SurrogateRows, backend: Backend, **options: float
    ) -> tuple[PolicyLoss, Pull]:
        """Losses of each agent, and what takes a factor of their gradients back to ``x``."""
        found = backend.gaussian_surrogate(x, self.log_std, action, *rows, own=self.own, **options)

        def pull(factor: float) -> Tensor:
            slopes = [found.mean_slope, found.log_std_slope]
            to_x, to_log_std = slopes if factor == 1 else torch._foreach_mul(slopes, factor)
            self.log_std.grad = to_log_std.sum_to_size(self.log_std.shape)
            return to_x

        return PolicyLoss(*found[:5]), pull

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
        density: Tensor = _GaussianLogProb.apply(mean, self.log_std, action, self.own)  # type: ignore
        return density


class _GaussianLogProb(torch.autograd.Function):
    """Log-density ``[A, rows]`` of actions, in fewer operations than autograd would take."""

    @staticmethod
    def forward(
        ctx: Any, mean: Tensor, log_std: Tensor, action: Tensor, own: Tensor | None
    ) -> Tensor:
        log_prob, error, scale = _gaussian_log_prob(mean, log_std, action, own)
        ctx.save_for_backward(error, scale, own)
        return log_prob

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        error, scale, own = ctx.saved_tensors
        to_mean, to_log_std = _gaussian_slopes(error, scale, own, grad)
        return to_mean, to_log_std.sum_to_size(scale.shape), None, None


def _gaussian_log_prob(
    mean: Tensor, log_std: Tensor, action: Tensor, own: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-density ``[A, rows]``, and what its slopes need."""
    scale = torch.exp(-log_std)
    error = (action - mean) * scale
    constant = log_std + LOG_SQRT_2PI
    if own is not None:
        error, constant = error * own, constant * own
    return error.square().sum(-1).mul_(-0.5).sub_(constant.sum(-1)), error, scale


def _gaussian_slopes(
    error: Tensor, scale: Tensor, own: Tensor | None, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the mean, and of each agent's logarithm of the standard deviation."""
    to_error = error * grad.unsqueeze(-1)
    to_log_std = (to_error * error).sum(1, True) - grad.sum(1).view(-1, 1, 1)
    return to_error * scale, to_log_std if own is None else to_log_std * own


class CategoricalHead(nn.Module):
    """``a ~ softmax(logits(h))`` over the actions that the mask allows."""

    outputs = ("logits",)

    def __init__(self, groups: int, hidden: int, size: int, gain: float, orthogonal: bool) -> None:
        super().__init__()
        self.logits = StackedLinear(groups, hidden, size, gain, orthogonal)

    @property
    def linear(self) -> StackedLinear | None:
        """See `Head.linear`."""
        return self.logits

    def act(self, x: Tensor, mask: Tensor | None, deterministic: bool, generator: Any) -> Tensor:
        """Actions ``[A, rows]`` int64."""
        log_probs = self._log_probs(x, mask)
        if deterministic:
            return log_probs.argmax(-1)
        return draw_categorical(log_probs.exp(), generator)

    def evaluate(self, x: Tensor, action: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy ``[A, rows]`` [nats] of given actions."""
        log_probs = self._log_probs(x, mask)
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

    def _log_probs(self, logits: Tensor, mask: Tensor | None) -> Tensor:
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
        layout: layout of the team's actions.
        gain: gain of the output layer's initialisation.
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

    @property
    def linear(self) -> StackedLinear | None:
        """See `Head.linear`."""
        return self.logits

    def act(self, x: Tensor, mask: Tensor | None, deterministic: bool, generator: Any) -> Tensor:
        """Actions ``[A, rows, choices]`` int64; ``[A, rows]`` where nobody has more than one."""
        log_probs = self._log_probs(x, mask)
        if deterministic:
            action = log_probs.argmax(-1)
        else:
            action = draw_categorical(log_probs.exp(), generator)
        return action.squeeze(-1) if self.single else action

    def evaluate(self, x: Tensor, action: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy ``[A, rows]`` [nats] of given actions."""
        log_probs = self._log_probs(x, mask)
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

    def _log_probs(self, logits: Tensor, mask: Tensor | None) -> Tensor:
        """``[A, rows, choices, largest count]``."""
        logits = self._grid(logits, 0.0)
        allowed = self.real if mask is None else self.real & self._grid(mask, False)
        return torch.log_softmax(logits.masked_fill(~(allowed | self.padding), float("-inf")), -1)

    def _grid(self, row: Tensor, padding: float) -> Tensor:
        """``[A, rows, options]`` as a grid."""
        columns = self.columns.expand(-1, row.shape[1], -1)
        grid = F.pad(row, (0, 1), value=padding).gather(-1, columns)
        return grid.view(*columns.shape[:2], *self.real.shape[2:])


class MixedHead(nn.Module):
    """Numbers of some agents, choices of others.

    Each part is only padding for the other agents, so log-probabilities and entropies add up.

    Args:
        groups: A, or 1 where agents share weights.
        hidden: H.
        layout: layout of the team's actions.
        gain: gain of the output layers' initialisation.
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

    @property
    def linear(self) -> StackedLinear | None:
        """See `Head.linear`."""
        return None

    def act(self, x: Tensor, mask: Tensor | None, deterministic: bool, generator: Any) -> Tensor:
        """Actions ``[A, rows, W]``."""
        numbers = self.numbers.act(self.numbers.mean(x), mask, deterministic, generator)
        choices = self.choices.act(self.choices.logits(x), mask, deterministic, generator)
        numbers = F.pad(numbers, (0, self.width - numbers.shape[-1]))
        return numbers + F.pad(choices, (0, self.width - choices.shape[-1]))

    def evaluate(self, x: Tensor, action: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy ``[A, rows]`` [nats] of given actions."""
        numbers = action[..., : self.numbers.log_std.shape[-1]]
        choices = action[..., : self.choices.padding.shape[2]].long()
        parts = (
            self.numbers.evaluate(self.numbers.mean(x), numbers, mask),
            self.choices.evaluate(self.choices.logits(x), choices, mask),
        )
        return parts[0][0] + parts[1][0], parts[0][1] + parts[1][1]

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
