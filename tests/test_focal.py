"""FOCAL: the distance metric loss, and embeddings that it pulls together and pushes apart."""

import pytest
import torch
from learning_helpers import paid_learner

from mg2l.algorithms.focal.algorithm import FOCAL, distance_metric_loss
from mg2l.algorithms.focal.config import FOCALConfig
from mg2l.experience.replay import Context


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_the_loss_is_a_loop_over_pairs(power):
    """Attraction and repulsion are means of their own."""
    config = FOCALConfig(distance_power=power, distance_floor=0.2, distance_weight=0.7)
    z, tasks = torch.randn(2, 6, 3), torch.tensor([0, 1, 0, 2, 1, 0])
    within, between, repulsions = [], [], []
    for agent in range(2):
        for i in range(6):
            for j in range(6):
                square = (z[agent, i] - z[agent, j]).square().sum()
                if i == j:
                    continue
                if tasks[i] == tasks[j]:
                    within.append(square)
                else:
                    repulsions.append(0.7 / (square ** (power / 2) + 0.2))
                    between.append(square)
    found = distance_metric_loss(z, tasks, config)
    means = [torch.stack(values).mean() for values in (within, repulsions, between)]
    torch.testing.assert_close(found[0], means[0] + means[1])
    torch.testing.assert_close(found[1:], (means[0], means[2]))


def test_gradients_are_finite_where_contexts_coincide():
    z = torch.zeros(4, 3, requires_grad=True)
    for power in (1.0, 2.0):
        config = FOCALConfig(distance_power=power)
        loss, _, _ = distance_metric_loss(z, torch.tensor([0, 0, 1, 1]), config)
        (gradient,) = torch.autograd.grad(loss, z)
        assert torch.isfinite(gradient).all()


def test_the_loss_falls_and_agents_recognise_the_task_alone(monkeypatch):
    learner = paid_learner("focal", n_init_updates=0, update_contexts=32, lr=1e-2)
    learner.prepare()
    inference = learner.inference
    assert isinstance(inference, FOCAL)
    first = inference.update()
    for _ in range(30):
        last = inference.update()
    assert last["focal/loss"] < 0.3 * first["focal/loss"]
    assert last["focal/between"] > 10 * last["focal/within"]
    ids = torch.arange(2).repeat_interleave(8)
    context = inference.contexts(ids)
    assert inference.recognise(context, ids) == {"accuracy/global": 1.0, "accuracy/local": 1.0}
    rows = context.gather().clone()
    before = inference.infer(Context(rows)).local.mean
    rows[:, :, 1] += 1
    after = inference.infer(Context(rows)).local.mean
    assert torch.equal(before[:, 0], after[:, 0])
    assert not torch.equal(before[:, 1], after[:, 1])
