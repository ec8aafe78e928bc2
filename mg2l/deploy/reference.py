"""Reference outputs of a learner's networks at meta-test, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mg2l.algorithms.base import TaskInference
from mg2l.evaluation.meta_test import MetaTest
from mg2l.experience.replay import Context
from mg2l.experience.rollout import Rollout
from mg2l.nn.policy import Actor
from mg2l.training.learner import Learner

TASKS, EPISODES = 4, 2
"""Size of the meta-test: the last tasks, and episodes of each."""

ROWS = 256
"""Observations compared at most."""

STEPS = 8
"""Steps that a belief is followed for, and a memory that keeps no states."""


@dataclass(frozen=True)
class Reference:
    """Inputs of a network by name, and in float64 the outputs that it must have."""

    inputs: dict[str, Tensor]
    outputs: tuple[Tensor, ...]

    def slice(self, agent: int, rows: int | None = None) -> Reference:
        """One agent's part, or its first rows, of a reference for all: tensors ``[A, B, ...]``."""
        return Reference(
            {name: value[agent, :rows] for name, value in self.inputs.items()},
            tuple(value[agent, :rows] for value in self.outputs),
        )


class References:
    """Reference outputs on the observations of a small meta-test under the prior.

    Args:
        learner: the learner, which is not changed.
    """

    @torch.no_grad()
    def __init__(self, learner: Learner) -> None:
        inference = learner.inference
        test = MetaTest(learner, range(len(learner.env.tasks))[-TASKS:], EPISODES, seed=0)
        try:
            rollout = test.play(0).rollout
            self._policies, self._head = _of_policies(learner, rollout), learner.actor.head
            self._inferences: list[Reference] = []
            if inference.latent_source == "context":
                with learner.isolated_rng(0):
                    experience = test.explore(1)
                assert experience is not None
                self._inferences = _of_contexts(inference, experience)
            elif inference.latent_source == "belief":
                self._inferences = _of_beliefs(inference, rollout)
        finally:
            test.close()

    def policy(self, agent: int) -> list[Reference]:
        """References of an agent's policy: batches ``[B, ...]`` of one, two and many."""
        references = []
        for rows in (1, 2, None):
            one = self._policies.slice(agent, rows)
            count = len(self._head.outputs)
            raw = self._head.own_raw(agent, one.outputs[:count])
            references.append(Reference(one.inputs, (*raw, *one.outputs[count:])))
        return references

    def inference(self, agent: int) -> list[Reference]:
        """References of an agent's inference network: batches of contexts, or step by step."""
        return [reference.slice(agent) for reference in self._inferences]


class _InFloat64(nn.Module):
    """A function of networks, in float64.

    Args:
        networks: stay as they are.
        function: function of tensors; calls the networks.
    """

    def __init__(self, networks: nn.Module, function: Callable[..., tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.networks, self.function = networks, function

    def forward(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        return self.function(*inputs)

    def reference(self, **inputs: Tensor) -> Reference:
        """Inputs in the order of the function's arguments."""
        exact = {
            name: value.double() if value.is_floating_point() else value
            for name, value in (*self.named_parameters(), *self.named_buffers())
        }
        wide = tuple(value.double() for value in inputs.values())
        # A module may be part of two, and would be changed twice where weights are tied.
        outputs: tuple[Tensor, ...] = functional_call(self, exact, wide, tie_weights=False)
        return Reference(inputs, outputs)


def _of_policies(learner: Learner, rollout: Rollout) -> Reference:
    actor = learner.actor

    def rows(values: Tensor) -> Tensor:
        """``[T, N, A, *]`` as ``[A, B, *]``."""
        return values.flatten(0, 1).transpose(0, 1)[:, :ROWS]

    inputs = {"observation": rows(rollout.observations[:-1])}
    if rollout.latent is not None:
        inputs["latent"] = rows(rollout.latent)
    if actor.body.memory is not None:
        states = rollout.states
        if states is None:
            states = _first_states(actor, rollout)
        inputs["state"] = rows(states.transpose(1, 2))
        inputs = {name: x[:, : inputs["state"].shape[1]] for name, x in inputs.items()}

    def act(*tensors: Tensor) -> tuple[Tensor, ...]:
        by_name = dict(zip(inputs, tensors, strict=True))
        observations, state = by_name["observation"], by_name.get("state")
        reset = (
            None
            if state is None
            else observations.new_zeros((1, observations.shape[1]), dtype=torch.bool)
        )
        features, state = actor.body(
            actor.body.inputs(observations, by_name.get("latent")), state, reset
        )
        memory = () if state is None else (state,)
        return (*actor.head.raw(features), *memory)

    return _InFloat64(actor, act).reference(**inputs)


def _first_states(actor: Actor, rollout: Rollout) -> Tensor:
    """States of full size before the first steps of a rollout, ``[T, A, N, *]``."""
    memory = actor.body.memory
    assert memory is not None
    steps, envs, agents = rollout.rewards.shape
    state = rollout.observations.new_zeros(agents, envs, *memory.state_shape)
    reset = torch.zeros(1, envs, dtype=torch.bool, device=state.device)
    states = []
    for t in range(min(steps, STEPS)):
        states.append(state)
        latent = None if rollout.latent is None else rollout.latent[t].transpose(0, 1)
        inputs = actor.body.inputs(rollout.observations[t].transpose(0, 1), latent)
        _, after = actor.body(inputs, state, reset)
        assert after is not None
        state = after
    return torch.stack(states)


def _of_contexts(inference: TaskInference, experience: Tensor) -> list[Reference]:
    """Contexts of one and of several transitions, drawn from ``experience`` ``[N, S, A, F]``."""

    def infer(context: Tensor) -> tuple[Tensor, ...]:
        local = inference.infer(Context(context.movedim(0, 2))).local
        return local.mean.transpose(0, 1), local.std.transpose(0, 1)

    exact, references = _InFloat64(inference, infer), []
    count, held = experience.shape[:2]
    whole = inference.context_length
    generator = torch.Generator().manual_seed(0)
    for batch, length in ((1, 1), (2, min(7, whole)), (1, whole), (count, whole)):
        index = torch.randint(held, (batch, length, 1, 1), generator=generator)
        index = index.expand(-1, -1, *experience.shape[2:]).to(experience.device)
        context = experience[:batch].gather(1, index)
        references.append(exact.reference(context=context.movedim(2, 0)))
    return references


def _of_beliefs(inference: TaskInference, rollout: Rollout) -> list[Reference]:
    exact, references = _InFloat64(inference, inference.belief_step), []
    state = inference.initial_belief_state(rollout.rewards.shape[1])
    for t in range(min(len(rollout.rewards), STEPS)):
        transition = inference.transitions.join(
            rollout.observations[t],
            rollout.actions[t],
            rollout.rewards[t],
            rollout.final_observations[t],
        ).transpose(0, 1)
        references.append(exact.reference(transition=transition, state=state))
        state = references[-1].outputs[1].float()
    return references
