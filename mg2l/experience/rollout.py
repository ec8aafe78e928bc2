"""Collecting a rollout: every agent acts on its observation and its latent."""

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
    """The complete episodes of a rollout; those that it cuts off are left out."""

    returns: Tensor
    """``[M, A]`` float64, sum of each agent's rewards."""

    lengths: Tensor
    """``[M]`` steps."""

    envs: Tensor
    """``[M]`` the sub-environment in which each was collected."""


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

    episode_start: Tensor
    """``[T + 1, N]`` bool, an episode begins at this step."""

    latent: Tensor | None
    """``[T, N, A, D]``: what the actors were conditioned on, beside their observations."""

    states: Tensor | None
    """``[T, A, N, layers, H]`` recurrent state before each step."""

    action_mask: Tensor | None
    """``[T, N, A, n]`` bool, actions that were allowed."""

    active: Tensor | None
    """``[T, N, A]`` bool, agents that were alive when they acted."""

    @property
    def _number(self) -> Tensor:
        """``[T, N]`` of the episode that a step belongs to, from 0."""
        return self.episode_start[:-1].long().cumsum(0) - 1

    def within(self, episodes: int) -> Tensor:
        """``[T, N]`` bool: steps of the first episodes of each environment."""
        return self._number < episodes

    def episodes(self) -> Episodes:
        """All episodes that ended within the rollout, sorted by their number."""
        number = self._number
        steps, count, agents = self.rewards.shape
        shape = (int(number.max()) + 1 if steps else 0, count)
        lengths = number.new_zeros(shape).scatter_add(0, number, torch.ones_like(number))
        returns = self.rewards.new_zeros((*shape, agents), dtype=torch.float64).scatter_add(
            0, number.unsqueeze(-1).expand(-1, -1, agents), self.rewards.double()
        )
        order = torch.arange(shape[0], device=number.device).unsqueeze(1)
        whole = order < self.episode_start[1:].sum(0)
        return Episodes(returns[whole], lengths[whole], whole.nonzero()[:, 1])

    def episode(self, index: int) -> Episodes:
        """The episode of that number of every environment, ``M = N``.

        Raises:
            ValueError: an environment has not ended it.
        """
        ended = self.episode_start[1:].sum(0)
        if bool((ended <= index).any()):
            raise ValueError(f"episode {index} has not ended in all environments")
        whole = self.episodes()
        envs = torch.arange(len(ended), device=ended.device)
        # Episodes are sorted by their number, and then by environment.
        start = sum(int((ended > number).sum()) for number in range(index))
        rows = start + envs
        return Episodes(whole.returns[rows], whole.lengths[rows], whole.envs[rows])


class Step(NamedTuple):
    """One step of N environments, a row of the fields of a `Rollout`."""

    observations: Tensor
    """``[N, A, O]``."""

    actions: Tensor
    """``[N, A, size]`` float or ``[N, A]`` int64, as drawn by the policies."""

    rewards: Tensor
    """``[N, A]``."""

    final_observations: Tensor
    """``[N, A, O]`` next observations, real also where an episode ended."""

    done: Tensor
    """``[N]`` bool, an episode ended with this step."""


class LatentStream(Protocol):
    """Latents of the actors that change in the course of a rollout, with what happens in it."""

    def current(self) -> Tensor:
        """Latent of each actor at this step, ``[N, A, D]``."""

    def update(self, step: Step) -> None:
        """Take a step into account."""


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
        latent: Tensor | LatentStream | None,
        deterministic: bool = False,
        seeds: Sequence[int] | None = None,
        episodes: int | None = None,
    ) -> Rollout:
        """Reset every sub-environment to its task and act for ``steps`` steps.

        Args:
            steps: T.
            task_ids: ``[N]``.
            latent: what actors are conditioned on: ``[T, N, A, D]``, or ``[1, N, A, D]`` for the
                same at every step, or a stream that follows the rollout, or None.
            deterministic: act on the most likely action instead of a sample.
            seeds: of the sub-environments; None continues with their streams.
            episodes: stop early, once every sub-environment has ended as many.

        Raises:
            NonFiniteStepError: the environment gave a number that is NaN or infinite.
            NonFiniteLossError: it did, or failed, after the policies had.
        """
        env, body = self.env, self.actor.body
        buffers: dict[str, list[Any]] = {name: [] for name in _FIELDS}
        latents: list[Tensor] = []
        state = None
        if body.gru is not None:
            state = torch.zeros(env.num_agents, env.num_envs, *body.state_shape, device=self.device)
        observation, info = env.reset(seeds, task_ids)
        require_finite(env, "observation", observation, 0)
        start = np.ones(env.num_envs, dtype=bool)
        ended = np.zeros(env.num_envs, np.int64)
        for t in range(steps):
            if isinstance(latent, Tensor):
                latents.append(latent[min(t, len(latent) - 1)])
            elif latent is not None:
                latents.append(latent.current())
            current = latents[-1].transpose(0, 1) if latents else None
            rows = self._tensor(observation)
            seen = rows.transpose(0, 1)
            mask = info.get("action_mask")
            allowed = None if mask is None else self._tensor(mask).transpose(0, 1)
            restart = torch.as_tensor(start[None], device=self.device)
            if t > 0 and body.remembers_episodes:
                restart = torch.zeros_like(restart)
            buffers["states"].append(state)
            held: dict[str, Any] = {"observations": rows, "latent": current}
            try:
                inputs = body.inputs(seen, current)
                action, log_prob, state = self.actor.act(
                    inputs, state, restart, allowed, self.generator, deterministic
                )
            except RuntimeError as error:  # of torch, where no action has a probability
                if "probability tensor" not in str(error):
                    raise
                finite.require_finite("action", torch.tensor(float("nan")), held)
            action = action.transpose(0, 1)
            buffers["observations"].append(observation)
            buffers["action_mask"].append(mask)
            buffers["active"].append(info.get("active"))
            buffers["episode_start"].append(start)
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
            start = np.asarray((terminated | truncated).all(1))
            buffers["rewards"].append(reward)
            buffers["terminated"].append(terminated)
            buffers["truncated"].append(truncated)
            buffers["final_observations"].append(info["final_obs"])
            if latent is not None and not isinstance(latent, Tensor):
                final, gained = self._tensor(info["final_obs"]), self._tensor(reward)
                latent.update(Step(rows, action, gained, final, self._tensor(start)))
            ended += start
            if episodes is not None and ended.min() >= episodes:
                break
        buffers["observations"].append(observation)
        buffers["episode_start"].append(start)
        stacked = {name: self._stack(rows) for name, rows in buffers.items()}
        if isinstance(latent, Tensor):
            length, constant = len(latents), len(latent) == 1
            latent = latent.expand(length, -1, -1, -1) if constant else latent[:length]
        elif latent is not None:
            latent = torch.stack(latents)
        return Rollout(latent=latent, **stacked)

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
    "episode_start",
    "states",
    "action_mask",
    "active",
)
