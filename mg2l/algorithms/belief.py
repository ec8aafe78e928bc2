"""Base of the algorithms whose agents update a belief with every transition."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mg2l.algorithms.agent import AgentNetwork, Standardise, slice_agent
from mg2l.algorithms.base import CriticLatent, LatentSource, LearnedInference
from mg2l.algorithms.config import BeliefConfig
from mg2l.algorithms.transition_encoder import TransitionMoments
from mg2l.config.algorithms import AlgorithmConfig
from mg2l.core.distributed import world
from mg2l.estimators.gaussian import STD_FLOOR, Gaussian
from mg2l.experience.finite import require_finite
from mg2l.experience.problem import ProblemSpec
from mg2l.experience.replay import ContextReplay
from mg2l.experience.rollout import Rollout, Step
from mg2l.nn.stacked import StackedGRU, StackedLinear, StackedMLP


class BeliefEncoder(nn.Module):
    """A GRU over transitions; each of its states is read out as a Gaussian.

    Args:
        groups: G encoders side by side.
        inputs: width of each one's input at a step.
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
        """The state before the first transition, ``[G, rows, 1, H]``."""
        return torch.zeros(self.groups, rows, 1, self.hidden, device=self.head.weight.device)

    def forward(self, x: Tensor, state: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``[G, T, rows, H]`` after each step, and the last state.

        Args:
            x: ``[G, T, rows, inputs]``.
            state: ``[G, rows, 1, H]``.
            reset: ``[T, rows]`` bool, everything before a step is forgotten.
        """
        hidden = self.mlp(x.flatten(1, 2)).unflatten(1, reset.shape)
        features, state = self.gru(hidden, state, reset)
        return features, state

    def read_out(self, features: Tensor) -> Gaussian:
        """``[G, *, H]`` to a Gaussian ``[G, *, D]``; zeros are the belief before anything."""
        mean, raw_std = self.head(features.flatten(1, -2)).chunk(2, -1)
        shape = (*features.shape[:-1], -1)
        return Gaussian(mean.view(shape), F.softplus(raw_std).view(shape) + STD_FLOOR)


def belief_latent(belief: Gaussian) -> Tensor:
    """The latent of a belief ``[*, D]``: its mean, and how certain it is, ``[*, 2 D]``.

    The second half is its log-variance as a fraction of that of the smallest standard deviation: 0
    for the prior ``N(0, I)``, 1 at ``STD_FLOOR``. Log-variances themselves would be several times
    as large as the policy's other inputs.
    """
    return torch.cat([belief.mean, belief.std.log() / math.log(STD_FLOOR)], -1)


class BeliefInference(LearnedInference):
    """Beliefs of actors and critics during a rollout, and training on trajectories.

    An actor's latent is what `belief_latent` makes of its belief, ``[2 D]``, a critic's those of
    all agents. Neither loss of PPO trains the encoder. A subclass defines what a belief must
    explain (`negative_elbo`).

    Args:
        spec: the run and the sizes of its environment.
        joint: one belief from the joint transitions of the team instead of one per agent.
    """

    config_class: type[AlgorithmConfig] = BeliefConfig
    options: BeliefConfig
    latent_source: LatentSource = "belief"

    def __init__(self, spec: ProblemSpec, joint: bool = False) -> None:
        super().__init__(spec)
        self.joint, options = joint, self.options
        self.forgets = options.belief_reset == "episode"
        width, steps = spec.transition, spec.config.rollout_steps
        self.actor_latent_dim = 2 * options.context_dim
        self.critic_latent_dim = self.agents * self.actor_latent_dim
        self.moments = TransitionMoments(width)
        groups, inputs = (1, self.agents * width) if joint else (self.agents, width)
        self.encoder = BeliefEncoder(groups, inputs, options.belief_hidden, options.context_dim)
        # Trajectories of all tasks alike, each with a column that marks where an episode starts.
        self.kept = ContextReplay(
            1, options.kept_trajectories * steps, steps, self.agents, width + 1, self.device
        )

    # Inference.

    def inputs(self, standardised: Tensor) -> Tensor:
        """Inputs of the encoders, from transitions ``[T, B, A, F]``: ``[G, T, B, inputs]``."""
        if self.joint:
            return standardised.flatten(2).unsqueeze(0)
        return standardised.permute(2, 0, 1, 3)

    def beliefs(self, standardised: Tensor, reset: Tensor) -> Gaussian:
        """The belief before each transition, when its action is chosen: ``[G, T, B, D]``.

        Args:
            standardised: ``[T, B, A, F]``.
            reset: ``[T, B]`` bool, everything before a transition is forgotten.
        """
        encoder = self.encoder
        state = encoder.initial_state(reset.shape[1])
        after, _ = encoder(self.inputs(standardised), state, reset)
        before = torch.cat([torch.zeros_like(after[:, :1]), after[:, :-1]], 1)
        return encoder.read_out(before * (~reset)[None, :, :, None])

    def initial_belief_state(self, rows: int) -> Tensor:
        return self.encoder.initial_state(rows)

    def belief_step(self, transition: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.moments.standardise(transition.transpose(0, 1).unsqueeze(0))
        start = state.new_zeros((1, state.shape[1]), dtype=torch.bool)
        features, state = self.encoder(self.inputs(rows), state, start)
        return belief_latent(self.encoder.read_out(features[:, 0])), state

    @property
    def decentralised(self) -> bool:
        return not self.joint

    def agent_network(self, agent: int) -> BeliefAgent:
        if self.joint:
            raise ValueError("all agents act on a belief from the joint transitions of the team")
        return BeliefAgent(self.moments, slice_agent(self.encoder, agent))

    def agent_manifest(self) -> dict[str, Any]:
        belief = {"shape": [1, self.options.belief_hidden], "reset": self.options.belief_reset}
        return {"belief": belief}

    def actor_latent(self, tasks: np.ndarray, steps: int) -> BeliefStream:
        return BeliefStream(self, len(tasks))

    def critic_latent(self, tasks: np.ndarray, rollout: Rollout) -> CriticLatent:
        return CriticLatent.same_as_actors(rollout)

    # Training.

    def negative_elbo(self, transitions: Tensor, reset: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss on trajectories, and its metrics.

        Args:
            transitions: ``[T, B, A, F]``, standardised.
            reset: ``[T, B]`` bool, a belief is reset before a transition.
        """
        raise NotImplementedError

    def add_rollout(self, rollout: Rollout, tasks: np.ndarray) -> None:
        transitions = self.transitions(rollout)
        require_finite("transitions", transitions.sum(), {"transitions": transitions})
        resets = rollout.episode_start[:-1].clone()
        if not self.forgets:
            resets[1:] = False
        column = resets[:, :, None, None].expand(-1, -1, self.agents, 1).to(transitions.dtype)
        trajectories = world.gather(torch.cat([transitions, column], -1), dim=1)
        if self.options.normalize_transitions:
            with world.local():  # all processes keep the same
                self.moments.update(trajectories[..., :-1])
        for environment in range(trajectories.shape[1]):
            self.kept.add(0, trajectories[:, environment])

    def trajectories(self) -> tuple[Tensor, Tensor]:
        """Standardised transitions ``[T, B, A, F]`` of kept trajectories, and resets ``[T, B]``.

        All processes draw the same trajectories, and each takes its own part of them.
        """
        held = int(self.kept.sizes)
        count = min(held, self.options.update_trajectories)
        which = torch.randperm(held, generator=self.draws, device=self.device)[:count]
        which = world.own(which)
        drawn = self.kept.data[0, which].transpose(0, 1)
        return self.moments.standardise(drawn[..., :-1]), drawn[:, :, 0, -1] > 0

    def loss(self, measure_gap: bool) -> tuple[Tensor, dict[str, Tensor], dict[str, Any]]:
        transitions, reset = self.trajectories()
        loss, metrics = self.negative_elbo(transitions, reset)
        return loss, metrics | {"loss/belief": loss}, {"transitions": transitions}

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
        self.no_reset = torch.zeros(1, num_envs, dtype=torch.bool, device=self.state.device)

    @torch.no_grad()
    def current(self) -> Tensor:
        latent = belief_latent(self.inference.encoder.read_out(self.features)).transpose(0, 1)
        return latent.expand(-1, self.inference.agents, -1)

    def arguments(self) -> dict[str, Any]:
        return {}

    @torch.no_grad()
    def update(self, step: Step) -> None:
        inference = self.inference
        rows = inference.transitions.join(*step[:4])
        x = inference.inputs(inference.moments.standardise(rows.unsqueeze(0)))
        features, self.state = inference.encoder(x, self.state, self.no_reset)
        self.features = features[:, 0]
        if inference.forgets:
            kept = (~step.done)[None, :, None]
            self.features, self.state = self.features * kept, self.state * kept.unsqueeze(-1)


class BeliefAgent(AgentNetwork):
    """One step of the belief ``q(z^i | transitions so far)`` of one agent.

    Args:
        moments: by which transitions are standardised.
        encoder: encoder of this agent, see `slice_agent`.
    """

    outputs = ("latent", "next_state")

    def __init__(self, moments: TransitionMoments, encoder: BeliefEncoder) -> None:
        super().__init__()
        self.standardise, self.encoder = Standardise(moments), encoder

    def forward(self, transition: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take in a transition.

        Args:
            transition: ``[B, F]``.
            state: ``[B, 1, H]`` before it; zeros at the beginning.

        Returns:
            Latent of the policy from now on, ``[B, 2 D]``, and the next state.
        """
        rows = self.standardise(transition)[None, None]
        start = torch.zeros(1, transition.shape[0], dtype=torch.bool)
        features, state = self.encoder(rows, state.unsqueeze(0), start)
        return self._latent(features[:, 0]), state[0]

    def initial_latent(self) -> Tensor:
        return self._latent(torch.zeros(1, 1, self.encoder.hidden))[0]

    def _latent(self, features: Tensor) -> Tensor:
        return belief_latent(self.encoder.read_out(features))[0]
