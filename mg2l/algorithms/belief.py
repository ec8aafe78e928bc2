"""Base of the algorithms whose agents form a belief step by step from what happens to them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mg2l.algorithms.base import CriticLatent, TaskInference
from mg2l.algorithms.encoder import TransitionMoments
from mg2l.config.sections import Config
from mg2l.core.schema import ConfigError, check_steps
from mg2l.estimators.gaussian import STD_FLOOR, Gaussian
from mg2l.experience.finite import require_finite
from mg2l.experience.problem import ProblemSpec
from mg2l.experience.replay import ContextReplay
from mg2l.experience.rollout import Rollout, Step
from mg2l.experience.transitions import Transitions
from mg2l.nn.stacked import StackedGRU, StackedLinear, StackedMLP


class BeliefEncoder(nn.Module):
    """A GRU over transitions; each of its states is read out as a Gaussian.

    Args:
        groups: G encoders side by side.
        inputs: width of what each reads at a step.
        hidden: H, width of the GRU.
        outputs: D.
    """

    def __init__(self, groups: int, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.groups, self.hidden = groups, hidden
        self.mlp = StackedMLP(groups, inputs, hidden, 0, True, True)
        self.gru = StackedGRU(groups, hidden, 1, True)
        self.head = StackedLinear(groups, hidden, 2 * outputs, 1.0)

    def initial_state(self, rows: int) -> Tensor:
        """The state before anything was seen, ``[G, rows, 1, H]``."""
        return torch.zeros(self.groups, rows, 1, self.hidden, device=self.head.weight.device)

    def forward(self, x: Tensor, state: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``[G, T, rows, H]`` after each step, and the last state.

        Args:
            x: ``[G, T, rows, inputs]``.
            state: ``[G, rows, 1, H]``.
            first: ``[T, rows]`` bool, everything before a step is forgotten.
        """
        hidden = self.mlp(x.flatten(1, 2)).unflatten(1, first.shape)
        features, state = self.gru(hidden, state, first)
        return features, state

    def read_out(self, features: Tensor) -> Gaussian:
        """``[G, *, H]`` to a Gaussian ``[G, *, D]``; zeros are the belief before anything."""
        mean, spread = self.head(features.flatten(1, -2)).chunk(2, -1)
        shape = (*features.shape[:-1], -1)
        return Gaussian(mean.view(shape), F.softplus(spread).view(shape) + STD_FLOOR)


def belief_latent(belief: Gaussian) -> Tensor:
    """The latent of a belief ``[*, D]``: its mean and log-variance, ``[*, 2 D]``."""
    return torch.cat([belief.mean, 2 * belief.std.log()], -1)


