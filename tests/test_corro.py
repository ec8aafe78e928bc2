"""CORRO: made-up transitions, the contrast with them, and who trains what."""

from typing import Any

import numpy as np
import pytest
import torch
from learning_helpers import paid_learner

from mg2l.algorithms.corro.algorithm import CORRO
from mg2l.experience.replay import Context
from mg2l.training.learner import Learner


def corro(**values: Any) -> tuple[Learner, CORRO]:
    learner = paid_learner("corro", **{"n_init_updates": 0, "update_contexts": 32, **values})
    learner.prepare()
    assert isinstance(learner.inference, CORRO)
    return learner, learner.inference


def test_it_generates_what_other_tasks_would_have_paid_and_separates_it():
    _, inference = corro(lr=1e-2, generated_negatives=7)
    first = inference.update()
    for _ in range(60):
        last = inference.update()
    assert last["corro/generator"] < first["corro/generator"]
    assert last["corro/bound"] > first["corro/bound"] + 0.2
    assert last["corro/accuracy"] > 1.3 / 8
    drawn = inference.moments()[0].standardise(inference.contexts(torch.tensor([0])).gather())
    made_up = inference.generator.generate(drawn, 20)
    given = inference.generator.given
    assert torch.equal(
        made_up[..., :given], drawn.unsqueeze(-2)[..., :given].expand_as(made_up[..., :given])
    )
    rewards = made_up[..., given]
    assert (rewards > 0.3).any()
    assert (rewards < -0.3).any()  # task 0 never pays that
    codes = inference.codes(inference.contexts(torch.tensor([0, 1])))
    unit = torch.nn.functional.normalize(codes, dim=-1).mean((1, 2))
    assert (unit[0] - unit[1]).norm() > 0.3


def test_the_generator_is_trained_before_the_contrast():
    """What it makes up is hard to recognise from the first contrast on."""
    found = {}
    for lead in (0, 200):
        _, inference = corro(lr=1e-2, n_init_updates=1, generator_lead=lead)
        found[lead] = float(inference.loss(measure_gap=False)[1]["corro/generator"].detach())
    assert found[200] < 0.7 * found[0]


def test_the_contrast_trains_codes_and_the_value_loss_the_attention():
    learner, inference = corro()
    loss, _, _ = inference.loss(measure_gap=False)
    inference.optimiser.zero_grad()
    loss.backward()
    assert all(p.grad is None for p in inference.attention.parameters())
    assert any(bool(p.grad is not None and p.grad.any()) for p in inference.codes.parameters())
    before = {name: p.detach().clone() for name, p in inference.named_parameters()}
    tasks = learner.draw_tasks()
    metrics = learner.update_policy(learner.collect(tasks), tasks)
    assert metrics["grad_norm/encoder_from_critic"] > 0
    moved = {n for n, p in inference.named_parameters() if not torch.equal(before[n], p)}
    assert moved
    assert all(name.startswith("attention.") for name in moved)


def test_an_agent_infers_from_its_own_transitions_alone():
    _, inference = corro()
    rows = inference.contexts(torch.tensor([0, 1])).gather().clone()
    before = inference.infer(Context(rows))
    rows[:, :, 1] += 1
    after = inference.infer(Context(rows))
    assert torch.equal(before.local.mean[:, 0], after.local.mean[:, 0])
    assert not torch.equal(before.local.mean[:, 1], after.local.mean[:, 1])
    assert not np.array_equal(before.task.mean.detach(), after.task.mean.detach())


def test_a_context_holds_a_positive():
    with pytest.raises(ValueError, match="update_transitions of at least 2, got 1"):
        corro(update_transitions=1)
