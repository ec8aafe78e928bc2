"""Training data of PPO, and its minibatches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mg2l.core.distributed import world
from mg2l.nn.conditioning import Latents
from mg2l.nn.moments import batch_moments

Weights = Tensor | float
"""``[A, rows]``, what each row counts in the mean of its agent; a number where all count alike."""


def weights_of(rows: int, kept: Tensor | None, count: Tensor | None) -> Weights:
    """Weights of rows in means per agent.

    Args:
        rows: how many there are, of all processes.
        kept: ``[A, rows]`` bool, which of this process's rows count; None is all.
        count: ``[A]`` how many rows count, of all processes; None where there is one process.
    """
    if kept is None:
        return 1 / max(rows, 1)
    kept = kept.float()
    count = kept.sum(1) if count is None else count
    return kept / count.clamp(min=1).unsqueeze(1)


@dataclass
class Batch:
    """A rollout in the layout that stacked networks read: ``[A, T, N, ...]``.

    Values and returns are in units of the value normaliser.
    """

    actor_inputs: Tensor
    critic_observations: Tensor
    """``[1 or A, T, N, ...]``, see `Critic.reads`."""

    actions: Tensor
    log_probs: Tensor
    advantages: Tensor
    returns: Tensor
    values: Tensor
    reset: Tensor
    """``[T, N]`` where states are reset before a step; of the whole batch if there are none."""

    actor_states: Tensor | None
    critic_states: Tensor | None
    action_mask: Tensor | None
    active: Tensor | None

    held_latents: Tensor | None = None
    """``[A, N, D]`` latents in ``actor_inputs``, each once, where they stay the same for a rollout,
    and actors can read them so."""

    held_by: Tensor | None = None
    """``[rows]`` int64, which of these a row has."""

    # Where there are several processes, of this batch in all of them:

    rows: int | None = None
    """Steps of an agent."""

    living: Tensor | None = None
    """``[A]``: in how many of them it was alive."""

    everyone: Tensor | None = None
    """``active`` ``[A, T, N]`` of all environments."""

    @property
    def actor_latents(self) -> Latents | None:
        """Latents in ``actor_inputs``, each once, or None."""
        return None if self.held_latents is None else Latents(self.held_latents, self.held_by)

    @property
    def explained_variance(self) -> Tensor:
        """``1 - Var(return - value) / Var(return)``, mean over agents, at most 1."""
        pairs = torch.stack([self.returns - self.values, self.returns], -1).flatten(1, 2)
        kept = None if self.active is None else self.active.flatten(1).t()
        error, total = batch_moments(pairs.transpose(0, 1), kept).variance.unbind(-1)
        return (1 - error / total.clamp(min=torch.finfo(total.dtype).tiny)).mean()

    def whole(self) -> Batch:
        """This batch, with the counts of all processes where there are several."""
        if world.size == 1:
            return self
        _, steps, envs = self.advantages.shape
        living = None if self.everyone is None else self.everyone.flatten(1).sum(1)
        return replace(self, rows=steps * envs * world.size, living=living)

    def weights(self, active: bool) -> Weights:
        """Weight of each row in its agent's mean; with ``active``, dead agents have none."""
        kept = self.active if active else None
        rows = self.advantages[0].numel() if self.rows is None else self.rows
        return weights_of(rows, None if kept is None else kept.flatten(1), self.living)

    def split(
        self, parts: int, chunk: int, generator: torch.Generator
    ) -> Iterator[tuple[Batch, tuple[Tensor, Tensor]]]:
        """Minibatches of random chunks of trajectories; each row is in one of them.

        Args:
            parts: how many.
            chunk: steps of a chunk, which divide T.
            generator: source of the permutation.

        Yields:
            A minibatch ``[A, chunk, chunks, ...]``, and step and environment of its rows.
        """
        _, steps, envs = self.advantages.shape
        all_envs = envs * world.size
        count, device = steps // chunk * all_envs, self.advantages.device
        order = torch.randperm(count, generator=generator, device=device)
        start, places = order // all_envs * chunk, order % all_envs
        times = start + torch.arange(chunk, device=device).unsqueeze(1)
        numbers = torch.stack([self.log_probs, self.advantages, self.returns, self.values])
        picked = zip(times.tensor_split(parts, 1), places.tensor_split(parts), strict=True)
        for time, env in picked:
            rows = living = None
            if world.size > 1:
                rows = time.numel()
                if self.everyone is not None:
                    living = self.everyone[:, time, env.expand_as(time)].flatten(1).sum(1)
                own = env // envs == world.rank
                time, env = time[:, own], env[own] % envs
            where = time.flatten(), env.expand_as(time).flatten()
            yield self._take(numbers, time, env, rows, living), where

    def _take(
        self, numbers: Tensor, time: Tensor, env: Tensor, count: int | None, living: Tensor | None
    ) -> Batch:
        """Rows at steps ``[chunk, chunks]`` of environments ``[chunks]``.

        ``numbers`` ``[4, A, T, N]`` are log-probabilities, advantages, returns and values, taken
        together: on a minibatch a call takes longer than its work.
        """
        _, _, envs = self.advantages.shape
        at = (time * envs + env).flatten()

        def take(x: Tensor | None) -> Any:
            rows = None if x is None else x.flatten(1, 2).index_select(1, at)
            return None if rows is None else rows.unflatten(1, time.shape)

        def take_first(x: Tensor | None) -> Any:
            return None if x is None else x[:, time[0], env]

        together = take(numbers.flatten(0, 1)).unflatten(0, numbers.shape[:2])
        log_probs, advantages, returns, values = together
        recurrent = self.actor_states is not None or self.critic_states is not None
        return Batch(
            actor_inputs=take(self.actor_inputs),
            critic_observations=take(self.critic_observations),
            actions=take(self.actions),
            log_probs=log_probs,
            advantages=advantages,
            returns=returns,
            values=values,
            reset=self.reset[time, env.expand_as(time)] if recurrent else self.reset,
            actor_states=take_first(self.actor_states),
            critic_states=take_first(self.critic_states),
            action_mask=take(self.action_mask),
            active=take(self.active),
            held_latents=self.held_latents,
            held_by=None if self.held_by is None else env.expand_as(time).flatten(),
            rows=count,
            living=living,
        )


