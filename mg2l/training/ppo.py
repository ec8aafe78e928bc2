"""Multi-agent PPO over stacked networks (Yu et al., 2022, arXiv:2103.01955)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mg2l.algorithms.base import CriticLatent
from mg2l.config.sections import PolicyConfig, PPOConfig
from mg2l.core.distributed import world
from mg2l.experience.finite import require_finite
from mg2l.experience.rollout import Rollout
from mg2l.nn.adam import Adam, clip_grad_norm, clip_grad_norm_per_agent
from mg2l.nn.critic import Critic
from mg2l.nn.distributions import SurrogateRows
from mg2l.nn.moments import batch_moments
from mg2l.nn.policy import Actor
from mg2l.nn.vjp import Both, Pull
from mg2l.ops.backend import Backend
from mg2l.training.batch import Batch, add_latent_gradient, environments, latent_of_rows
from mg2l.training.interleave import SideBySide, take_turns

Part = tuple[Batch, tuple[Tensor, Tensor] | None]
"""A minibatch and, unless it is the whole batch, step and environment of its rows."""

Step = Callable[[], dict[str, Tensor]]
"""Steps on gradients that are computed already; returns their norms, by metric."""


class Trained(NamedTuple):
    """Parameters, and how they are stepped on."""

    norm: str
    """Metric of their gradients' norm."""

    parameters: list[nn.Parameter]
    optimiser: Adam

    clip: Callable[[list[nn.Parameter], float, Backend], Tensor]
    """Limits norms of their gradients, and returns what they were."""


HEAVIER = 1.5
"""How many times the actors' parameters critics have at most that are trained beside the actors."""


