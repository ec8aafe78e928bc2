"""Collecting one rollout: every agent acts on its observation and what it believes of the task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from mg2l.envs.base import EnvError, VectorEnv
from mg2l.envs.finite import require_finite
from mg2l.experience import finite
from mg2l.nn.policy import Actor


class Episodes(NamedTuple):
    """Whole episodes of a rollout; what it cut off is not among them."""

    returns: Tensor
    """``[M, A]`` float64, sum of each agent's rewards."""

    lengths: Tensor
    """``[M]`` steps."""

    copies: Tensor
    """``[M]`` the environment in which each was collected."""


@dataclass
class Rollout:
    """What happened in ``T`` steps of ``N`` environments; time first, on the device.

    An episode that ends early is followed by another one: there can be many in a rollout.
    """

    observations: Tensor
    """``[T + 1, N, A, O]``; the last row is where the rollout stopped."""

    final_observations: Tensor
    """``[T, N, A, O]`` next observations, real also where an episode ended."""

    actions: Tensor
    """``[T, N, A, size]`` float or ``[T, N, A]`` int64, as drawn by the policies."""

    log_probs: Tensor
    """``[T, N, A]`` of the actions when drawn [nats]."""

    rewards: Tensor
    """``[T, N, A]``."""

    terminated: Tensor
    """``[T, N, A]`` bool, the task itself ended."""

    truncated: Tensor
    """``[T, N, A]`` bool, a time limit cut the episode."""

    first: Tensor
    """``[T + 1, N]`` bool, an episode begins at this step."""

    task: Tensor | None
    """``[T, N, A, D]``: what the actors were told of the task when they acted."""

    states: Tensor | None
    """``[T, A, N, layers, H]`` recurrent state before each step."""

    action_mask: Tensor | None
    """``[T, N, A, n]`` bool, actions that were allowed."""

    active: Tensor | None
    """``[T, N, A]`` bool, agents that were alive when they acted."""

    @property
    def _number(self) -> Tensor:
        """``[T, N]`` of the episode that a step belongs to, from 0."""
        return self.first[:-1].long().cumsum(0) - 1

    def within(self, episodes: int) -> Tensor:
        """``[T, N]`` bool: steps of the first episodes of each environment."""
        return self._number < episodes

    def episodes(self) -> Episodes:
        """All episodes that ended within the rollout, in the order of their number."""
        number = self._number
        steps, count, agents = self.rewards.shape
        shape = (int(number.max()) + 1 if steps else 0, count)
        lengths = number.new_zeros(shape).scatter_add(0, number, torch.ones_like(number))
        returns = self.rewards.new_zeros((*shape, agents), dtype=torch.float64).scatter_add(
            0, number.unsqueeze(-1).expand(-1, -1, agents), self.rewards.double()
        )
        order = torch.arange(shape[0], device=number.device).unsqueeze(1)
        whole = order < self.first[1:].sum(0)
        return Episodes(returns[whole], lengths[whole], whole.nonzero()[:, 1])

    def episode(self, index: int) -> Episodes:
        """The episode of that number of every environment, ``M = N``.

        Raises:
            ValueError: an environment has not ended it.
        """
        ended = self.first[1:].sum(0)
        if bool((ended <= index).any()):
            raise ValueError(f"episode {index} has not ended in all environments")
        whole = self.episodes()
        copies = torch.arange(len(ended), device=ended.device)
        # Of the episodes of one number come those of the environments that ended it, in order.
        start = sum(int((ended > number).sum()) for number in range(index))
        rows = start + copies
        return Episodes(whole.returns[rows], whole.lengths[rows], whole.copies[rows])


class Listener(Protocol):
    """Says what actors are told in the course of a rollout, from what happens in it."""

    def tell(self) -> Tensor:
        """What each actor is told at this step, ``[N, A, D]``."""

    def see(
        self,
        observations: Tensor,
        actions: Tensor,
        rewards: Tensor,
        final_observations: Tensor,
        over: Tensor,
    ) -> None:
        """Take in a step: a row of each field of a `Rollout`.

        ``over``: ``[N]`` bool, an episode ended with it.
        """