def environments(steps: int, count: int, device: torch.device) -> Tensor:
    """``[steps N]`` int64, the environment of each row of a rollout of N of them."""
    return torch.arange(count, device=device).repeat(steps)


def latent_of_rows(
    latent: Tensor | None, where: tuple[Tensor, Tensor] | None, steps: int, each_once: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Latent of the critic for rows, ``[rows, D]``, or each once, and which of these a row has.

    Args:
        latent: ``[N, D]`` for all steps, ``[T, N, D]``, or None.
        where: step and environment ``[rows]`` of the rows; None where they are all those of the
            first ``steps``.
        steps: T.
        each_once: leave what environments hold for all steps as it is, beside ``[rows]`` int64.
    """
    if latent is None:
        return None, None
    held = latent.dim() == 2
    if held and each_once:
        index = environments(steps, len(latent), latent.device) if where is None else where[1]
        return latent, index
    if where is not None:
        return latent[where[1]] if held else latent[where], None
    return latent.repeat(steps, 1) if held else latent[:steps].flatten(0, 1), None


def add_latent_gradient(
    latent: Tensor, where: tuple[Tensor, Tensor] | None, to_rows: Tensor
) -> None:
    """Add gradients ``[rows, D]`` of `latent_of_rows` to that of the latent."""
    if latent.grad is None:
        latent.grad = torch.zeros_like(latent)
    if where is not None:
        at = where[1:] if latent.dim() == 2 else where
        latent.grad.index_put_(at, to_rows, accumulate=True)
    elif latent.dim() == 2:
        latent.grad += to_rows.view(-1, *latent.shape).sum(0)
    else:
        latent.grad.flatten(0, 1)[: len(to_rows)] += to_rows
