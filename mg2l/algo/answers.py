"""What a learner itself computes at meta-test, to compare the networks of single agents with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mg2l.algo.belief import BeliefInference, Follower
from mg2l.algo.context import ContextInference
from mg2l.algo.distributions import CategoricalHead
from mg2l.algo.learner import Learner
from mg2l.algo.meta_test import MetaTest
from mg2l.algo.rollout import Rollout
from mg2l.replay import Context

TASKS, EPISODES = 4, 2
"""Size of the meta-test: the last tasks, and episodes of each."""

ROWS = 256
"""Observations compared at most."""

STEPS = 8
"""Steps that a belief is followed for."""


@dataclass(frozen=True)
class Answer:
    """Inputs of a network by name, and what it must return."""

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
            rollout = test.play(0)
            self._policies = _of_policies(learner, rollout)
            self._inferences: list[Answer] = []
            if isinstance(inference, ContextInference):
                with learner.apart(0):
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


def _of_policies(learner: Learner, rollout: Rollout) -> Answer:
    actor = learner.actor

    def rows(values: Tensor) -> Tensor:
        """``[T, N, A, *]`` as ``[A, B, *]``."""
        return values.flatten(0, 1).transpose(0, 1)[:, :ROWS]

    inputs = {"observation": rows(rollout.observations[:-1])}
    first = None
    if rollout.task is not None:
        inputs["told"] = rows(rollout.task)
    if rollout.states is not None:
        inputs["state"] = rows(rollout.states.transpose(1, 2))
        shape = (1, inputs["state"].shape[1])
        first = torch.zeros(shape, dtype=torch.bool, device=learner.device)
    joined = actor.body.inputs(inputs["observation"], inputs.get("told"))
    features, state = actor.body(joined, inputs.get("state"), first)
    memory = () if state is None else (state,)
    if isinstance(actor.head, CategoricalHead):
        return Answer(inputs, (actor.head.logits(features), *memory))
    mean = actor.head.mean(features)
    return Answer(inputs, (mean, actor.head.log_std.exp().expand_as(mean), *memory))


def _of_contexts(inference: ContextInference, experience: Tensor) -> list[Answer]:
    """Contexts of one and of several transitions, drawn from ``experience`` ``[N, S, A, F]``."""
    found = []
    count, held = experience.shape[:2]
    whole = inference.options.ae_batch_size
    generator = torch.Generator().manual_seed(0)
    for batch, length in ((1, 1), (2, min(7, whole)), (1, whole), (count, whole)):
        index = torch.randint(held, (batch, length, 1, 1), generator=generator)
        index = index.expand(-1, -1, *experience.shape[2:]).to(experience.device)
        context = experience[:batch].gather(1, index)
        local = inference.infer(Context(context)).local
        z = (local.mean.transpose(0, 1), local.std.transpose(0, 1))
        found.append(Answer({"context": context.movedim(2, 0)}, z))
    return found


def _of_beliefs(inference: BeliefInference, rollout: Rollout) -> list[Answer]:
    found = []
    steps, count = rollout.rewards.shape[:2]
    follower = Follower(inference, count)
    over = torch.zeros(count, dtype=torch.bool, device=rollout.rewards.device)
    for t in range(min(steps, STEPS)):
        lived = (
            rollout.observations[t],
            rollout.actions[t],
            rollout.rewards[t],
            rollout.final_observations[t],
        )
        rows, before = inference.transitions.join(*lived).transpose(0, 1), follower.state
        follower.see(*lived, over)
        outputs = (follower.tell().transpose(0, 1), follower.state)
        found.append(Answer({"transition": rows, "state": before}, outputs))
    return found
