"""MATE: embeddings step by step, from whom, of whom, and what they learn."""

from typing import Any

import numpy as np
import pytest
import torch
from learning_helpers import iterate, paid_learner
from method_helpers import collect

from mg2l.algorithms.belief import BeliefStream
from mg2l.algorithms.mate import MATE
from mg2l.estimators.gaussian import kl_to_standard
from mg2l.experience.rollout import Step
from mg2l.training.learner import Learner

KINDS = ("ind", "cen", "mix")


def mate(patch: pytest.MonkeyPatch, kind: str, **values: Any) -> tuple[Learner, MATE]:
    learner = paid_learner(patch, f"mate-{kind}", **values)
    assert isinstance(learner.inference, MATE)
    return learner, learner.inference


@pytest.mark.parametrize("reset", ["episode", "task"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_told_step_by_step_is_what_is_trained(monkeypatch, kind, reset):
    """Episodes end on the way, at different steps in different environments."""
    learner, inference = mate(monkeypatch, kind, ends_at=3, belief_reset=reset)
    iterate(learner)  # some training, and moments
    tasks = learner.draw_tasks()
    rollout, _ = collect(learner)
    assert rollout.latent is not None
    transitions = inference.moments.standardise(inference.transitions(rollout))
    inference.add_rollout(rollout, tasks)
    first = inference.kept.data[0].transpose(0, 1)[:, 8:16, 0, -1] > 0
    assert (int(first[1:].sum()) > 0) == (reset == "episode")
    q = inference.beliefs(transitions, first)
    wanted = torch.cat([q.mean, 2 * q.std.log()], -1).permute(1, 2, 0, 3)
    torch.testing.assert_close(
        rollout.latent, wanted.expand_as(rollout.latent), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("kind", KINDS)
def test_whose_transitions_an_embedding_is_made_of(monkeypatch, kind):
    _, inference = mate(monkeypatch, kind)
    told = []
    for other in (2.0, -1.0):
        stream = BeliefStream(inference, 3)
        before = stream.current()
        observations = torch.ones(3, 2, 4)
        observations[:, 1] = other
        step = (torch.zeros(3, 2, 2), torch.zeros(3, 2), observations, torch.zeros(3) > 0)
        stream.update(Step(observations, *step))
        told.append(stream.current())
        assert not torch.equal(told[-1], before)
    assert torch.equal(told[0][:, 0], told[1][:, 0]) == (kind != "cen")
    assert not torch.equal(told[0][:, 1], told[1][:, 1])
    if kind == "cen":
        assert torch.equal(told[0][:, 0], told[0][:, 1])


def test_an_episodes_end_is_a_new_beginning(monkeypatch):
    _, inference = mate(monkeypatch, "ind")
    stream = BeliefStream(inference, 2)
    initial = stream.current()
    rows = torch.ones(2, 2, 4)
    done = torch.tensor([True, False])
    stream.update(Step(rows, torch.ones(2, 2, 2), torch.ones(2, 2), rows, done))
    assert torch.equal(stream.current()[0], initial[0])
    assert not torch.equal(stream.current()[1], initial[1])


def test_the_loss_of_the_mixture_is_an_expectation_over_agents(monkeypatch):
    learner, inference = mate(monkeypatch, "mix", kl_weight=0.5, reward_weight=2.0)
    rollout, _ = collect(learner)
    transitions, first = inference.transitions(rollout), rollout.episode_start[:-1]
    state = inference.noise.get_state()
    loss, metrics = inference.negative_elbo(transitions, first)
    inference.noise.set_state(state)
    q = inference.beliefs(transitions, first)
    z = q.sample(inference.noise)
    o, a, r, following = (part.flatten(2) for part in inference.transitions.split(transitions))
    assert inference.mixer is not None
    weights = inference.mixer(o[None])[0].softmax(-1)
    wanted = torch.zeros(())
    for agent in range(2):
        found = inference.decoder(torch.cat([o, a, z[agent]], -1)[None])[0]
        error = (found[..., :8] - following).square().mean(-1)
        error = error + 2 * (found[..., 8:] - r).square().mean(-1)
        wanted = wanted + (weights[..., agent] * error).mean()
    wanted = wanted + 0.5 * kl_to_standard(q).mean()
    torch.testing.assert_close(loss, wanted)
    assert metrics["belief/kl"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_reward_is_predicted_from_what_was_seen_before(monkeypatch, kind):
    """Which of two tasks pays is unknown at the first of ten steps, and known afterwards."""
    learner, inference = mate(
        monkeypatch, kind, lr=1e-2, ae_updates_per_iter=30, ppo_epoch=1, kl_weight=0.01,
        observation_weight=0.1, n_rollout_threads=16, belief_hidden=16, decoder_sizes_mlp=[16],
        actor_lr=1e-5,
    )  # fmt: skip
    losses = [iterate(learner) for _ in range(6)]
    assert losses[-1]["loss/belief"] < 0.7 * losses[0]["loss/belief"]
    assert losses[-1]["belief/reward_error"] < 0.3
    transitions, first = inference.trajectories()
    q = inference.beliefs(transitions, first)
    paid = transitions[0, :, 0, 4 + 2] > 0
    assert 0 < int(paid.sum()) < len(paid)
    means = q.mean.detach()[:, [0, 5]]  # before the first step, and in the middle
    apart = (means[:, :, paid].mean(2) - means[:, :, ~paid].mean(2)).norm(dim=(0, 2))
    assert apart[0] < 1e-5
    assert apart[1] > 0.3


def test_policies_do_not_train_it(monkeypatch):
    learner, inference = mate(monkeypatch, "mix", ae_updates_per_iter=0)
    before = [p.detach().clone() for p in inference.parameters()]
    iterate(learner)
    assert all(torch.equal(a, b) for a, b in zip(before, inference.parameters(), strict=True))


def test_critics_are_told_what_the_actors_were(monkeypatch):
    learner, _ = mate(monkeypatch, "ind")
    rollout, tell = collect(learner)
    told = tell()
    assert told is not None
    assert rollout.latent is not None
    assert told.shape == (11, 8, 2 * 16)
    assert np.array_equal(told[:-1].numpy(), rollout.latent.flatten(2).numpy())