class Decoder(nn.Module):
    """``[G, *, inputs] -> [G, *, outputs]``, one network per group."""

    def __init__(self, groups: int, inputs: int, sizes: list[int], outputs: int) -> None:
        super().__init__()
        self.mlp = StackedMLP(groups, inputs, sizes[0], len(sizes) - 1, True, True)
        self.output = StackedLinear(groups, sizes[-1], outputs, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        decoded: Tensor = self.output(self.mlp(x.flatten(1, -2)))
        return decoded.view(*x.shape[:-1], -1)


class BeliefInference(TaskInference):
    """Beliefs of actors and critics in the course of a rollout, and training on trajectories.

    An actor is told mean and log-variance of its belief, ``[2 D]``, a critic those of all agents.
    Neither loss of PPO trains the encoder. A subclass says what a belief must explain (`elbo`).

    Args:
        spec: the run and the sizes of its environment.
        joint: one belief from everybody's transitions instead of one per agent from its own.
    """

    optimiser: torch.optim.Optimizer

    def __init__(self, spec: ProblemSpec, joint: bool = False) -> None:
        super().__init__(spec)
        config = spec.config
        self.options, self.belief, self.joint = config.encoder, config.belief, joint
        self.max_norm = config.ppo.max_grad_norm if config.ppo.use_max_grad_norm else math.inf
        self.transitions = Transitions(spec)
        self.noise, self.draws, self.device = spec.noise, spec.draws, spec.device
        self.forgets = self.belief.belief_reset == "episode"
        width, steps = spec.transition, config.rollout_steps
        self.actor_latent_dim = 2 * self.options.context_dim
        self.critic_latent_dim = self.agents * self.actor_latent_dim
        self.moments = TransitionMoments(width)
        groups, inputs = (1, self.agents * width) if joint else (self.agents, width)
        self.encoder = BeliefEncoder(
            groups, inputs, self.belief.belief_hidden, self.options.context_dim
        )
        # Of one "task" all trajectories, each with a column that says where an episode begins.
        self.kept = ContextReplay(
            1, self.belief.kept_trajectories * steps, steps, self.agents, width + 1, self.device
        )
        self._eps = config.ppo.opti_eps

    def train_all(self) -> None:
        """Move all networks to the device, and make their optimiser."""
        self.to(self.device)
        self.optimiser = torch.optim.Adam(
            self.parameters(), self.options.lr, eps=self._eps, fused=True
        )

    @classmethod
    def check_config(cls, config: Config) -> None:
        belief = config.belief
        if belief.update_trajectories > belief.kept_trajectories:
            raise ConfigError(
                f"update_trajectories={belief.update_trajectories} exceeds kept_trajectories="
                f"{belief.kept_trajectories}"
            )
        check_steps(
            kept_trajectories=belief.kept_trajectories,
            max_ep_len=config.env.max_ep_len,
            episodes_per_task=config.rollout.episodes_per_task,
        )

    # What is believed.

    def inputs(self, standardised: Tensor) -> Tensor:
        """What the encoders read of transitions ``[T, B, A, F]``: ``[G, T, B, inputs]``."""
        if self.joint:
            return standardised.flatten(2).unsqueeze(0)
        return standardised.permute(2, 0, 1, 3)

    def beliefs(self, standardised: Tensor, first: Tensor) -> Gaussian:
        """What is believed before each transition, when its action is chosen: ``[G, T, B, D]``.

        Args:
            standardised: ``[T, B, A, F]``.
            first: ``[T, B]`` bool, everything before a transition is forgotten.
        """
        encoder = self.encoder
        state = encoder.initial_state(first.shape[1])
        after, _ = encoder(self.inputs(standardised), state, first)
        before = torch.cat([torch.zeros_like(after[:, :1]), after[:, :-1]], 1)
        return encoder.read_out(before * (~first)[None, :, :, None])

    def actor_latent(self, tasks: np.ndarray, steps: int) -> BeliefStream:
        return BeliefStream(self, len(tasks))

    def critic_latent(self, tasks: np.ndarray, rollout: Rollout) -> CriticLatent:
        return CriticLatent.same_as_actors(rollout)

    # Training.

    def elbo(self, transitions: Tensor, first: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss on trajectories, and its metrics.

        Args:
            transitions: ``[T, B, A, F]``, standardised.
            first: ``[T, B]`` bool, a belief begins anew before a transition.
        """
        raise NotImplementedError

    def add_rollout(self, rollout: Rollout, tasks: np.ndarray) -> None:
        transitions = self.transitions(rollout)
        require_finite("transitions", transitions.sum(), {"transitions": transitions})
        if self.options.normalize_transitions:
            self.moments.update(transitions)
        begins = rollout.episode_start[:-1].clone()
        if not self.forgets:
            begins[1:] = False
        column = begins[:, :, None, None].expand(-1, -1, self.agents, 1).to(transitions.dtype)
        trajectories = torch.cat([transitions, column], -1)
        for environment in range(trajectories.shape[1]):
            self.kept.add(0, trajectories[:, environment])

    def update(self) -> dict[str, Any]:
        found: dict[str, list[Tensor]] = {}
        for _ in range(self.options.ae_updates_per_iter):
            for name, value in self._update_once().items():
                found.setdefault(name, []).append(value.detach())
        return {name: float(torch.stack(values).mean()) for name, values in found.items()}

    def trajectories(self) -> tuple[Tensor, Tensor]:
        """Standardised transitions ``[T, B, A, F]`` of kept trajectories, and where they begin."""
        held = int(self.kept.sizes)
        count = min(held, self.belief.update_trajectories)
        which = torch.randperm(held, generator=self.draws)[:count].to(self.device)
        drawn = self.kept.data[0, which].transpose(0, 1)
        return self.moments.standardise(drawn[..., :-1]), drawn[:, :, 0, -1] > 0

    def _update_once(self) -> dict[str, Tensor]:
        transitions, first = self.trajectories()
        loss, metrics = self.elbo(transitions, first)
        require_finite("loss/belief", loss, {"transitions": transitions})
        self.optimiser.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters(), self.max_norm)
        require_finite("grad_norm/encoder", norm, {"transitions": transitions})
        self.optimiser.step()
        return metrics | {"loss/belief": loss, "grad_norm/encoder": norm}

    def buffers_state(self) -> dict[str, Any]:
        return {"kept": self.kept.state_dict()} if int(self.kept.added) else {}

    def load_buffers_state(self, state: dict[str, Any]) -> None:
        self.kept.load_state_dict(state["kept"])


class BeliefStream:
    """Beliefs of the agents in N environments, step by step; a `LatentStream`.

    Args:
        inference: the algorithm, whose encoder forms them.
        num_envs: N.
    """

    def __init__(self, inference: BeliefInference, num_envs: int) -> None:
        self.inference = inference
        self.state = inference.encoder.initial_state(num_envs)
        self.features = torch.zeros_like(self.state[:, :, 0])
        self.resume = torch.zeros(1, num_envs, dtype=torch.bool, device=self.state.device)

    @torch.no_grad()
    def current(self) -> Tensor:
        latent = belief_latent(self.inference.encoder.read_out(self.features)).transpose(0, 1)
        return latent.expand(-1, self.inference.agents, -1)

    @torch.no_grad()
    def update(self, step: Step) -> None:
        inference = self.inference
        rows = inference.transitions.join(*step[:4])
        x = inference.inputs(inference.moments.standardise(rows.unsqueeze(0)))
        features, self.state = inference.encoder(x, self.state, self.resume)
        self.features = features[:, 0]
        if inference.forgets:
            kept = (~step.done)[None, :, None]
            self.features, self.state = self.features * kept, self.state * kept.unsqueeze(-1)
