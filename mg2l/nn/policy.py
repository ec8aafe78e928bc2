"""Policies of all agents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mg2l.config.sections import PolicyConfig
from mg2l.envs.actions import ActionLayout
from mg2l.nn.conditioning import FiLM, HyperHead, Latents
from mg2l.nn.distributions import (
    GaussianHead,
    PolicyLoss,
    SurrogateRows,
    make_head,
    surrogate_by_autograd,
)
from mg2l.nn.normaliser import LayerNorm, RunningNorm
from mg2l.nn.stacked import StackedGRU, StackedLinear, StackedMLP
from mg2l.nn.vision import ImageEncoder, Vision
from mg2l.nn.vjp import Pull, by_autograd
from mg2l.ops.backend import NATIVE, Backend


class Memory(Protocol):
    """Memory of actors and critics, such as a `StackedGRU`; a module."""

    state_shape: tuple[int, ...]
    """Shape of a full-size state; before the first step it is zeros."""

    keeps_states: bool
    """Whether states are kept for every step of a rollout; else trials are read as a whole."""

    def initial_state(self, agents: int, rows: int) -> Tensor:
        """The state before the first step, ``[A, rows, ...]``."""

    def __call__(self, x: Tensor, state: Tensor, reset: Tensor, /) -> tuple[Tensor, Tensor]:
        """``[A, steps, rows, H]`` to the same, and the state after the last step.

        ``reset`` ``[steps, rows]`` bool is where all that was before is forgotten.
        """


MakeMemory = Callable[[int, int], Memory | None]
"""Makes the memory of G networks of width H, or none for what the configuration says."""


class Body(nn.Module):
    """Observation and latent to the features of a head ``[A, rows, width]``, through a memory."""

    identity: Tensor | None
    """``[A, 1, A]``: which agent rows are of, where all share a network."""

    def __init__(
        self,
        config: PolicyConfig,
        agents: int,
        observation: int,
        task: int,
        vision: Vision | None,
        normalise: nn.Module,
        backend: Backend,
        make_memory: MakeMemory | None,
    ) -> None:
        super().__init__()
        self.normalise, self.latent = normalise, task
        one_hot = torch.eye(agents).unsqueeze(1) if config.share_policy and agents > 1 else None
        self.register_buffer("identity", one_hot, persistent=False)
        groups = 1 if config.share_policy else agents
        inputs = observation + task + (0 if self.identity is None else agents)
        self.image: ImageEncoder | None = None
        if vision is not None:
            self.image = ImageEncoder(vision, groups, observation // vision.observation)
            inputs += self.image.gain
        hidden = config.algo_hidden_size

        def mlp(inputs: int) -> StackedMLP:
            return StackedMLP(
                groups,
                inputs,
                hidden,
                config.layer_N,
                config.use_ReLU,
                config.use_orthogonal,
                backend,
            )

        recurrent = config.use_recurrent_policy or config.use_naive_recurrent_policy
        beside = config.conditioning == "input" or not (task or recurrent)
        self.mlp = mlp(inputs if beside or recurrent else inputs - task)
        self.memory: Memory | None = None
        if recurrent and make_memory is not None:
            self.memory = make_memory(groups, hidden)
        if recurrent and self.memory is None:
            self.memory = StackedGRU(groups, hidden, config.recurrent_N, config.use_orthogonal)
        self.remembers_episodes = config.recurrent_reset == "task"
        self.base: StackedMLP | None = None
        self.condition: FiLM | HyperHead | None = None
        self.width = hidden
        if beside:
            return
        if recurrent:  # what is remembered conditions a network that does not remember
            self.base = mlp(inputs - task)
        source = hidden if recurrent else task
        if config.conditioning == "film":
            self.condition = FiLM(groups, source, hidden, backend)
        else:
            self.condition = HyperHead(groups, source, hidden, config.hyper_dim, backend)
        self.width = self.condition.width

    def inputs(self, observation: Tensor, task: Tensor | None) -> Tensor:
        """Concatenate the inputs of a network.

        The observation is normalised separately from the rest, whose scale could otherwise dominate
        or vanish.
        """
        observation = self.normalise(observation)
        parts = [observation] if task is None else [observation, task]
        if self.identity is not None:
            parts.append(self.identity.expand(-1, observation.shape[1], -1))
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def forward(
        self,
        inputs: Tensor,
        state: Tensor | None,
        reset: Tensor | None,
        output: StackedLinear | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Features, or what a linear layer ``output`` makes of them, and the next state."""
        x: Tensor = inputs if self.image is None else self.image(inputs)
        if self.condition is None:
            if self.memory is None or state is None or reset is None:
                return self.mlp(x, output), state
            features, state = self._remember(self.mlp(x), state, reset)
            return _apply(output, features), state
        rest, latent = self._split(x)
        if self.base is None:
            features = self.condition(self.mlp(rest), latent)
        else:
            remembered, state = self._remember(self.mlp(x), state, reset)
            features = self.condition(self.base(rest), remembered)
        return _apply(output, features), state

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What a conditioned network reads of the inputs, and the latent."""
        after = 0 if self.identity is None else self.identity.shape[-1]
        sizes = [x.shape[-1] - self.latent - after, self.latent, after]
        observation, latent, identity = x.split(sizes, -1)
        return torch.cat([observation, identity], -1) if after else observation, latent

    @property
    def generates(self) -> bool:
        """Whether latents, and nothing remembered, condition it, each distinct one once."""
        return self.condition is not None and self.base is None and self.image is None

    @property
    def has_vjp(self) -> bool:
        """Whether the gradients of all its parameters are known in closed form."""
        if self.image is not None or self.memory is not None:
            return False
        return self.mlp.has_vjp and (self.condition is None or self.condition.has_vjp)

    def vjp(
        self,
        inputs: Tensor,
        state: Tensor | None,
        reset: Tensor | None,
        output: StackedLinear | None,
        latent: Latents | None = None,
    ) -> tuple[Tensor, Pull]:
        """`forward` without the next state, and what takes its gradient back to parameters.

        Where it `generates`, ``latent`` may hold those of the inputs, each once.
        """
        if not self.has_vjp:
            values, pull = by_autograd(
                lambda _: self.forward(inputs, state, reset, output)[:1], None, want_x=False
            )
            return values[0], pull
        if self.condition is None:
            return self.mlp.vjp(inputs, output, want_x=False)
        rest, own = self._split(inputs)
        latent = Latents(own) if latent is None else latent
        return self.generated_vjp(rest, latent, output, want_latent=False)

    def generated_vjp(
        self, rest: Tensor, latent: Latents, output: StackedLinear | None, want_latent: bool
    ) -> tuple[Tensor, Pull]:
        """`vjp` of inputs without the latent, whose gradient ``[A, N, D]`` may be wanted."""
        assert self.condition is not None
        features, pull_features = self.mlp.vjp(rest, None, want_x=False)
        y, pull_condition = self.condition.vjp(features, latent, want_latent)
        pull_output: Pull | None = None
        if output is not None:
            y, pull_output = output.vjp(y)

        def pull(grad: Tensor) -> Tensor | None:
            to_y = grad if pull_output is None else pull_output(grad)
            assert to_y is not None
            to_features, to_latent = pull_condition(to_y)
            pull_features(to_features)
            return to_latent

        return y, pull

    def shared(
        self,
        observation: Tensor,
        task: Tensor | None,
        state: Tensor | None,
        reset: Tensor | None,
        output: StackedLinear | None = None,
        index: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """`forward` where all agents read the same ``[rows, O]`` and ``[rows, D]``.

        No row is copied per agent, but where convolutions of each agent's own read it. With
        ``index`` ``[rows]``, where it `generates`, ``task`` is ``[N, D]``, see `Latents`.
        """
        if self.image is not None:
            agents = max(self.image.groups, 1 if self.identity is None else len(self.identity))
            rows = observation.expand(agents, *observation.shape)
            if task is not None:
                task = task.expand(agents, *task.shape)
            return self.forward(self.inputs(rows, task), state, reset, output)
        x, identity = self.normalise(observation), self.identity
        if self.condition is None:
            if self.memory is None or state is None or reset is None:
                return self.mlp.shared(x, task, identity, output), state
            features, state = self._remember(self.mlp.shared(x, task, identity), state, reset)
            return _apply(output, features), state
        if self.base is None:
            assert task is not None
            features = self.mlp.shared(x, None, identity)
            latents = task.expand(len(features), *task.shape)
            features = self.condition(features, latents, index)
        else:
            remembered, state = self._remember(self.mlp.shared(x, task, identity), state, reset)
            features = self.condition(self.base.shared(x, None, identity), remembered)
        return _apply(output, features), state

    def _remember(
        self, features: Tensor, state: Tensor | None, reset: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if self.memory is None or state is None or reset is None:
            return features, state
        sequence, state = self.memory(features.unflatten(1, reset.shape), state, reset)
        return sequence.flatten(1, 2), state


def _apply(output: StackedLinear | None, features: Tensor) -> Tensor:
    return features if output is None else output(features)


class Actor(nn.Module):
    """Policies ``pi^i(a^i | o^i, z^i)`` of all agents.

    Args:
        config: network sizes.
        agents: A.
        observation: width of an observation.
        task: width of the latent that an actor is conditioned on; 0 for none.
        layout: layout of the team's actions.
        vision: where the image lies in an observation, if it is read as one.
        own: ``[A, 1, O]`` bool, which numbers an agent observes; None is all.
        backend: operators to compute with.
        make_memory: of recurrent policies, in place of a GRU.
    """

    def __init__(
        self,
        config: PolicyConfig,
        agents: int,
        observation: int,
        task: int,
        layout: ActionLayout,
        vision: Vision | None = None,
        own: Tensor | None = None,
        backend: Backend = NATIVE,
        make_memory: MakeMemory | None = None,
    ) -> None:
        super().__init__()
        self.backend = backend
        groups = 1 if config.share_policy else agents
        normalise: nn.Module = nn.Identity()
        if config.observation_normalization == "layer":
            normalise = LayerNorm(observation, own)
        elif config.observation_normalization == "running":
            image = 0 if vision is None else vision.pixels
            normalise = RunningNorm(groups, observation, config.observation_clip, image)
        self.body = Body(config, agents, observation, task, vision, normalise, backend, make_memory)
        self.head = make_head(layout, groups, self.body.width, config.gain, config.use_orthogonal)

    def observe(self, observations: Tensor, active: Tensor | None) -> None:
        """Add observations that were acted on and trained on to their running moments.

        Args:
            observations: ``[*, A, O]``.
            active: ``[*, A]`` bool, who was alive to see them; None is all agents.
        """
        if isinstance(self.body.normalise, RunningNorm):
            self.body.normalise.update(observations, active)

    def standardise(self, observations: Tensor) -> Tensor:
        """Observations ``[*, A, O]`` by their running moments; unchanged where none are kept."""
        if not isinstance(self.body.normalise, RunningNorm):
            return observations
        rows = observations.flatten(0, -3).transpose(0, 1)
        standard: Tensor = self.body.normalise(rows)
        return standard.transpose(0, 1).view_as(observations)

    @torch.no_grad()
    def act(
        self,
        inputs: Tensor,
        state: Tensor | None,
        reset: Tensor | None,
        mask: Tensor | None,
        generator: Any,
        deterministic: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Actions, what `log_probs` needs beside them, and next recurrent state for one step."""
        x, state = self.body(inputs, state, reset, self.head.linear)
        return self.head.act(x, mask, deterministic, generator), x, state

    @torch.no_grad()
    def log_probs(self, x: Tensor, action: Tensor, mask: Tensor | None) -> Tensor:
        """Log-probabilities ``[A, rows]`` [nats] of actions of any number of steps.

        Args:
            x: ``[A, rows, *]``, what `act` returned beside them.
            action: ``[A, rows]`` or ``[A, rows, W]``.
            mask: ``[A, rows, n]`` bool, which were allowed.
        """
        return self.head.evaluate(x, action, mask)[0]

    def evaluate(
        self,
        inputs: Tensor,
        action: Tensor,
        state: Tensor | None,
        reset: Tensor | None,
        mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy ``[A, rows]`` [nats]."""
        x, _ = self.body(inputs, state, reset, self.head.linear)
        return self.head.evaluate(x, action, mask)

    @torch.no_grad()
    def surrogate(
        self,
        inputs: Tensor,
        action: Tensor,
        state: Tensor | None,
        reset: Tensor | None,
        mask: Tensor | None,
        rows: SurrogateRows,
        latent: Latents | None = None,
        *,
        clip: float,
        entropy_coef: float,
    ) -> tuple[PolicyLoss, Pull]:
        """Clipped surrogate loss of each agent, less its entropy; see `gaussian_surrogate`.

        Where the body `generates`, ``latent`` may hold the latents of the inputs, each once.

        Returns:
            The losses, and what writes the gradient of a factor times their sum into parameters.
        """
        x, pull_body = self.body.vjp(inputs, state, reset, self.head.linear, latent)
        options: dict[str, Any] = {"clip": clip, "entropy_coef": entropy_coef}
        if isinstance(self.head, GaussianHead):
            found, pull_head = self.head.surrogate(x, action, rows, self.backend, **options)
        else:
            found, pull_head = surrogate_by_autograd(
                self.head, x, action, mask, rows, self.backend, **options
            )
        return found, lambda factor: pull_body(pull_head(factor))
