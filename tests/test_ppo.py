"""PPO: its losses and normalisers, and what each step moves."""

import copy
import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from method_helpers import KINDS, known_learner, prepared, tiny_learner
from torch import nn

from mg2l.nn.adam import clip_grad_norm_per_agent
from mg2l.nn.distributions import GaussianHead
from mg2l.nn.normaliser import PopArt, ValueNorm
from mg2l.nn.stacked import StackedLinear
from mg2l.ops.backend import NATIVE
from mg2l.training.batch import Batch, weights_of
from mg2l.training.ppo import PPO

# The policy loss.


def test_the_surrogate_and_its_metrics_by_hand():
    learner = known_learner(mortal=True, entropy_coef=0.0)
    batch, _ = prepared(learner)
    torch.manual_seed(0)
    shift = 0.3 * torch.randn_like(batch.log_probs)
    moved = dataclasses.replace(batch, log_probs=batch.log_probs - shift)
    found = learner.ppo.actor_gradients(moved)
    ratio, clip = shift.exp(), learner.config.ppo.clip_param
    losses, kls, clips = [], [], []
    assert batch.active is not None
    for a in range(2):
        rows = [(t, n) for t in range(10) for n in range(4) if batch.active[a, t, n]]
        parts = []
        for t, n in rows:
            r, advantage = ratio[a, t, n], batch.advantages[a, t, n]
            parts.append(min(r * advantage, r.clamp(1 - clip, 1 + clip) * advantage))
        losses.append(-torch.stack(parts).mean())
        kls.append(torch.stack([ratio[a, t, n] - 1 - shift[a, t, n] for t, n in rows]).mean())
        clips.append(np.mean([abs(float(ratio[a, t, n]) - 1) > clip for t, n in rows]))
    torch.testing.assert_close(found["loss/policy"], torch.stack(losses), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["kl"], torch.stack(kls), rtol=1e-3, atol=1e-5)
    assert found["clip_fraction"].tolist() == pytest.approx(clips)


def test_the_loss_does_not_grow_with_the_action_dimension():
    """The same ratio and advantage, the same loss and the same step along the mean."""
    losses = []
    for size in (1, 6):
        learner = tiny_learner("mappo", entropy_coef=0.0)
        batch, _ = prepared(learner)
        head = learner.actor.head
        mean = StackedLinear(2, 16, size, 1.0)
        head.mean, head.log_std = mean, nn.Parameter(torch.zeros(2, 1, size))
        actions = torch.randn(2, 10, 4, size)
        with torch.no_grad():
            rows = batch.actor_inputs.flatten(1, 2)
            log_probs, _ = learner.actor.evaluate(rows, actions.flatten(1, 2), None, None, None)
        fixed = torch.Generator().manual_seed(0)
        shift = 0.3 * torch.randn(2, 40, generator=fixed)
        advantages = torch.randn(2, 10, 4, generator=fixed)
        batch = dataclasses.replace(
            batch,
            actions=actions,
            log_probs=(log_probs - shift).view(2, 10, 4),
            advantages=advantages,
        )
        losses.append(float(learner.ppo.actor_gradients(batch)["loss/policy"].mean()))
    assert losses[0] != 0
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_entropy_bonus_widens_policies():
    learner = tiny_learner("mappo", entropy_coef=1.0)
    batch, _ = prepared(learner)
    still = dataclasses.replace(batch, advantages=torch.zeros_like(batch.advantages))
    learner.ppo.actor_gradients(still)
    learner.ppo.start_step(learner.ppo.trained_actor)()
    assert isinstance(learner.actor.head, GaussianHead)
    assert bool((learner.actor.head.log_std > 0).all())


def test_the_dead_are_left_out_of_both_losses():
    """Whatever is written into the rows of dead agents, nothing comes of it."""
    results = []
    for junk in (False, True):
        learner = known_learner(mortal=True)
        batch, critic_latent = prepared(learner)
        assert batch.active is not None
        dead = ~batch.active
        assert 0 < dead.sum() < dead.numel()
        if junk:
            batch.advantages[dead] = 50.0
            batch.returns[dead] = -70.0
        learner.ppo.update(batch, critic_latent)
        results.append([p.detach().clone() for m in (learner.actor, learner.critic)
                        for p in m.parameters()])  # fmt: skip
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)
    learner = known_learner(
        mortal=True, use_policy_active_masks=False, use_value_active_masks=False
    )
    batch, critic_latent = prepared(learner)
    batch.advantages[dead], batch.returns[dead] = 50.0, -70.0
    learner.ppo.update(batch, critic_latent)
    assert not torch.equal(results[0][0], next(learner.actor.parameters()))


def test_weights_of_rows_make_means_of_agents():
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    keep = torch.tensor([[True, False, True, False], [False, False, False, False]])
    every, kept = weights_of(4, None, None), weights_of(4, keep, None)
    torch.testing.assert_close((x * every).sum(1), torch.tensor([2.5, 6.5]))
    torch.testing.assert_close((x * kept).sum(1), torch.tensor([2.0, 0.0]))
    part = weights_of(8, keep[:, :2], torch.tensor([2, 0]))  # this process has half of the rows
    torch.testing.assert_close((x[:, :2] * part).sum(1), torch.tensor([0.5, 0.0]))


