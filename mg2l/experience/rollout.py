"""Collecting a rollout: every agent acts on its observation and its latent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from mg2l.core.transfer import copy_to, to_device, to_host
from mg2l.envs.base import DeviceEnv, EnvError, VectorEnv
from mg2l.envs.finite import require_finite
from mg2l.experience import finite
from mg2l.nn.distributions import NonFiniteProbabilityError
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
    """Tensors of ``T`` steps of ``N`` environments; time first, on the device.

    An episode that ends early is followed by another one: there can be many in a rollout.
    """

    observations: Tensor
    """``[T + 1, N, A, O]``; the last row follows the last step."""

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
    """``[T + 1, N]`` bool, an episode starts at this step."""

    latent: Tensor | None
    """``[T, N, A, D]`` latents that the actors were conditioned on."""

    states: Tensor | None
    """``[T, A, N, layers, H]`` recurrent state before each step, where the memory keeps them."""

    action_mask: Tensor | None
    """``[T, N, A, n]`` bool, actions that were allowed."""

    active: Tensor | None
    """``[T, N, A]`` bool, agents that were alive when they acted."""

    @property
    def held_latent(self) -> Tensor | None:
        """``[N, A, D]``, the one latent of all steps; None where each step has its own."""
        held = self.latent is not None and self.latent.stride(0) == 0
        return self.latent[0] if self.latent is not None and held else None

    def within(self, episodes: int) -> Tensor:
        """``[T, N]`` bool: steps of the first episodes of each environment."""
        return _numbers(self.episode_start) < episodes

    def episodes(self) -> Episodes:
        """All episodes that ended within the rollout, sorted by their number, on the CPU."""
        starts, rewards = self.episode_start.cpu(), self.rewards.cpu()
        number = _numbers(starts)
        steps, count, agents = rewards.shape
        shape = (int(number.max()) + 1 if steps else 0, count)
        lengths = number.new_zeros(shape).scatter_add(0, number, torch.ones_like(number))
        returns = rewards.new_zeros((*shape, agents), dtype=torch.float64).scatter_add(
            0, number.unsqueeze(-1).expand(-1, -1, agents), rewards.double()
        )
        order = torch.arange(shape[0]).unsqueeze(1)
        whole = order < starts[1:].sum(0)
        return Episodes(returns[whole], lengths[whole], whole.nonzero()[:, 1])

    def episode(self, index: int) -> Episodes:
        """The episode of that number of every environment, ``M = N``.

        Raises:
            ValueError: an environment has not ended it.
        """
        ended = self.episode_start[1:].sum(0).cpu()
        if bool((ended <= index).any()):
            raise ValueError(f"episode {index} has not ended in all environments")
        whole = self.episodes()
        envs = torch.arange(len(ended))
        # Episodes are sorted by their number, and then by environment.
        start = sum(int((ended > number).sum()) for number in range(index))
        rows = start + envs
        return Episodes(whole.returns[rows], whole.lengths[rows], whole.envs[rows])


def _numbers(episode_start: Tensor) -> Tensor:
    """``[T, N]`` of the episode that a step belongs to, from 0."""
    return episode_start[:-1].long().cumsum(0) - 1


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

    active: Tensor | None = None
    """``[N, A]`` bool, agents that were alive when they acted; None is all of them."""


class LatentStream(Protocol):
    """Latents of the actors that change with the steps of a rollout."""

    def current(self) -> Tensor:
        """Latent of each actor at this step, ``[N, A, D]``."""

    def update(self, step: Step) -> None:
        """Take a step into account."""

    def arguments(self) -> dict[str, Any]:
        """Those with which `TaskInference.growing_latent` makes the same elsewhere, on the CPU.

        Empty where `TaskInference.actor_latent` makes it, which needs tasks alone.
        """


class Collector:
    """Runs the policies in an environment.

    Args:
        env: where to act.
        actor: policies of all agents.
        device: device of policies and rollouts.
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
            seeds: seeds of the sub-environments; None continues with their streams.
            episodes: stop early, once every sub-environment has ended as many.

        Raises:
            NonFiniteStepError: the environment gave a number that is NaN or infinite.
            NonFiniteLossError: it did, or failed, after the policies had.
        """
        env, body = self.env, self.actor.body
        buffers: dict[str, list[Any]] = {name: [] for name in _FIELDS}
        finals: dict[int, Any] = {}  # where an episode ended: else the next observation
        gained = None
        if isinstance(env, DeviceEnv) and env.device == self.device:
            gained = torch.empty(steps, env.num_envs, env.num_agents, device=self.device)
        latents: list[Tensor] = []
        outputs: list[Tensor] = []  # of the policies, whose log-probabilities follow at the end
        state = None
        if body.memory is not None:
            state = body.memory.initial_state(env.num_agents, env.num_envs)
        observation, info = env.reset(seeds, task_ids)
        require_finite(env, "observation", observation, 0)
        observations = torch.empty(
            steps + 1, *observation.shape, dtype=_dtype(observation), device=self.device
        )
        copy_to(observations[0], observation)
        start = np.ones(env.num_envs, dtype=bool)
        ended = np.zeros(env.num_envs, np.int64)
        for t in range(steps):
            if isinstance(latent, Tensor):
                latents.append(latent[min(t, len(latent) - 1)])
            elif latent is not None:
                latents.append(latent.current())
            current = latents[-1].transpose(0, 1) if latents else None
            rows = observations[t]
            seen = rows.transpose(0, 1)
            mask = info.get("action_mask")
            allowed = None if mask is None else self._tensor(mask).transpose(0, 1)
            restart = None
            if body.memory is not None:
                forget = not body.remembers_episodes or t == 0
                restart = self._tensor(start[None] if forget else np.zeros_like(start[None]))
            kept = body.memory is not None and body.memory.keeps_states
            buffers["states"].append(state if kept else None)
            held: dict[str, Any] = {"observations": rows, "latent": current}
            try:
                inputs = body.inputs(seen, current)
                action, output, state = self.actor.act(
                    inputs, state, restart, allowed, self.generator, deterministic
                )
            except NonFiniteProbabilityError:
                finite.require_finite("action", torch.tensor(float("nan")), held)
            action = action.transpose(0, 1)
            buffers["action_mask"].append(mask)
            buffers["active"].append(info.get("active"))
            buffers["episode_start"].append(start)
            buffers["actions"].append(action)
            outputs.append(output)
            if gained is not None:
                assert isinstance(env, DeviceEnv)
                final, start = env.step_tensors(action, observations[t + 1], gained[t])
                if final is not None:
                    finals[t] = final
                info, cut = {}, np.repeat(start[:, None], env.num_agents, 1)
                buffers["terminated"].append(np.zeros_like(cut))
                buffers["truncated"].append(cut)
                if latent is not None and not isinstance(latent, Tensor):
                    final = observations[t + 1] if final is None else final
                    latent.update(Step(rows, action, gained[t], final, self._tensor(start)))
                ended += start
                if episodes is not None and ended.min() >= episodes:
                    break
                continue
            try:
                observation, reward, terminated, truncated, info = env.step(to_host(action))
                # Before a policy acts on them, which would fail on NaN without saying where.
                require_finite(env, "reward", reward, t + 1)
                require_finite(env, "observation", info["final_obs"], t + 1)
                if info["final_obs"] is not observation:
                    require_finite(env, "observation", observation, t + 1)
            except (EnvError, ValueError):  # the environment may not be the cause
                finite.require_finite("action", action, held)
                raise
            start = np.asarray((terminated | truncated).all(1))
            buffers["rewards"].append(reward)
            buffers["terminated"].append(terminated)
            buffers["truncated"].append(truncated)
            copy_to(observations[t + 1], observation)
            if info["final_obs"] is not observation:
                finals[t] = info["final_obs"]
            if latent is not None and not isinstance(latent, Tensor):
                final, paid = self._tensor(info["final_obs"]), self._tensor(reward)
                alive = buffers["active"][-1]
                active = None if alive is None else self._tensor(alive)
                latent.update(Step(rows, action, paid, final, self._tensor(start), active))
            ended += start
            if episodes is not None and ended.min() >= episodes:
                break
        observations = observations[: t + 2]
        buffers["episode_start"].append(start)
        if gained is not None:
            buffers["rewards"] = [*gained[: t + 1]]
        stacked = {name: self._stack(rows) for name, rows in buffers.items()}
        log_probs = self._log_probs(outputs, stacked["actions"], stacked["action_mask"])
        if self.device.type != "cpu":  # where policies do not look at their probabilities
            acted = {"observations": observations, "actions": stacked["actions"]}
            for name in ("observations", "rewards") if gained is not None else ():
                value = observations if name == "observations" else stacked[name]
                finite.require_finite(name, value, acted)
            finite.require_finite("action", log_probs, acted)
        if isinstance(latent, Tensor):
            length, constant = len(latents), len(latent) == 1
            latent = latent.expand(length, -1, -1, -1) if constant else latent[:length]
        elif latent is not None:
            latent = torch.stack(latents)
        return Rollout(
            observations=observations,
            final_observations=self._finals(observations, finals),
            latent=latent,
            log_probs=log_probs,
            **stacked,
        )

    def _log_probs(self, outputs: list[Tensor], actions: Tensor, mask: Tensor | None) -> Tensor:
        """Log-probabilities ``[T, N, A]`` of all actions, in as many calls as one step's take."""
        steps, envs = actions.shape[:2]
        log_probs = self.actor.log_probs(
            torch.cat(outputs, 1),
            actions.movedim(2, 0).flatten(1, 2),
            None if mask is None else mask.movedim(2, 0).flatten(1, 2),
        )
        return log_probs.view(-1, steps, envs).permute(1, 2, 0).contiguous()

    def _finals(self, observations: Tensor, finals: dict[int, Any]) -> Tensor:
        """Next observations: those of the next step, but where others are given."""
        if len(finals) == len(observations) - 1:
            given: Tensor = self._stack(list(finals.values()))
            return given
        rows = observations[1:].clone()
        if finals:
            rows[self._tensor(list(finals))] = self._stack(list(finals.values()))
        return rows

    def _tensor(self, array: Any) -> Tensor:
        return to_device(array, self.device)

    def _stack(self, rows: list[Any]) -> Any:
        if rows[0] is None:
            return None
        if isinstance(rows[0], Tensor):
            return torch.stack(rows)
        return self._tensor(np.stack(rows))


def _dtype(array: np.ndarray) -> torch.dtype:
    return torch.as_tensor(array[:0]).dtype


_FIELDS = (
    "actions",
    "rewards",
    "terminated",
    "truncated",
    "episode_start",
    "states",
    "action_mask",
    "active",
)
