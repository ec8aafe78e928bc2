"""Actors and critics of all agents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mg2l.config.sections import PolicyConfig, PPOConfig
from mg2l.envs.actions import ActionLayout
from mg2l.nn.distributions import make_head
from mg2l.nn.normaliser import LayerNorm, PopArt, RunningNorm, ValueNorm
from mg2l.nn.stacked import StackedGRU, StackedLinear, StackedMLP
from mg2l.nn.vision import ImageEncoder, Vision


class _Body(nn.Module):
    """Observation and representation -> features ``[A, rows, H]``, through a GRU if recurrent."""

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
    ) -> None:
        super().__init__()
        self.normalise = normalise
        one_hot = torch.eye(agents).unsqueeze(1) if config.share_policy and agents > 1 else None
        self.register_buffer("identity", one_hot, persistent=False)
        groups = 1 if config.share_policy else agents
        inputs = observation + task + (0 if self.identity is None else agents)
        self.image: ImageEncoder | None = None
        if vision is not None:
            self.image = ImageEncoder(vision, groups, observation // vision.observation)
            inputs += self.image.gain
        self.mlp = StackedMLP(
            groups,
            inputs,
            config.algo_hidden_size,
            config.layer_N,
            config.use_ReLU,
            config.use_orthogonal,
        )
        recurrent = config.use_recurrent_policy or config.use_naive_recurrent_policy
        self.gru = (
            StackedGRU(groups, config.algo_hidden_size, config.recurrent_N, config.use_orthogonal)
            if recurrent
            else None
        )
        self.state_shape = (config.recurrent_N, config.algo_hidden_size) if recurrent else (0, 0)
        self.remembers_episodes = config.recurrent_reset == "task"

    def inputs(self, observation: Tensor, task: Tensor | None) -> Tensor:
        """Join what a network reads.

        The observation is normalised apart from the rest, whose scale would otherwise swamp or
        drown it.
        """
        observation = self.normalise(observation)
        parts = [observation] if task is None else [observation, task]
        if self.identity is not None:
            parts.append(self.identity.expand(-1, observation.shape[1], -1))
        return torch.cat(parts, -1)

    def forward(
        self, inputs: Tensor, state: Tensor | None, first: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        features: Tensor = self.mlp(inputs if self.image is None else self.image(inputs))
        if self.gru is None or state is None or first is None:
            return features, state
        steps, rows = first.shape
        sequence, state = self.gru(features.unflatten(1, (steps, rows)), state, first)
        return sequence.flatten(1, 2), state


class Actor(nn.Module):
    """Policies ``pi^i(a^i | o^i, z^i)`` of all agents.

    Args:
        config: network sizes.
        agents: A.
        observation: width of an observation.
        task: width of the latent that an actor is conditioned on; 0 for none.
        layout: of the team's actions.
        vision: where the image lies in an observation, if it is read as one.
        own: ``[A, 1, O]`` bool, which numbers an agent observes; None is all.
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
    ) -> None:
        super().__init__()
        groups = 1 if config.share_policy else agents
        normalise: nn.Module = nn.Identity()
        if config.observation_normalization == "layer":
            normalise = LayerNorm(observation, own)
        elif config.observation_normalization == "running":
            image = 0 if vision is None else vision.pixels
            normalise = RunningNorm(groups, observation, config.observation_clip, image)
        self.body = _Body(config, agents, observation, task, vision, normalise)
        self.head = make_head(
            layout, groups, config.algo_hidden_size, config.gain, config.use_orthogonal
        )

    def observe(self, observations: Tensor, active: Tensor | None) -> None:
        """Take in observations that were acted on, and learned from, into their running moments.

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
        first: Tensor | None,
        mask: Tensor | None,
        generator: Any,
        deterministic: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Actions, log-probabilities ``[A, rows]`` and next recurrent state for one step."""
        features, state = self.body(inputs, state, first)
        action, log_prob = self.head.act(features, mask, deterministic, generator)
        return action, log_prob, state

    def evaluate(
        self,
        inputs: Tensor,
        action: Tensor,
        state: Tensor | None,
        first: Tensor | None,
        mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy ``[A, rows]`` [nats]."""
        features, _ = self.body(inputs, state, first)
        return self.head.evaluate(features, action, mask)


class Critic(nn.Module):
    """Values ``V^i(o, z)`` of all agents, in units of the normaliser's standard deviation.

    With running moments of observations, it reads what `Actor.standardise` makes of them.
    """

    def __init__(
        self,
        config: PolicyConfig,
        ppo: PPOConfig,
        agents: int,
        observation: int,
        task: int,
        vision: Vision | None = None,
        own: Tensor | None = None,
    ) -> None:
        super().__init__()
        layer = config.observation_normalization == "layer"
        normalise = LayerNorm(observation, own) if layer else nn.Identity()
        self.body = _Body(config, agents, observation, task, vision, normalise)
        groups = 1 if config.share_policy else agents
        self.value = StackedLinear(groups, config.algo_hidden_size, 1, 1.0, config.use_orthogonal)
        self.normaliser: ValueNorm | None = None
        if ppo.use_popart:
            self.normaliser = PopArt(groups, self.value)
        elif ppo.use_valuenorm:
            self.normaliser = ValueNorm(groups)

    def forward(
        self, inputs: Tensor, state: Tensor | None, first: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Values ``[A, rows]`` and next recurrent state."""
        features, state = self.body(inputs, state, first)
        return self.value(features).squeeze(-1), state