class Collector:
    """Runs the policies in an environment.

    Args:
        env: where to act.
        actor: policies of all agents.
        device: where policies and rollouts live.
        generator: source of the policies' noise.
    """

    def __init__(
        self, env: VectorEnv, actor: Actor, device: torch.device, generator: torch.Generator
    ) -> None:
        self.env, self.actor, self.device, self.generator = env, actor, device, generator

    @torch.no_grad()
    def collect(
        self,
        steps: int,
        task_ids: np.ndarray,
        task: Tensor | Listener | None,
        deterministic: bool = False,
        seeds: Sequence[int] | None = None,
        episodes: int | None = None,
    ) -> Rollout:
        """Reset every copy to its task and act for ``steps`` steps.

        Args:
            steps: T.
            task_ids: ``[N]``.
            task: what the actors are told: ``[T, N, A, D]``, or ``[1, N, A, D]`` for the same at
                every step, or None, or who says it in the course of the rollout.
            deterministic: act on the most likely action instead of a sample.
            seeds: of the environment's copies; None goes on with their streams.
            episodes: stop early, when every copy has ended as many.

        Raises:
            NonFiniteStepError: the environment gave a number that is NaN or infinite.
            NonFiniteLossError: it did, or failed, after the policies had.
        """
        env, body = self.env, self.actor.body
        buffers: dict[str, list[Any]] = {name: [] for name in _FIELDS}
        heard: list[Tensor] = []
        state = None
        if body.gru is not None:
            state = torch.zeros(env.num_agents, env.num_envs, *body.state_shape, device=self.device)
        observation, info = env.reset(seeds, task_ids)
        require_finite(env, "observation", observation, 0)
        first = np.ones(env.num_envs, dtype=bool)
        ended = np.zeros(env.num_envs, np.int64)
        for t in range(steps):
            if isinstance(task, Tensor):
                heard.append(task[min(t, len(task) - 1)])
            elif task is not None:
                heard.append(task.tell())
            told = heard[-1].transpose(0, 1) if heard else None
            rows = self._tensor(observation)
            seen = rows.transpose(0, 1)
            mask = info.get("action_mask")
            allowed = None if mask is None else self._tensor(mask).transpose(0, 1)
            begins = torch.as_tensor(first[None], device=self.device)
            if t > 0 and body.remembers_episodes:
                begins = torch.zeros_like(begins)
            buffers["states"].append(state)
            held: dict[str, Any] = {"observations": rows, "told": told}
            try:
                action, log_prob, state = self.actor.act(
                    body.inputs(seen, told), state, begins, allowed, self.generator, deterministic
                )
            except RuntimeError as error:  # of torch, where no action has a probability
                if "probability tensor" not in str(error):
                    raise
                finite.require_finite("action", torch.tensor(float("nan")), held)
            action = action.transpose(0, 1)
            buffers["observations"].append(observation)
            buffers["action_mask"].append(mask)
            buffers["active"].append(info.get("active"))
            buffers["first"].append(first)
            buffers["actions"].append(action)
            buffers["log_probs"].append(log_prob.t())
            try:
                observation, reward, terminated, truncated, info = env.step(action.cpu().numpy())
                # Before anybody acts on them: a policy that meets NaN fails without saying where.
                require_finite(env, "reward", reward, t + 1)
                require_finite(env, "observation", info["final_obs"], t + 1)
                if info["final_obs"] is not observation:
                    require_finite(env, "observation", observation, t + 1)
            except (EnvError, ValueError):  # it may not be the environment that began
                finite.require_finite("action", action, held)
                raise
            first = np.asarray((terminated | truncated).all(1))
            buffers["rewards"].append(reward)
            buffers["terminated"].append(terminated)
            buffers["truncated"].append(truncated)
            buffers["final_observations"].append(info["final_obs"])
            if task is not None and not isinstance(task, Tensor):
                final, gained = self._tensor(info["final_obs"]), self._tensor(reward)
                task.see(rows, action, gained, final, self._tensor(first))
            ended += first
            if episodes is not None and ended.min() >= episodes:
                break
        buffers["observations"].append(observation)
        buffers["first"].append(first)
        stacked = {name: self._stack(rows) for name, rows in buffers.items()}
        if isinstance(task, Tensor):
            length = len(buffers["rewards"])
            task = task[:length] if len(task) > 1 else task.expand(length, *task.shape[1:])
        elif task is not None:
            task = torch.stack(heard)
        return Rollout(task=task, **stacked)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, device=self.device)

    def _stack(self, rows: list[Any]) -> Any:
        if rows[0] is None:
            return None
        if isinstance(rows[0], Tensor):
            return torch.stack(rows)
        return torch.as_tensor(np.stack(rows), device=self.device)


_FIELDS = (
    "observations",
    "final_observations",
    "actions",
    "log_probs",
    "rewards",
    "terminated",
    "truncated",
    "first",
    "states",
    "action_mask",
    "active",
)
