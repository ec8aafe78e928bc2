"""MATE: embeddings step by step, from whom, of whom, and what they learn."""

from typing import Any

import numpy as np
import pytest
import torch
from learning_helpers import iterate, paid_learner
from method_helpers import collect

from mg2l.algorithms.belief import BeliefStream, belief_latent
from mg2l.algorithms.mate.algorithm import MATE
from mg2l.estimators.gaussian import kl_to_standard
from mg2l.experience.rollout import Step
from mg2l.training.learner import Learner

KINDS = ("ind", "cen", "mix")


def mate(kind: str, **values: Any) -> tuple[Learner, MATE]:
    learner = paid_learner(f"mate-{kind}", **values)
    assert learner.actor.body.memory is not None  # actors remember, beside the embedding
    assert isinstance(learner.inference, MATE)
    return learner, learner.inference


@pytest.mark.parametrize("reset", ["episode", "task"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_latent_of_each_step_is_what_is_trained(kind, reset):
    """Episodes end on the way, at different steps in different environments."""
    learner, inference = mate(kind, ends_at=3, belief_reset=reset)
    iterate(learner)  # some training, and moments
    tasks = learner.draw_tasks()
    rollout, _ = collect(learner)
    assert rollout.latent is not None
    transitions = inference.moments.standardise(inference.transitions(rollout))
    inference.add_rollout(rollout, tasks)
    resets = inference.kept.data[0].transpose(0, 1)[:, 8:16, 0, -1] > 0
    assert (int(resets[1:].sum()) > 0) == (reset == "episode")
    q = inference.beliefs(transitions, resets)
    wanted = belief_latent(q).permute(1, 2, 0, 3)
    torch.testing.assert_close(
        rollout.latent, wanted.expand_as(rollout.latent), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("kind", KINDS)
def test_whose_transitions_an_embedding_is_made_of(kind):
    _, inference = mate(kind)
    latents = []
    for other in (2.0, -1.0):
        stream = BeliefStream(inference, 3)
        before = stream.current()
        observations = torch.ones(3, 2, 4)
        observations[:, 1] = other
        step = (torch.zeros(3, 2, 2), torch.zeros(3, 2), observations, torch.zeros(3) > 0)
        stream.update(Step(observations, *step))
        latents.append(stream.current())
        assert not torch.equal(latents[-1], before)
    assert torch.equal(latents[0][:, 0], latents[1][:, 0]) == (kind != "cen")
    assert not torch.equal(latents[0][:, 1], latents[1][:, 1])
    if kind == "cen":
        assert torch.equal(latents[0][:, 0], latents[0][:, 1])


def test_an_episodes_end_is_a_new_beginning():
    _, inference = mate("ind")
    stream = BeliefStream(inference, 2)
    initial = stream.current()
    rows = torch.ones(2, 2, 4)
    done = torch.tensor([True, False])
    stream.update(Step(rows, torch.ones(2, 2, 2), torch.ones(2, 2), rows, done))
    assert torch.equal(stream.current()[0], initial[0])
    assert not torch.equal(stream.current()[1], initial[1])


def test_the_loss_of_the_mixture_is_an_expectation_over_agents():
    learner, inference = mate("mix", kl_weight=0.5, reward_weight=2.0)
    rollout, _ = collect(learner)
    transitions, resets = inference.transitions(rollout), rollout.episode_start[:-1]
    state = inference.noise.get_state()
    loss, metrics = inference.negative_elbo(transitions, resets)
    inference.noise.set_state(state)
    q = inference.beliefs(transitions, resets)
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
def test_the_reward_is_predicted_from_what_was_seen_before(kind):
    """Which of two tasks pays is unknown at the first of ten steps, and known afterwards."""
    learner, inference = mate(kind, lr=1e-2, ae_updates_per_iter=30, ppo_epoch=1, kl_weight=0.01,
        observation_weight=0.1, n_rollout_threads=16, belief_hidden=16, decoder_sizes_mlp=[16],
        actor_lr=1e-5,
    )  # fmt: skip
    losses = [iterate(learner) for _ in range(6)]
    assert losses[-1]["loss/belief"] < 0.7 * losses[0]["loss/belief"]
    assert losses[-1]["belief/reward_error"] < 0.3
    transitions, resets = inference.trajectories()
    q = inference.beliefs(transitions, resets)
    paid = transitions[0, :, 0, 4 + 2] > 0
    assert 0 < int(paid.sum()) < len(paid)
    means = q.mean.detach()[:, [0, 5]]  # before the first step, and in the middle
    distance = (means[:, :, paid].mean(2) - means[:, :, ~paid].mean(2)).norm(dim=(0, 2))
    assert distance[0] < 1e-5
    assert distance[1] > 0.3


def test_policies_do_not_train_it():
    learner, inference = mate("mix", ae_updates_per_iter=0)
    before = [p.detach().clone() for p in inference.parameters()]
    iterate(learner)
    assert all(torch.equal(a, b) for a, b in zip(before, inference.parameters(), strict=True))


def test_critics_get_the_latents_of_the_actors():
    learner, _ = mate("ind")
    rollout, critic_latent = collect(learner)
    latent = critic_latent()
    assert latent is not None
    assert rollout.latent is not None
    assert latent.shape == (11, 8, 2 * 16)
    assert np.array_equal(latent[:-1].numpy(), rollout.latent.flatten(2).numpy())
