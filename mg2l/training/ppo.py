"""Multi-agent PPO over stacked networks (Yu et al., 2022, arXiv:2103.01955)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mg2l.algorithms.base import CriticLatent
from mg2l.config.sections import PolicyConfig, PPOConfig
from mg2l.experience.finite import require_finite
from mg2l.experience.rollout import Rollout
from mg2l.nn.moments import batch_moments
from mg2l.nn.policy import Actor, Critic
from mg2l.ops.backend import Backend


@dataclass
class Batch:
    """A rollout in the layout that stacked networks read: ``[A, T, N, ...]``.

    Values and returns are in units of the value normaliser.
    """

    actor_inputs: Tensor
    critic_observations: Tensor
    actions: Tensor
    log_probs: Tensor
    advantages: Tensor
    returns: Tensor
    values: Tensor
    first: Tensor
    actor_states: Tensor | None
    critic_states: Tensor | None
    action_mask: Tensor | None
    active: Tensor | None


def clip_grad_norm_per_agent(parameters: list[nn.Parameter], limit: float) -> Tensor:
    """Scale the gradients of stacked parameters ``[G, ...]`` to norms of at most ``limit`` each.

    Returns:
        The norms before, ``[G]``.
    """
    squares = [p.grad.flatten(1).square().sum(1) for p in parameters if p.grad is not None]
    norms = torch.stack(squares).sum(0).sqrt()
    scale = (limit / (norms + 1e-6)).clamp(max=1.0)
    for p in parameters:
        if p.grad is not None:
            p.grad.mul_(scale.view(-1, *[1] * (p.dim() - 1)))
    return norms


def value_loss(prediction: Tensor, old: Tensor, target: Tensor, config: PPOConfig) -> Tensor:
    """Elementwise value loss; all arguments in normalised units."""

    def loss(value: Tensor) -> Tensor:
        if config.use_huber_loss:
            return F.huber_loss(value, target, reduction="none", delta=config.huber_delta)
        return 0.5 * (value - target).square()

    plain = loss(prediction)
    if not config.use_clipped_value_loss:
        return plain
    clipped = old + (prediction - old).clamp(-config.clip_param, config.clip_param)
    return torch.maximum(plain, loss(clipped))


def mean_per_agent(x: Tensor, weight: Tensor | None) -> Tensor:
    """``[A, *] -> [A]``, over the entries that ``weight`` keeps."""
    if weight is None:
        return x.flatten(1).mean(1)
    kept = weight.flatten(1).to(x.dtype)
    return (x.flatten(1) * kept).sum(1) / kept.sum(1).clamp(min=1)


def _latent_at_steps(latent: Tensor | None, steps: int) -> Tensor | None:
    """Latent of the critic at the first ``steps`` steps, ``[steps N, D]``."""
    if latent is None:
        return None
    return latent.repeat(steps, 1) if latent.dim() == 2 else latent[:steps].flatten(0, 1)


def _latent_at(latent: Tensor | None, where: tuple[Tensor, Tensor]) -> Tensor | None:
    """Latent of the critic at steps ``[rows]`` of environments ``[rows]``, ``[rows, D]``."""
    if latent is None:
        return None
    return latent[where[1]] if latent.dim() == 2 else latent[where]


class PPO:
    """Updates actors and critics from rollouts.

    Args:
        config: losses and optimisers.
        policy: network options that the update depends on.
        actor: policies.
        critic: values.
        encoder_parameters: trained by the value loss too; their optimiser is ``encoder_optimiser``.
        encoder_optimiser: steps together with the critic's; None when nothing is to be trained.
        generator: source of minibatch permutations.
        backend: operators to compute with.
    """

    def __init__(
        self,
        config: PPOConfig,
        policy: PolicyConfig,
        actor: Actor,
        critic: Critic,
        encoder_parameters: list[nn.Parameter],
        encoder_optimiser: torch.optim.Optimizer | None,
        generator: torch.Generator,
        backend: Backend,
    ) -> None:
        self.backend = backend
        self.config, self.policy, self.actor, self.critic = config, policy, actor, critic
        self.encoder_parameters = encoder_parameters
        self.encoder_optimiser = encoder_optimiser
        self.generator = generator
        common: dict[str, Any] = {
            "eps": config.opti_eps,
            "weight_decay": config.weight_decay,
            "fused": True,
        }
        self.actor_optimiser = torch.optim.Adam(actor.parameters(), config.actor_lr, **common)
        self.critic_optimiser = torch.optim.Adam(critic.parameters(), config.critic_lr, **common)

    # Preparing a batch.

    def _critic_observations(self, observations: Tensor) -> Tensor:
        """``[*, N, A, O] -> [A, *, N, O or A O]``, standardised as for the actors."""
        observations = self.actor.standardise(observations)
        if not self.policy.use_centralized_V:
            return observations.movedim(-2, 0)
        joint = observations.flatten(-2)
        return joint.expand(observations.shape[-2], *joint.shape)

    def _critic_inputs(self, observations: Tensor, latent: Tensor | None) -> Tensor:
        """Rows ``[A, rows, O]`` with the latent of their environments ``[rows, D]`` beside them."""
        if latent is not None:
            latent = latent.expand(len(observations), *latent.shape)
        return self.critic.body.inputs(observations, latent)

    @torch.no_grad()
    def prepare(self, rollout: Rollout, latent: Tensor | None) -> Batch:
        """Values of all steps at once, then advantages and returns.

        Args:
            rollout: what happened.
            latent: of the critic, as `CriticLatent` gives it.
        """
        config = self.config
        steps, envs, agents = rollout.rewards.shape
        observations = self._critic_observations(rollout.observations)
        finals = self._critic_observations(rollout.final_observations)
        ended = rollout.truncated.any(-1)
        first = rollout.episode_start
        if self.actor.body.remembers_episodes:
            first = torch.cat([first[:1], torch.zeros_like(first[1:])])
        values, final_values, states = self._values(observations, finals, ended, first, latent)
        terminated, truncated = rollout.terminated, rollout.truncated
        if not config.use_proper_time_limits:
            terminated, truncated = terminated | truncated, torch.zeros_like(truncated)
        normaliser = self.critic.normaliser
        active = None if rollout.active is None else rollout.active.movedim(-1, 0)
        kept = active if config.use_value_active_masks else None
        mean = std = None
        if normaliser is not None:
            if not bool(normaliser.weight.any()):
                returns = self._returns_of_constant(rollout.rewards, terminated, truncated, kept)
                normaliser.fold(returns.flatten(1), kept)
            mean, std = (
                x.to(values.dtype).expand(agents).contiguous()
                for x in (normaliser.mean, normaliser.std)
            )
        result = self.backend.gae(
            rollout.rewards,
            values.movedim(0, -1),
            terminated,
            truncated,
            config.gamma,
            config.gae_lambda if config.use_gae else 1.0,
            final_values=final_values.movedim(0, -1),
            value_mean=mean,
            value_std=std,
        )
        advantages = result.advantages.movedim(-1, 0)
        centre = batch_moments(
            advantages.flatten(1).t(), None if active is None else active.flatten(1).t()
        )
        centred = advantages.double() - centre.mean.view(-1, 1, 1)
        advantages = centred / (centre.variance.sqrt().view(-1, 1, 1) + 1e-5)
        advantages = advantages.to(values.dtype)
        values, returns = values[:, :-1], result.returns.movedim(-1, 0)
        if normaliser is not None:
            values = normaliser.update(returns.flatten(1), values.flatten(1), kept).view_as(returns)
            returns = normaliser.normalise(returns.flatten(1)).view_as(returns)
        acted_on = None if rollout.latent is None else rollout.latent.permute(2, 0, 1, 3)
        rows = rollout.observations[:-1].permute(2, 0, 1, 3)
        inputs = self.actor.body.inputs(
            rows.flatten(1, 2), None if acted_on is None else acted_on.flatten(1, 2)
        )
        return Batch(
            actor_inputs=inputs.view(agents, steps, envs, -1),
            critic_observations=observations[:, :-1],
            actions=rollout.actions.movedim(2, 0).contiguous(),
            log_probs=rollout.log_probs.movedim(2, 0).contiguous(),
            advantages=advantages.contiguous(),
            returns=returns.contiguous(),
            values=values.contiguous(),
            first=first[:-1],
            actor_states=None if rollout.states is None else rollout.states.movedim(0, 1),
            critic_states=states,
            action_mask=None if rollout.action_mask is None else rollout.action_mask.movedim(2, 0),
            active=active,
        )

    def _returns_of_constant(
        self, rewards: Tensor, terminated: Tensor, truncated: Tensor, kept: Tensor | None
    ) -> Tensor:
        """Returns ``[A, T, N]`` at the constant value of all states that is the best initial guess.

        It is the one that equals its own mean return: TD's fixed point with a bias for the only
        feature (LSTD(lambda): Boyan, 2002, doi:10.1023/A:1017936530646). A critic that began at 0
        would take in the mean reward over ``1 - gamma`` a rollout at a time, and until then say
        little but how many steps of the rollout are left.
        """
        config = self.config
        lam = config.gae_lambda if config.use_gae else 1.0

        def returns(rewards: Tensor, value: float) -> Tensor:
            values = torch.full((len(rewards) + 1, *rewards.shape[1:]), value).to(rewards)
            found = self.backend.gae(
                rewards, values, terminated, truncated, config.gamma, lam, final_values=values[1:]
            ).returns
            return found.movedim(-1, 0)

        at_zero = returns(rewards.double(), 0.0)  # returns are linear in the value
        slope = returns(torch.zeros_like(rewards, dtype=torch.float64), 1.0)
        groups = len(self.critic.value.weight)
        columns = None if kept is None else kept.reshape(groups, -1).t()
        offset, gain = (
            batch_moments(x.reshape(groups, -1).t(), columns).mean for x in (at_zero, slope)
        )
        left = 1 - gain  # 0 where nothing ends and nothing is discounted
        value = torch.where(left > 1e-6, offset / left.clamp(min=1e-6), offset)
        return at_zero + slope * value.expand(len(slope)).view(-1, 1, 1)

    def _values(
        self,
        observations: Tensor,
        finals: Tensor,
        ended: Tensor,
        first: Tensor,
        latent: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values of all steps.

        Returns:
            Values ``[A, T + 1, N]``; values of real next observations ``[A, T, N]`` where an
            episode was cut, 0 elsewhere; recurrent states before each step
            ``[A, T, N, layers, H]``.
        """
        agents, rows, envs, _ = observations.shape
        at_steps = _latent_at_steps(latent, rows)
        final_values = observations.new_zeros(agents, rows - 1, envs)
        t, n = ended.nonzero(as_tuple=True)
        final_inputs = self._critic_inputs(finals[:, t, n], _latent_at(latent, (t, n)))
        if self.critic.body.gru is None:
            values, _ = self.critic(
                self._critic_inputs(observations.flatten(1, 2), at_steps), None, None
            )
            final_values[:, t, n], _ = self.critic(final_inputs, None, None)
            return values.view(agents, rows, envs), final_values, None
        inputs = self._critic_inputs(observations.flatten(1, 2), at_steps)
        inputs = inputs.view(agents, rows, envs, -1)
        state = inputs.new_zeros(agents, envs, *self.critic.body.state_shape)
        values, states = [], []
        for step in range(rows):
            states.append(state)
            value, state = self.critic(inputs[:, step], state, first[step : step + 1])
            values.append(value)
        stacked = torch.stack(states, 1)
        restart = torch.zeros(1, len(t), dtype=torch.bool, device=t.device)
        final_values[:, t, n], _ = self.critic(final_inputs, stacked[:, t + 1, n], restart)
        return torch.stack(values, 1), final_values, stacked[:, :-1]

    # Updating.

    def update(self, batch: Batch, critic_latent: CriticLatent) -> dict[str, Tensor]:
        """All epochs over one batch; returns the mean of each metric.

        The critic's latent is inferred again in every epoch. The value losses of an epoch's
        minibatches reach the encoder together, in one step at its end.
        """
        metrics: dict[str, list[Tensor]] = {}
        for _ in range(self.config.ppo_epoch):
            inferred = critic_latent()
            latent = None
            if inferred is not None:
                latent = inferred.detach().requires_grad_(inferred.requires_grad)
            found = [
                self._update_actor(part) | self._update_critic(part, where, latent)
                for part, where in self._minibatches(batch)
            ]
            if latent is not None and latent.grad is not None:
                penalty = critic_latent.penalty()
                found.append(self._update_encoder(inferred, latent.grad / len(found), penalty))
            for one in found:
                for name, value in one.items():
                    metrics.setdefault(name, []).append(value.detach())
        means = {name: torch.stack(values).mean() for name, values in metrics.items()}
        for name, value in means.items():
            if name.startswith("grad_norm/"):  # the next policies would act on NaN
                require_finite(name, value, vars(batch))
        return means

    def _update_actor(self, part: Batch) -> dict[str, Tensor]:
        config = self.config
        weight = part.active if config.use_policy_active_masks else None
        log_probs, entropy = self.actor.evaluate(
            part.actor_inputs.flatten(1, 2),
            part.actions.flatten(1, 2),
            part.actor_states,
            part.first,
            None if part.action_mask is None else part.action_mask.flatten(1, 2),
        )
        log_ratio = log_probs - part.log_probs.flatten(1)
        ratio = log_ratio.exp()
        advantages = part.advantages.flatten(1)
        surrogate = torch.minimum(
            ratio * advantages,
            ratio.clamp(1 - config.clip_param, 1 + config.clip_param) * advantages,
        )
        policy_loss = -mean_per_agent(surrogate, weight)
        entropies = mean_per_agent(entropy, weight)
        loss = policy_loss - config.entropy_coef * entropies
        require_finite("loss/policy", loss, vars(part))
        norms = self._step(self.actor_optimiser, self.actor, loss)
        with torch.no_grad():
            outside = ((ratio - 1).abs() > config.clip_param).float()
            return {
                "loss/policy": policy_loss.mean(),
                "entropy": entropies.mean(),
                "kl": mean_per_agent(ratio - 1 - log_ratio, weight).mean(),
                "clip_fraction": mean_per_agent(outside, weight).mean(),
                "grad_norm/actor": norms.mean(),
            }

    def _update_critic(
        self, part: Batch, where: tuple[Tensor, Tensor] | None, latent: Tensor | None
    ) -> dict[str, Tensor]:
        """``latent``: of the critic for each environment, as `CriticLatent` gives it."""
        config = self.config
        steps = part.critic_observations.shape[1]
        latent = _latent_at_steps(latent, steps) if where is None else _latent_at(latent, where)
        inputs = self._critic_inputs(part.critic_observations.flatten(1, 2), latent)
        values, _ = self.critic(inputs, part.critic_states, part.first)
        elementwise = value_loss(values, part.values.flatten(1), part.returns.flatten(1), config)
        weight = part.active if config.use_value_active_masks else None
        losses = mean_per_agent(elementwise, weight)
        require_finite("loss/value", losses, vars(part))
        norms = self._step(self.critic_optimiser, self.critic, config.value_loss_coef * losses)
        return {"loss/value": losses.mean(), "grad_norm/critic": norms.mean()}

    def _update_encoder(
        self, inferred: Any, gradient: Tensor, penalty: Tensor | None
    ) -> dict[str, Tensor]:
        """One step on the value losses, whose gradient by what was inferred is given."""
        assert self.encoder_optimiser is not None
        self.encoder_optimiser.zero_grad()
        if penalty is None:
            inferred.backward(gradient)
        else:
            torch.autograd.backward([inferred, penalty], [gradient, torch.ones_like(penalty)])
        norm = nn.utils.clip_grad_norm_(self.encoder_parameters, self._max_norm)
        self.encoder_optimiser.step()
        return {"grad_norm/encoder_from_critic": norm}

    @property
    def _max_norm(self) -> float:
        return self.config.max_grad_norm if self.config.use_max_grad_norm else float("inf")

    def _step(self, optimiser: torch.optim.Optimizer, module: nn.Module, losses: Tensor) -> Tensor:
        """One step on the agents' losses ``[A]``; agents with own networks do not mix."""
        optimiser.zero_grad()
        loss = losses.mean() if self.policy.share_policy else losses.sum()
        loss.backward()
        norms = clip_grad_norm_per_agent(list(module.parameters()), self._max_norm)
        optimiser.step()
        return norms

    def _minibatches(self, batch: Batch) -> Iterator[tuple[Batch, tuple[Tensor, Tensor] | None]]:
        """Parts of a batch and, unless it is the whole, step and environment of its rows."""
        parts = self.config.num_mini_batch
        recurrent = batch.critic_states is not None
        if parts == 1 and not recurrent:
            yield batch, None
            return
        _, steps, envs = batch.advantages.shape
        chunk = 1
        if recurrent:
            chunk = (
                steps if self.policy.use_naive_recurrent_policy else self.policy.data_chunk_length
            )
        chunks = steps // chunk * envs
        order = torch.randperm(chunks, generator=self.generator)
        for picked in order.to(batch.advantages.device).tensor_split(parts):
            start, env = picked // envs * chunk, picked % envs
            time = start + torch.arange(chunk, device=start.device).unsqueeze(1)

            def take(x: Tensor | None, time: Tensor = time, env: Tensor = env) -> Any:
                return None if x is None else x[:, time, env.expand_as(time)]

            def take_first(x: Tensor | None, time: Tensor = time, env: Tensor = env) -> Any:
                return None if x is None else x[:, time[0], env]

            yield (
                Batch(
                    actor_inputs=take(batch.actor_inputs),
                    critic_observations=take(batch.critic_observations),
                    actions=take(batch.actions),
                    log_probs=take(batch.log_probs),
                    advantages=take(batch.advantages),
                    returns=take(batch.returns),
                    values=take(batch.values),
                    first=batch.first[time, env.expand_as(time)],
                    actor_states=take_first(batch.actor_states),
                    critic_states=take_first(batch.critic_states),
                    action_mask=take(batch.action_mask),
                    active=take(batch.active),
                ),
                (time.flatten(), env.expand_as(time).flatten()),
            )
