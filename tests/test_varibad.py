"""VariBAD: its bound, and a belief that is kept across episodes."""

from typing import Any

import torch
from learning_helpers import iterate, paid_learner
from method_helpers import collect

from mg2l.algorithms.belief import BeliefStream, belief_latent
from mg2l.algorithms.varibad.algorithm import VariBAD, previous_belief
from mg2l.estimators.gaussian import STD_FLOOR, Gaussian, kl_between, kl_to_standard
from mg2l.experience.rollout import Step
from mg2l.training.learner import Learner


def varibad(**values: Any) -> tuple[Learner, VariBAD]:
    learner = paid_learner("varibad", **{"episodes_per_task": 2, **values})
    assert isinstance(learner.inference, VariBAD)
    return learner, learner.inference


def test_the_prior_of_a_belief_is_the_oneprevious_belief():
    q = Gaussian(torch.randn(2, 6, 3, 4), torch.rand(2, 6, 3, 4) + 0.1)
    resets = torch.zeros(6, 3, dtype=torch.bool)
    resets[0] = True
    resets[3, 1] = True
    prior = previous_belief(q, resets)
    kl = kl_between(q, prior)
    for t in range(6):
        for b in range(3):
            now = Gaussian(q.mean[:, t, b], q.std[:, t, b])
            last = Gaussian(q.mean[:, t - 1, b], q.std[:, t - 1, b])
            wanted = kl_to_standard(now) if resets[t, b] else kl_between(now, last)
            torch.testing.assert_close(kl[:, t, b], wanted)


def test_what_policies_read_of_a_belief_is_of_order_one():
    prior = Gaussian(torch.zeros(3), torch.ones(3))
    assert torch.equal(belief_latent(prior), torch.zeros(6))
    certain = belief_latent(Gaussian(torch.ones(3), torch.full((3,), STD_FLOOR)))
    torch.testing.assert_close(certain, torch.ones(6))


def test_the_bound_decodes_the_whole_trajectory_from_every_belief():
    learner, inference = varibad(elbo_terms=20, decoded_steps=20, kl_weight=0.5)
    rollout, _ = collect(learner, 20)
    transitions = inference.transitions(rollout)
    resets = torch.zeros(20, 8, dtype=torch.bool)
    resets[0] = True
    state = inference.noise.get_state()
    loss, metrics = inference.negative_elbo(transitions, resets)
    inference.noise.set_state(state)
    q = inference.beliefs(transitions, resets)
    z = q.sample(inference.noise)
    o, a, r, following = (part.movedim(2, 0) for part in inference.transitions.split(transitions))
    wanted = torch.zeros(())
    for t in range(20):
        for s in range(20):
            found = inference.dynamics(torch.cat([o[:, s], a[:, s], z[:, t]], -1))
            pay = inference.reward(torch.cat([o[:, s], a[:, s], following[:, s], z[:, t]], -1))
            wanted = wanted + (found - following[:, s]).square().mean() / 20
            wanted = wanted + (pay - r[:, s]).square().mean() / 20
    torch.testing.assert_close(loss, wanted + 0.5 * metrics["belief/kl"])


def test_a_belief_lasts_for_two_episodes():
    learner, inference = varibad()
    assert learner.collect(learner.draw_tasks()).rewards.shape[0] == 20
    assert bool(inference.kept.data[0, 0, 0, :, -1].all())
    assert not bool(inference.kept.data[0, 0, 1:, :, -1].any())
    stream = BeliefStream(inference, 2)
    initial = stream.current()
    rows = torch.ones(2, 2, 4)
    done = torch.tensor([True, False])
    stream.update(Step(rows, torch.ones(2, 2, 2), torch.ones(2, 2), rows, done))
    torch.testing.assert_close(stream.current()[0], stream.current()[1])
    assert not torch.equal(stream.current(), initial)


def test_its_bound_tightens_and_later_beliefs_separate_the_tasks():
    learner, inference = varibad(lr=1e-2, ae_updates_per_iter=30, ppo_epoch=1, kl_weight=0.01,
        observation_weight=0.1, belief_hidden=16, decoder_sizes_mlp=[16],
    )  # fmt: skip
    losses = [iterate(learner) for _ in range(6)]
    assert losses[-1]["loss/belief"] < 0.7 * losses[0]["loss/belief"]
    assert losses[-1]["belief/reward_error"] < 0.3
    transitions, resets = inference.trajectories()
    q = inference.beliefs(transitions, resets)
    paid = transitions[0, :, 0, 4 + 2] > 0
    means = q.mean.detach()[:, [0, 15]]  # before the first step, and in the second episode
    distance = (means[:, :, paid].mean(2) - means[:, :, ~paid].mean(2)).norm(dim=(0, 2))
    assert distance[0] < 1e-5
    assert distance[1] > 0.3