# Normalisers.


def test_explained_variance_by_hand():
    """One agent has perfect values, the other the mean return; the dead do not count."""
    returns = torch.tensor([[[1.0, 2.0], [3.0, 9.0]]]).expand(2, 2, 2)
    values = returns.clone()
    values[1] = 2.0
    alive = torch.tensor([[True, True], [True, False]]).expand(2, 2, 2)
    held = SimpleNamespace(returns=returns, values=values, active=alive)
    explained_variance = vars(Batch)["explained_variance"].fget
    found = explained_variance(held)
    torch.testing.assert_close(found, torch.tensor(0.5, dtype=found.dtype))
    values[1, 0] = 3.0  # errors -2, -1, 1: variance 14/9 of 2/3
    found = explained_variance(held)
    torch.testing.assert_close(found, torch.tensor((1 + 1 - 7 / 3) / 2, dtype=found.dtype))


def moments_by_hand(batches, beta=0.99999):
    """Debiased exponential moments in float64: weighted mean and mean square of batches."""
    weights = [(1 - beta) * beta ** (len(batches) - 1 - i) for i in range(len(batches))]
    total = sum(weights)
    mean = sum(w * b.astype(np.float64).mean(1) for w, b in zip(weights, batches, strict=True))
    square = sum(
        w * (b.astype(np.float64) ** 2).mean(1) for w, b in zip(weights, batches, strict=True)
    )
    mean, square = mean / total, square / total
    return mean, np.sqrt(square - mean**2)


