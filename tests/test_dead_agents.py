"""Agents that are no longer alive act on nothing and teach nothing."""

from typing import Any

import numpy as np
import pytest
import torch
from method_helpers import tiny_learner

from mg2l.algorithms.base import CriticLatent
from mg2l.envs import registry
from mg2l.experience.replay import active_transitions
from mg2l.nn.normaliser import ValueNorm

SMALL = {"n_agents": 6, "map_size": 12, "max_ep_len": 12, "food_per_kind": 4}


def rollout_with_deaths(learner, alive):
    """A rollout in which agents live as ``alive`` ``[T, N, A]`` says, and what it was before."""
    rollout = learner.collect(learner.draw_tasks())
    rollout.active = alive
    return rollout


def parameters(learner):
    return torch.cat(
        [p.detach().flatten() for p in (*learner.actor.parameters(), *learner.critic.parameters())]
    )


@pytest.mark.parametrize("share", [True, False])
def test_what_the_dead_do_and_earn_trains_nobody(share):
    """Two rollouts that differ only in rows of the dead give the same policies."""
    after = []
    for garbage in (False, True):
        learner = tiny_learner(
            "mappo", "magent-gather", share_policy=share, use_centralized_V=False, **SMALL
        )
        steps, envs = 12, learner.env.num_envs
        alive = torch.ones(steps, envs, 6, dtype=torch.bool)
        alive[5:, :, 0] = False  # agent 0 dies in step 4
        rollout = rollout_with_deaths(learner, alive)
        rollout.terminated[4:, :, 0] = True
        if garbage:
            generator = torch.Generator().manual_seed(1)
            rollout.rewards[5:, :, 0] = 50 * torch.rand(7, envs, generator=generator)
            rollout.actions[5:, :, 0] = 3
            rollout.log_probs[5:, :, 0] = -0.5
            rollout.observations[5:, :, 0] = 1.0
            rollout.final_observations[5:, :, 0] = 1.0
        critic_latent = CriticLatent(None)
        learner.ppo.update(learner.ppo.prepare(rollout, None), critic_latent)
        after.append(parameters(learner))
    torch.testing.assert_close(after[0], after[1], rtol=1e-4, atol=1e-5)


def test_normaliser_counts_the_living_alone():
    torch.manual_seed(0)
    targets, kept = torch.randn(2, 50), torch.rand(2, 50) < 0.5
    kept[1] = False
    norm, alone = ValueNorm(2), ValueNorm(1)
    norm.update(targets, targets, kept)
    alone.update(targets[:1, kept[0]], targets[:1, kept[0]])
    torch.testing.assert_close(norm.mean[:1], alone.mean)
    torch.testing.assert_close(norm.std[:1], alone.std)
    assert (float(norm.mean[1]), float(norm.std[1])) == (0, 1)  # no target yet


def test_transitions_of_the_dead_are_replaced_by_their_own_living_ones():
    steps, envs, agents = 5, 2, 3
    transitions = torch.arange(steps * envs * agents).view(steps, envs, agents, 1).float()
    alive = torch.ones(steps, envs, agents, dtype=torch.bool)
    assert active_transitions(transitions, None) is transitions
    assert active_transitions(transitions, alive) is transitions
    alive[2:, 0, 1] = False
    alive[1:, 1, 2] = False
    kept = active_transitions(transitions, alive)
    assert kept[:, 0, 1, 0].tolist() == [transitions[t, 0, 1, 0] for t in (0, 1, 0, 1, 0)]
    assert (kept[:, 1, 2] == transitions[0, 1, 2]).all()
    rest = alive.all(0)
    assert torch.equal(kept[:, rest], transitions[:, rest])
    alive[:, 0, 0] = False  # never there, as of a pool of agents
    assert (active_transitions(transitions, alive)[:, 0, 0] == 0).all()


def test_contexts_of_foragers_hold_no_transition_of_the_dead():
    learner: Any = tiny_learner("mg2l", "magent-gather", **SMALL)
    steps, inference = 12, learner.inference
    rollout = learner.collect(learner.draw_tasks())
    rollout.active = torch.ones(rollout.rewards.shape, dtype=torch.bool)
    rollout.active[3:, :, 2] = False
    rollout.observations[3:, :, 2] = 77.0
    assert not (inference.transitions(rollout) == 77).any()
    assert inference.transitions(rollout).shape[:3] == (steps, learner.env.num_envs, 6)


def test_what_is_all_eaten_is_seen_as_nothing():
    config = registry.config_class("magent-gather")(n_agents=40, map_size=14, food_per_kind=2)  # type: ignore[call-arg]
    env: Any = registry.make(config, 4, seed=0)
    env.reset()
    rng = np.random.default_rng(0)
    height, width, channels = env.image
    gone = 0
    for _ in range(60):
        obs, *_, info = env.step(rng.integers(env.action_spaces[0].n, size=(4, 40)))
        assert np.isfinite(obs).all()
        assert np.isfinite(info["final_obs"]).all()
        cells = info["final_obs"][..., : height * width * channels]
        minimaps = cells.reshape(4, 40, -1, channels)[..., -1][info["active"].any(1)]
        gone += int((minimaps == 0).all((1, 2)).any())
    assert gone > 0


def test_the_dead_stay_dead_until_the_episode_ends():
    """In battle: the dead earn nothing more, see zeros, and live again in the next episode."""
    config = registry.config_class("magent-battle")(max_ep_len=200)
    env: Any = registry.make(config, 4, seed=0)
    _, info = env.reset()
    alive, deaths = info["active"], 0
    rng = np.random.default_rng(0)
    for _ in range(200):
        actions = rng.integers(env.action_spaces[0].n, size=alive.shape)
        _, rewards, terminated, truncated, info = env.step(actions)
        over = (terminated | truncated).all(1)
        assert (rewards[~alive] == 0).all()
        assert terminated[~alive].all()
        now = info["active"]
        assert not (now & ~alive)[~over].any()
        deaths += int((alive & ~now)[~over].sum())
        assert (info["final_obs"][~over][~now[~over]] == 0).all()
        assert now[over].all()
        alive = now
    assert deaths > 0