class _Metrics(dict[str, list[Tensor]]):
    """Values of each metric, of all agents, in the order in which they came."""

    def note(self, values: dict[str, Tensor]) -> None:
        """Add one value of each, which has no graph."""
        for name, value in values.items():
            self.setdefault(name, []).append(value)


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
        encoder_optimiser: Adam | None,
        generator: torch.Generator,
        backend: Backend,
    ) -> None:
        self.backend = backend
        self.config, self.policy, self.actor, self.critic = config, policy, actor, critic
        self.encoder_parameters = encoder_parameters
        self.encoder_optimiser = encoder_optimiser
        self.generator = generator
        common = config.opti_eps, config.weight_decay
        self.actor_optimiser = Adam(actor.parameters(), config.actor_lr, *common)
        self.critic_optimiser = Adam(critic.parameters(), config.critic_lr, *common)
        self.trained_actor = Trained(
            "grad_norm/actor",
            list(actor.parameters()),
            self.actor_optimiser,
            clip_grad_norm_per_agent,
        )
        self.trained_critic = Trained(
            "grad_norm/critic",
            list(critic.parameters()),
            self.critic_optimiser,
            clip_grad_norm if critic.trained_together else clip_grad_norm_per_agent,
        )

    # Preparing a batch.

    @torch.no_grad()
    def prepare(self, rollout: Rollout, latent: Tensor | None) -> Batch:
        """Values of all steps at once, then advantages and returns.

        Args:
            rollout: the rollout.
            latent: latent of the critic, as `CriticLatent` gives it.
        """
        config = self.config
        steps, envs, agents = rollout.rewards.shape
        observations = self.critic.reads(self.actor.standardise(rollout.observations))
        finals = self.critic.reads(self.actor.standardise(rollout.final_observations))
        terminated, truncated, gamma = rollout.terminated, rollout.truncated, config.gamma
        if config.trial_gamma:  # the task continues with its next episode
            terminated, truncated = torch.zeros_like(terminated), torch.zeros_like(truncated)
            gamma = config.trial_gamma
        ended = truncated.any(-1)
        reset = rollout.episode_start
        if self.actor.body.remembers_episodes:
            reset = torch.cat([reset[:1], torch.zeros_like(reset[1:])])
        values, final_values, states = self._values(observations, finals, ended, reset, latent)
        if not config.use_proper_time_limits:
            terminated, truncated = terminated | truncated, torch.zeros_like(truncated)
        normaliser = self.critic.normaliser
        active = None if rollout.active is None else rollout.active.movedim(-1, 0)
        kept = active if config.use_value_active_masks else None
        mean = std = None
        if normaliser is not None:
            if not bool(normaliser.weight.any()):
                returns = self.returns_of_constant(
                    rollout.rewards, terminated, truncated, gamma, kept
                )
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
            gamma,
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
        actor_states, memory = None, self.actor.body.memory
        if rollout.states is not None:
            actor_states = rollout.states.movedim(0, 1)
        elif memory is not None:
            actor_states = memory.initial_state(agents, envs).unsqueeze(1)
        acted_on = None if rollout.latent is None else rollout.latent.permute(2, 0, 1, 3)
        rows = rollout.observations[:-1].permute(2, 0, 1, 3)
        inputs = self.actor.body.inputs(
            rows.flatten(1, 2), None if acted_on is None else acted_on.flatten(1, 2)
        )
        held = rollout.held_latent if self.actor.body.generates else None
        return Batch(
            # Rows are picked several times as fast where they lie behind each other.
            actor_inputs=inputs.view(agents, steps, envs, -1).contiguous(),
            critic_observations=observations[:, :-1].contiguous(),
            actions=rollout.actions.movedim(2, 0).contiguous(),
            log_probs=rollout.log_probs.movedim(2, 0).contiguous(),
            advantages=advantages.contiguous(),
            returns=returns.contiguous(),
            values=values.contiguous(),
            reset=reset[:-1],
            actor_states=actor_states,
            critic_states=states,
            action_mask=None if rollout.action_mask is None else rollout.action_mask.movedim(2, 0),
            active=active,
            held_latents=None if held is None else held.transpose(0, 1),
            held_by=None if held is None else environments(steps, envs, held.device),
            everyone=None if active is None else world.gather(active, dim=2),
        )

    def returns_of_constant(
        self,
        rewards: Tensor,
        terminated: Tensor,
        truncated: Tensor,
        gamma: float,
        kept: Tensor | None,
    ) -> Tensor:
        """Returns ``[A, T, N]`` at the constant value of all states that is the best initial guess.

        It is the one that equals its own mean return: TD's fixed point with a bias for the only
        feature (LSTD(lambda): Boyan, 2002, doi:10.1023/A:1017936530646). A critic that began at 0
        would take in the mean reward over ``1 - gamma`` a rollout at a time, and until then encode
        little but the number of steps left in the rollout.
        """
        config = self.config
        lam = config.gae_lambda if config.use_gae else 1.0

        def returns(rewards: Tensor, value: float) -> Tensor:
            values = torch.full((len(rewards) + 1, *rewards.shape[1:]), value).to(rewards)
            returned = self.backend.gae(
                rewards, values, terminated, truncated, gamma, lam, final_values=values[1:]
            ).returns
            return returned.movedim(-1, 0)

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
        reset: Tensor,
        latent: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values of all steps.

        Returns:
            Values ``[A, T + 1, N]``; values of real next observations ``[A, T, N]`` where an
            episode was cut, 0 elsewhere; recurrent states before each step
            ``[A, T, N, layers, H]``.
        """
        _, rows, envs, _ = observations.shape
        agents = self.critic.agents
        once = self.critic.body.generates
        at_steps, index = latent_of_rows(latent, None, rows, once)
        final_values = observations.new_zeros(agents, rows - 1, envs)
        t, n = ended.nonzero(as_tuple=True)
        at_end, end_index = latent_of_rows(latent, (t, n), 1, once)
        final = finals[:, t, n], at_end
        memory = self.critic.body.memory
        if memory is None:
            values, _ = self.critic(observations.flatten(1, 2), at_steps, None, None, index)
            final_values[:, t, n], _ = self.critic(*final, None, None, end_index)
            return values.view(agents, rows, envs), final_values, None
        state = self.critic.initial_state(envs)
        if self.policy.use_naive_recurrent_policy and not len(t):  # as one sequence
            values, _ = self.critic(observations.flatten(1, 2), at_steps, state, reset)
            return values.view(agents, rows, envs), final_values, state.unsqueeze(1)
        values, states = [], []
        for step in range(rows):
            states.append(state)
            at_step = None if at_steps is None else at_steps[step * envs : (step + 1) * envs]
            begins = reset[step : step + 1]
            value, state = self.critic(observations[:, step], at_step, state, begins)
            values.append(value)
        stacked = torch.stack(states, 1)
        restart = torch.zeros(1, len(t), dtype=torch.bool, device=t.device)
        final_values[:, t, n], _ = self.critic(*final, stacked[:, t + 1, n], restart)
        return torch.stack(values, 1), final_values, stacked[:, :-1]

    # Updating.

    def update(self, batch: Batch, critic_latent: CriticLatent) -> dict[str, Tensor]:
        """All epochs over one batch; returns the mean of each metric.

        The critic's latent is inferred again in every epoch. The value losses of an epoch's
        minibatches reach the encoder together, in one step at its end. With
        `CriticLatent.every_minibatch` each of them does on its own.

        Actors and critics do not depend on each other here. On several cores each are trained by
        half of the threads, and each half encodes half of the contexts of the critics' latent,
        unless critics take much longer, as those that read the observations of many agents do; else
        they take turns, and while the actors' gradients are summed over processes, those of the
        critics are computed, and the other way round.
        """
        actors, critics = _Metrics(), _Metrics()

        def train(parts: Iterable[Part]) -> tuple[Iterator[None], Iterator[None]]:
            one, two = itertools.tee(parts)
            return self._train_actors(one, actors), self._train_critics(two, critics, critic_latent)

        epochs, on_cpu = range(self.config.ppo_epoch), batch.advantages.device.type == "cpu"
        alone = world.size == 1 and torch.get_num_threads() > 1
        if on_cpu and alone and self.takes_as_long:
            with SideBySide() as side_by_side:
                for _ in epochs:
                    parts = [*self.minibatches(batch)]
                    if critic_latent.every_minibatch:
                        side_by_side.run(*train(parts))
                    else:
                        self._train_epoch(side_by_side, parts, actors, critics, critic_latent)
        else:
            every = itertools.chain.from_iterable(self.minibatches(batch) for _ in epochs)
            take_turns(*train(every))
        means = {name: torch.stack(values).mean() for name, values in (actors | critics).items()}
        # Norms are of gradients that are summed already.
        world.start_sum(x for name, x in means.items() if not name.startswith("grad_norm/"))()
        for name, value in means.items():
            if name.startswith("grad_norm/"):  # the next policies would act on NaN
                require_finite(name, value, vars(batch))
        return means | {"explained_variance": batch.explained_variance}

    @property
    def takes_as_long(self) -> bool:
        """Whether a step of the critics takes about as long as one of the actors, or less."""
        actor, critic = (
            sum(p.numel() for p in trained.parameters)
            for trained in (self.trained_actor, self.trained_critic)
        )
        return critic <= HEAVIER * actor

    def _train_actors(self, parts: Iterable[Part], metrics: _Metrics) -> Iterator[None]:
        """Step on the actors with each minibatch; yields while gradients are summed."""
        for part, _ in parts:
            metrics.note(self.actor_gradients(part))
            step = self.start_step(self.trained_actor)
            yield
            metrics.note(step())

    def _train_critics(
        self, parts: Iterable[Part], metrics: _Metrics, critic_latent: CriticLatent
    ) -> Iterator[None]:
        """Step on the critics, and at times on the encoder; yields while gradients are summed."""
        every = 1 if critic_latent.every_minibatch else self.config.num_mini_batch
        for number, (part, where) in enumerate(parts):
            if number % every == 0:
                latent, pull = self.infer(critic_latent)
            metrics.note(self.critic_gradients(part, where, latent))
            trained = [self.trained_critic]
            if (number + 1) % every == 0 and pull is not None:
                assert latent is not None
                assert latent.grad is not None
                trained.append(self.encoder_gradients(pull, latent.grad / every))
            step = self.start_step(*trained)
            yield
            metrics.note(step())

    def _train_epoch(
        self,
        side_by_side: SideBySide,
        parts: list[Part],
        actors: _Metrics,
        critics: _Metrics,
        critic_latent: CriticLatent,
    ) -> None:
        """An epoch at whose end the encoder takes its step.

        Actors and critics take about as long, and the encoder half of that: were it left to the
        critics' threads, the actors' would be idle.
        """
        latent, pull = self.infer(critic_latent, side_by_side.both)
        side_by_side.run(
            self._train_actors(parts, actors), self._step_critics(parts, critics, latent)
        )
        if pull is not None:
            assert latent is not None
            assert latent.grad is not None
            trained = self.encoder_gradients(pull, latent.grad / self.config.num_mini_batch)
            critics.note(self.start_step(trained)())

    def _step_critics(
        self, parts: list[Part], metrics: _Metrics, latent: Tensor | None
    ) -> Iterator[None]:
        """Step on the critics with each minibatch, and collect the gradients of their latent."""
        for part, where in parts:
            metrics.note(self.critic_gradients(part, where, latent))
            metrics.note(self.start_step(self.trained_critic)())
            yield

    def infer(
        self, critic_latent: CriticLatent, both: Both = map
    ) -> tuple[Tensor | None, Pull | None]:
        """The critics' latent, which collects its gradients, and what takes them to the encoder."""
        latent, pull = critic_latent.vjp(both)
        return None if latent is None else latent.requires_grad_(pull is not None), pull

    @torch.no_grad()
    def actor_gradients(self, part: Batch) -> dict[str, Tensor]:
        """Compute the actors' gradients on a minibatch; returns its metrics, of each agent."""
        config = self.config
        weights = part.weights(config.use_policy_active_masks)
        found, pull = self.actor.surrogate(
            part.actor_inputs.flatten(1, 2),
            part.actions.flatten(1, 2),
            part.actor_states,
            part.reset,
            None if part.action_mask is None else part.action_mask.flatten(1, 2),
            SurrogateRows(part.log_probs.flatten(1), part.advantages.flatten(1), weights),
            part.actor_latents,
            clip=config.clip_param,
            entropy_coef=config.entropy_coef,
        )
        require_finite("loss/policy", found.loss, vars(part))
        self.actor_optimiser.zero_grad()
        pull(self.factor(self.trained_actor))
        return {
            "loss/policy": found.surrogate,
            "entropy": found.entropy,
            "kl": found.kl,
            "clip_fraction": found.clip_fraction,
        }

    def critic_gradients(
        self, part: Batch, where: tuple[Tensor, Tensor] | None, latent: Tensor | None
    ) -> dict[str, Tensor]:
        """Compute the critics' gradients on a minibatch, and add to the latent's.

        Args:
            part: the minibatch.
            where: step and environment of its rows; None where it is the whole batch.
            latent: latent of the critic for each environment, as `CriticLatent` gives it.

        Returns:
            The metrics of the minibatch, of each agent.
        """
        config = self.config
        steps = part.critic_observations.shape[1]
        rows = part.critic_observations.flatten(1, 2)
        held = None if latent is None else latent.detach()
        at_rows, index = latent_of_rows(held, where, steps, self.critic.body.generates)
        if latent is not None and at_rows is not None:
            at_rows.requires_grad_(latent.requires_grad)
        values, pull = self.critic.vjp(rows, at_rows, part.critic_states, part.reset, index)
        weights = part.weights(config.use_value_active_masks)
        before, returns = part.values.flatten(1), part.returns.flatten(1)
        with torch.no_grad():
            losses, slope = self.backend.value_loss(
                values,
                before,
                returns,
                weights,
                clip=config.clip_param if config.use_clipped_value_loss else None,
                delta=config.huber_delta if config.use_huber_loss else None,
            )
            require_finite("loss/value", losses, vars(part))
            self.critic_optimiser.zero_grad()
            factor = self.factor(self.trained_critic)
            to_rows = pull(slope * (config.value_loss_coef * factor))
            if latent is not None and to_rows is not None:
                add_latent_gradient(latent, where if index is None else None, to_rows)
        return {"loss/value": losses}

    def encoder_gradients(self, pull: Pull, gradient: Tensor) -> Trained:
        """Compute the encoder's gradients on the value losses, given those of the latent."""
        assert self.encoder_optimiser is not None
        self.encoder_optimiser.zero_grad()
        pull(gradient)
        return Trained(
            "grad_norm/encoder_from_critic",
            self.encoder_parameters,
            self.encoder_optimiser,
            clip_grad_norm,
        )

    @property
    def max_norm(self) -> float:
        """Norm that gradients are clipped to; infinite without clipping."""
        return self.config.max_grad_norm if self.config.use_max_grad_norm else float("inf")

    def factor(self, trained: Trained) -> float:
        """Factor of each agent's loss; with networks of their own, agents do not mix."""
        averaged = self.policy.share_policy or trained.clip is clip_grad_norm
        return 1 / self.critic.agents if averaged else 1.0

    def start_step(self, *trained: Trained) -> Step:
        """Begin to sum gradients over processes, those of all ``trained`` in one message."""
        parameters = [p for each in trained for p in each.parameters]
        finish = world.start_sum(p.grad for p in parameters if p.grad is not None)

        def step() -> dict[str, Tensor]:
            finish()
            norms = {}
            for norm, parameters, optimiser, clip in trained:
                norms[norm] = clip(parameters, self.max_norm, self.backend)
                optimiser.step()
            return norms

        return step

    def minibatches(self, batch: Batch) -> Iterator[Part]:
        """The minibatches of an epoch."""
        parts, chunk = self.config.num_mini_batch, 1
        if batch.critic_states is not None:
            whole = self.policy.use_naive_recurrent_policy
            chunk = batch.advantages.shape[1] if whole else self.policy.data_chunk_length
        elif parts == 1:
            yield batch.whole(), None
            return
        yield from batch.split(parts, chunk, self.generator)
