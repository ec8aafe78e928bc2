"""Values of all agents."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from mg2l.config.sections import PolicyConfig, PPOConfig
from mg2l.nn.conditioning import Latents
from mg2l.nn.normaliser import LayerNorm, PopArt, ValueNorm
from mg2l.nn.policy import Body, MakeMemory
from mg2l.nn.stacked import StackedLinear
from mg2l.nn.vision import Vision
from mg2l.nn.vjp import Pull, by_autograd
from mg2l.ops.backend import NATIVE, Backend

POOLING_HEADS = 4
"""Attention heads of `PooledCritic`, each with a learned query."""


class Critic(nn.Module):
    """Values ``V^i(o, z)`` of all agents, in units of the normaliser's standard deviation.

    With running moments of observations, it reads what `Actor.standardise` makes of them. Where it
    is centralised, all agents' critics read one joint observation, which is never copied per agent.

    Args:
        config: network sizes.
        ppo: how values are normalised.
        agents: A.
        observation: width O of an agent's observation.
        task: width of the latent that critics are conditioned on; 0 for none.
        vision: where the image lies in an observation, if it is read as one.
        own: ``[A, 1, O]`` bool, which numbers an agent observes; None is all.
        backend: operators to compute with.
        make_memory: of recurrent critics, in place of a GRU.
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
        backend: Backend = NATIVE,
        make_memory: MakeMemory | None = None,
    ) -> None:
        super().__init__()
        self.agents, self.joint = agents, config.use_centralized_V
        if self.joint:
            observation *= agents
            own = None if own is None else own.flatten()
        layer = config.observation_normalization == "layer"
        normalise = LayerNorm(observation, own) if layer else nn.Identity()
        self.body = Body(config, agents, observation, task, vision, normalise, backend, make_memory)
        self._add_value(config, ppo, 1 if config.share_policy else agents)

    def _add_value(self, config: PolicyConfig, ppo: PPOConfig, groups: int) -> None:
        """Make the output layer, and the normaliser of what it is trained on."""
        self.value = StackedLinear(groups, self.body.width, 1, 1.0, config.use_orthogonal)
        self.normaliser: ValueNorm | None = None
        if ppo.use_popart:
            self.normaliser = PopArt(groups, self.value)
        elif ppo.use_valuenorm:
            self.normaliser = ValueNorm(groups)

    @property
    def trained_together(self) -> bool:
        """Whether agents' values come from parameters that they share, by design."""
        return False

    def initial_state(self, envs: int) -> Tensor:
        """Recurrent state ``[A, N, layers, H]`` of critics before anything has happened."""
        return self._initial_state(self.agents, envs)

    def _initial_state(self, heads: int, envs: int) -> Tensor:
        memory = self.body.memory
        if memory is None:
            return self.value.weight.new_zeros(heads, envs, 0, 0)
        return memory.initial_state(heads, envs)

    def reads(self, observations: Tensor) -> Tensor:
        """What critics read of observations ``[*, A, O]``, standardised as for the actors.

        Returns:
            ``[1, *, A O]``, or ``[A, *, O]`` where each critic reads its own agent's.
        """
        if self.joint:
            return observations.flatten(-2).unsqueeze(0)
        return observations.movedim(-2, 0)

    def forward(
        self,
        observations: Tensor,
        latent: Tensor | None,
        state: Tensor | None,
        reset: Tensor | None,
        index: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Values ``[A, rows]`` and next recurrent state.

        Args:
            observations: ``[1 or A, rows, A O or O]``, see `reads`.
            latent: ``[rows, D]``, or None.
            state: ``[A, B, layers, H]`` before the first step, if critics are recurrent.
            reset: ``[steps, B]`` bool, the state is zeroed before a step, where ``steps B = rows``.
            index: ``[rows]`` int64 where ``latent`` is ``[N, D]``: which of these a row has. Of
                critics whose body `generates`; it makes each once.
        """
        if self.joint:
            values, state = self.body.shared(
                observations[0], latent, state, reset, self.value, index
            )
        else:
            if latent is not None:
                latent = latent if index is None else latent[index]
                latent = latent.expand(self.agents, *latent.shape)
            inputs = self.body.inputs(observations, latent)
            values, state = self.body(inputs, state, reset, self.value)
        return values.squeeze(-1), state

    @property
    def has_vjp(self) -> bool:
        """Whether the gradients of all its parameters are known in closed form."""
        return self.body.has_vjp and not (self.joint and self.body.identity is not None)

    @torch.no_grad()
    def vjp(
        self,
        observations: Tensor,
        latent: Tensor | None,
        state: Tensor | None,
        reset: Tensor | None,
        index: Tensor | None = None,
    ) -> tuple[Tensor, Pull]:
        """Values ``[A, rows]``, and what takes their gradient to parameters and the latent.

        Arguments are those of `forward`; the latent's gradient is wanted where it requires one.
        """
        want = latent is not None and latent.requires_grad
        if not self.has_vjp:
            (values,), pull_values = by_autograd(
                lambda z: self.forward(observations, z, state, reset, index)[:1], latent, want
            )
            return values, pull_values
        if self.body.condition is not None:
            assert latent is not None
            rest = self.body.inputs(observations, None).expand(self.agents, -1, -1)
            latents = Latents(latent.expand(self.agents, -1, -1), index)
            y, pull_generated = self.body.generated_vjp(rest, latents, self.value, want)

            def pull_both(grad: Tensor) -> Tensor | None:
                to_latent = pull_generated(grad.unsqueeze(-1))
                return None if to_latent is None else to_latent.sum(0)

            return y.squeeze(-1), pull_both
        z = None if latent is None else latent.expand(len(observations), *latent.shape)
        rows = self.body.inputs(observations, z).expand(self.agents, -1, -1)
        y, pull_rows = self.body.mlp.vjp(rows, self.value, want)
        begin = observations.shape[-1]

        def pull(grad: Tensor) -> Tensor | None:
            to_rows = pull_rows(grad.unsqueeze(-1))
            if to_rows is None:
                return None
            return to_rows[..., begin : begin + self.body.latent].sum(0)

        return y.squeeze(-1), pull


class PooledCritic(Critic):
    """A centralised critic whose cost is linear in agents: they are encoded, and then pooled.

    Each agent's observation becomes ``e^j`` by one hidden layer; the pool, ``sum_j w_j e^j`` with
    ``w = softmax_j(q . e^j)`` for each learned query ``q``, is what is known of the team. Where all
    agents get the same reward there is one value of the pool and the latent. Else there is one per
    agent, of ``e^i``, too.

    Args:
        config: network sizes.
        ppo: how values are normalised.
        agents: A.
        observation: width O of an agent's observation.
        task: width of the latent that critics are conditioned on; 0 for none.
        vision: where the image lies in an observation, if it is read as one.
        own: ``[A, 1, O]`` bool, which numbers an agent observes; None is all.
        shared_reward: whether all agents get the same reward.
        backend: operators to compute with.
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
        *,
        shared_reward: bool,
        backend: Backend = NATIVE,
        make_memory: MakeMemory | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self.agents, self.joint = agents, False
        self.shared_reward, self.backend = shared_reward, backend
        width = config.algo_hidden_size
        layer = config.observation_normalization == "layer"
        normalise = LayerNorm(observation, own) if layer else nn.Identity()
        encoder = dataclasses.replace(
            config,
            layer_N=0,
            use_recurrent_policy=False,
            use_naive_recurrent_policy=False,
            conditioning="input",
        )
        self.encoder = Body(encoder, agents, observation, 0, vision, normalise, backend, None)
        self.query = nn.Parameter(torch.randn(POOLING_HEADS, width) / math.sqrt(width))
        heads, pooled = (1, 0) if shared_reward else (agents, width)
        pooled += POOLING_HEADS * width
        self.body = Body(config, heads, pooled, task, None, nn.Identity(), backend, make_memory)
        self._add_value(config, ppo, 1 if shared_reward or config.share_policy else agents)

    @property
    def trained_together(self) -> bool:
        return True

    @property
    def has_vjp(self) -> bool:
        return False

    def initial_state(self, envs: int) -> Tensor:
        heads = 1 if self.shared_reward else self.agents
        return self._initial_state(heads, envs)

    def forward(
        self,
        observations: Tensor,
        latent: Tensor | None,
        state: Tensor | None,
        reset: Tensor | None,
        index: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        encoded, _ = self.encoder(self.encoder.inputs(observations, None), None, None)
        pooled = self.backend.pia_pool(encoded, self.query, dim=0).pooled.flatten(1).unsqueeze(0)
        if not self.shared_reward:
            pooled = torch.cat([encoded, pooled.expand(self.agents, -1, -1)], -1)
        if latent is not None:
            latent = latent if index is None else latent[index]
            latent = latent.expand(len(pooled), *latent.shape)
        values, state = self.body(self.body.inputs(pooled, latent), state, reset, self.value)
        return values.squeeze(-1).expand(self.agents, -1), state