@pytest.mark.parametrize("beta", [0.99999, 0.5])
@pytest.mark.parametrize("groups", [3, 1])
def test_value_norm_has_numpys_moments_per_agent(groups, beta):
    rng = np.random.default_rng(0)
    scale, shift = np.array([[1.0], [5.0], [0.5]]), np.array([[0.0], [-100.0], [3.0]])
    batches = [(rng.normal(size=(3, 200)) * scale + shift * k).astype(np.float32) for k in (1, 2)]
    normaliser = ValueNorm(groups, beta)
    assert torch.equal(normaliser.mean, torch.zeros(groups).double())
    assert torch.equal(normaliser.std, torch.ones(groups).double())
    for batch in batches:
        targets = torch.as_tensor(batch)
        assert normaliser.update(targets, targets) is targets
    mean, std = moments_by_hand([b.reshape(groups, -1) for b in batches], beta)
    np.testing.assert_allclose(normaliser.mean, mean, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(normaliser.std, std, rtol=1e-3)
    targets = torch.as_tensor(batches[0])
    wanted = (batches[0].reshape(groups, -1) - mean[:, None]) / std[:, None]
    np.testing.assert_allclose(
        normaliser.normalise(targets), wanted.reshape(3, -1), rtol=1e-2, atol=1e-3
    )
    # Strides as they come out of a rollout.
    strided = torch.as_tensor(batches[0]).t().contiguous().t()
    torch.testing.assert_close(normaliser.normalise(strided), normaliser.normalise(targets))


def test_targets_that_never_change_do_not_blow_up():
    normaliser = ValueNorm(2)
    targets = torch.tensor([[5.0, 5.0], [0.0, 0.0]])
    normaliser.update(targets, targets)
    assert not normaliser.normalise(targets).any()
    torch.testing.assert_close(normaliser.std, torch.full((2,), 1e-4).double())


@pytest.mark.parametrize("groups", [2, 1])
def test_popart_keeps_what_the_critic_says(groups):
    torch.manual_seed(0)
    layer = StackedLinear(groups, 5, 1, 1.0)
    normaliser = PopArt(groups, layer, beta=0.9)
    features = torch.randn(2, 30, 5)
    for k in range(4):
        mean, std = normaliser.mean.clone(), normaliser.std.clone()
        said = layer(features).squeeze(-1).detach()
        real = said * std[:, None].float() + mean[:, None].float()
        targets = torch.randn(2, 30) * (k + 1) + torch.tensor([[40.0], [-7.0]]) * k
        predictions = normaliser.update(targets, said)
        assert not torch.allclose(normaliser.std, std)
        now = layer(features).squeeze(-1).detach()
        again = now * normaliser.std[:, None].float() + normaliser.mean[:, None].float()
        torch.testing.assert_close(again, real, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(predictions, now, rtol=1e-4, atol=1e-4)


def test_the_output_layer_of_popart_is_the_critics_own():
    critic = tiny_learner("mappo", use_popart=True, use_valuenorm=False).critic
    assert isinstance(critic.normaliser, PopArt)
    before = critic.value.weight.clone()
    rows = torch.randn(len(before), 9)
    critic.normaliser.update(10 * rows, rows)
    assert not torch.equal(critic.value.weight, before)
    assert sum(p is critic.value.weight for p in critic.parameters()) == 1


# Gradients.


def test_clipping_per_agent_is_a_loop():
    torch.manual_seed(0)
    shapes = [(3, 4, 2), (3, 4), (3, 1, 5)]
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    unused = nn.Parameter(torch.zeros(3, 2))
    size = torch.tensor([1e6, 0.1, 3.0])
    before = [torch.randn(shape) * size.view(-1, *[1] * (len(shape) - 1)) for shape in shapes]
    for p, gradient in zip(parameters, before, strict=True):
        p.grad = gradient.clone()
    norms = clip_grad_norm_per_agent([*parameters, unused], 2.0, NATIVE)
    for agent in range(3):
        plain = [nn.Parameter(torch.zeros(shape[1:])) for shape in shapes]
        for p, gradient in zip(plain, before, strict=True):
            p.grad = gradient[agent].clone()
        torch.testing.assert_close(norms[agent], nn.utils.clip_grad_norm_(plain, 2.0))
        for p, one in zip(parameters, plain, strict=True):
            assert p.grad is not None
            torch.testing.assert_close(p.grad[agent], one.grad)
    for p, gradient in zip(parameters, before, strict=True):
        assert p.grad is not None
        assert torch.equal(p.grad[1], gradient[1])  # the small one, beside the huge one
    assert unused.grad is None


@pytest.mark.parametrize("limit", [True, False])
def test_an_agents_huge_loss_leaves_the_others_update_as_it_was(limit):
    updates = []
    for size in (1.0, 1e6):
        learner = tiny_learner("mappo", ppo_epoch=1, use_max_grad_norm=limit)
        batch, critic_latent = prepared(learner)
        batch.advantages[0] *= size
        batch.returns[0] *= size
        learner.ppo.update(batch, critic_latent)
        updates.append([p[1].detach().clone() for p in learner.actor.parameters()]
                       + [p[1].detach().clone() for p in learner.critic.parameters()])  # fmt: skip
    for one, two in zip(*updates, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize(
    ("options", "limit"),
    [({}, 10.0), ({"max_grad_norm": 0.5}, 0.5), ({"use_max_grad_norm": False}, math.inf)],
)
def test_the_limit_of_gradient_norms(options, limit):
    assert tiny_learner("mappo", **options).ppo.max_norm == limit


# Whole updates.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [False, True])
def test_an_update_moves_every_parameter_and_stays_finite(kind, share):
    learner = known_learner("oracle", share_policy=share, num_mini_batch=2, **KINDS[kind])
    before = copy.deepcopy([*learner.actor.parameters(), *learner.critic.parameters()])
    batch, critic_latent = prepared(learner)
    metrics = learner.ppo.update(batch, critic_latent)
    assert all(value.isfinite().all() for value in metrics.values())
    for p, old in zip([*learner.actor.parameters(), *learner.critic.parameters()], before,
                      strict=True):  # fmt: skip
        assert p.isfinite().all()
        assert (p != old).flatten(1).any(1).all()


def test_values_approach_returns():
    learner = tiny_learner("oracle", critic_lr=5e-3, ppo_epoch=60, use_clipped_value_loss=False)
    batch, critic_latent = prepared(learner)
    first, last = (float(learner.ppo.update(batch, critic_latent)["loss/value"]) for _ in range(2))
    assert last < 0.5 * first


def test_gradients_that_are_not_finite_are_named(monkeypatch):
    learner = tiny_learner("mappo", ppo_epoch=1)
    batch, critic_latent = prepared(learner)
    original = PPO.start_step

    def poisoned(self, *trained):
        step = original(self, *trained)
        return lambda: {name: norm * float("inf") for name, norm in step().items()}

    monkeypatch.setattr(PPO, "start_step", poisoned)
    with pytest.raises(RuntimeError, match="grad_norm/actor is inf"):
        learner.ppo.update(batch, critic_latent)


@pytest.mark.parametrize("term", ["loss/policy", "loss/value"])
def test_losses_that_are_not_finite_are_named_with_their_batch(term):
    learner = tiny_learner("mappo")
    batch, critic_latent = prepared(learner)
    poisoned = batch.advantages if term == "loss/policy" else batch.returns
    poisoned[0, 3, 1] = float("nan")
    with pytest.raises(RuntimeError, match=term) as caught:
        learner.ppo.update(batch, critic_latent)
    held = caught.value.batch  # type: ignore[attr-defined]
    assert set(held) >= {field.name for field in dataclasses.fields(Batch)} - {
        "actor_states", "critic_states", "action_mask", "active", "rows", "living", "everyone",
        "held_latents", "held_by",
    }  # fmt: skip


def test_counts_of_data_parallel_training_are_not_held_with_a_loss():
    learner = tiny_learner("mappo")
    batch, _ = prepared(learner)
    batch.advantages[0, 3, 1] = float("nan")
    with pytest.raises(RuntimeError, match="loss/policy") as caught:
        learner.ppo.actor_gradients(dataclasses.replace(batch, rows=40))
    assert "rows" not in caught.value.batch  # type: ignore[attr-defined]
