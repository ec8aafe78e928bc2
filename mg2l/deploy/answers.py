"""What a learner's networks compute at meta-test, to compare those of single agents with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mg2l.algorithms.belief import BeliefInference, belief_latent
from mg2l.algorithms.context import ContextInference
from mg2l.evaluation.meta_test import MetaTest
from mg2l.experience.replay import Context
from mg2l.experience.rollout import Rollout
from mg2l.nn.distributions import CategoricalHead
from mg2l.training.learner import Learner

TASKS, EPISODES = 4, 2
"""Size of the meta-test: the last tasks, and episodes of each."""

ROWS = 256
"""Observations compared at most."""

STEPS = 8
"""Steps that a belief is followed for."""


@dataclass(frozen=True)
class Answer:
    """Inputs of a network by name, and in float64 what it must return."""

    inputs: dict[str, Tensor]
    outputs: tuple[Tensor, ...]

    def of(self, agent: int, rows: int | None = None) -> Answer:
        """One agent's part, or its first rows, of an answer for all: tensors ``[A, B, ...]``."""
        return Answer(
            {name: value[agent, :rows] for name, value in self.inputs.items()},
            tuple(value[agent, :rows] for value in self.outputs),
        )


class Answers:
    """Answers on what agents meet in a small meta-test under the prior.

    Args:
        learner: nothing of it is changed.
    """

    @torch.no_grad()
    def __init__(self, learner: Learner) -> None:
        inference = learner.inference
        test = MetaTest(learner, range(len(learner.env.tasks))[-TASKS:], EPISODES, seed=0)
        try:
            rollout = test.play(0).rollout
            self._policies = _of_policies(learner, rollout)
            self._inferences: list[Answer] = []
            if isinstance(inference, ContextInference):
                with learner.isolated_rng(0):
                    experience = test.explore(1)
                assert experience is not None
                self._inferences = _of_contexts(inference, experience)
            elif isinstance(inference, BeliefInference):
                self._inferences = _of_beliefs(inference, rollout)
        finally:
            test.close()

    def policy(self, agent: int) -> list[Answer]:
        """Of an agent's policy: batches ``[B, ...]`` of one, two and many."""
        return [self._policies.of(agent, rows) for rows in (1, 2, None)]

    def inference(self, agent: int) -> list[Answer]:
        """Of what an agent infers the task with: batches of contexts, or step by step."""
        return [answer.of(agent) for answer in self._inferences]


class _Exactly(nn.Module):
    """A function of networks, in float64.

    Args:
        networks: stay as they are.
        function: of tensors; calls the networks.
    """

    def __init__(self, networks: nn.Module, function: Callable[..., tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.networks, self.function = networks, function

    def forward(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        return self.function(*inputs)

    def answer(self, **inputs: Tensor) -> Answer:
        """Inputs in the order of the function's arguments."""
        exact = {
            name: value.double() if value.is_floating_point() else value
            for name, value in (*self.named_parameters(), *self.named_buffers())
        }
        wide = tuple(value.double() for value in inputs.values())
        # A module may be part of two, and would be changed twice where weights are tied.
        found: tuple[Tensor, ...] = functional_call(self, exact, wide, tie_weights=False)
        return Answer(inputs, found)


def _of_policies(learner: Learner, rollout: Rollout) -> Answer:
    actor = learner.actor

    def rows(values: Tensor) -> Tensor:
        """``[T, N, A, *]`` as ``[A, B, *]``."""
        return values.flatten(0, 1).transpose(0, 1)[:, :ROWS]

    inputs = {"observation": rows(rollout.observations[:-1])}
    if rollout.latent is not None:
        inputs["told"] = rows(rollout.latent)
    if rollout.states is not None:
        inputs["state"] = rows(rollout.states.transpose(1, 2))

    def act(*given: Tensor) -> tuple[Tensor, ...]:
        by_name = dict(zip(inputs, given, strict=True))
        seen, state = by_name["observation"], by_name.get("state")
        first = None if state is None else seen.new_zeros((1, seen.shape[1]), dtype=torch.bool)
        features, state = actor.body(actor.body.inputs(seen, by_name.get("told")), state, first)
        memory = () if state is None else (state,)
        if isinstance(actor.head, CategoricalHead):
            return (actor.head.logits(features), *memory)
        mean = actor.head.mean(features)
        return (mean, actor.head.log_std.exp().expand_as(mean), *memory)

    return _Exactly(actor, act).answer(**inputs)


def _of_contexts(inference: ContextInference, experience: Tensor) -> list[Answer]:
    """Contexts of one and of several transitions, drawn from ``experience`` ``[N, S, A, F]``."""

    def infer(context: Tensor) -> tuple[Tensor, ...]:
        local = inference.infer(Context(context.movedim(0, 2))).local
        return local.mean.transpose(0, 1), local.std.transpose(0, 1)

    exactly, found = _Exactly(inference, infer), []
    count, held = experience.shape[:2]
    whole = inference.options.ae_batch_size
    generator = torch.Generator().manual_seed(0)
    for batch, length in ((1, 1), (2, min(7, whole)), (1, whole), (count, whole)):
        index = torch.randint(held, (batch, length, 1, 1), generator=generator)
        index = index.expand(-1, -1, *experience.shape[2:]).to(experience.device)
        context = experience[:batch].gather(1, index)
        found.append(exactly.answer(context=context.movedim(2, 0)))
    return found


def _of_beliefs(inference: BeliefInference, rollout: Rollout) -> list[Answer]:
    encoder = inference.encoder

    def follow(transition: Tensor, state: Tensor) -> tuple[Tensor, ...]:
        rows = inference.moments.standardise(transition.transpose(0, 1).unsqueeze(0))
        begins = state.new_zeros((1, state.shape[1]), dtype=torch.bool)
        features, state = encoder(inference.inputs(rows), state, begins)
        return belief_latent(encoder.read_out(features[:, 0])), state

    exactly, found = _Exactly(inference, follow), []
    state = encoder.initial_state(rollout.rewards.shape[1])
    for t in range(min(len(rollout.rewards), STEPS)):
        transition = inference.transitions.join(
            rollout.observations[t],
            rollout.actions[t],
            rollout.rewards[t],
            rollout.final_observations[t],
        ).transpose(0, 1)
        found.append(exactly.answer(transition=transition, state=state))
        state = found[-1].outputs[1].float()
    return found
