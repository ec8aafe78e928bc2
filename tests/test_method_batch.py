"""From a rollout to advantages, and from a batch to minibatches, against loops."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from method_helpers import KINDS, collect, env_of, known_learner, prepared, tiny_config

from mg2l.algorithms.base import CriticLatent
from mg2l.core.schema import ConfigError

# The rollout is what happened.


@pytest.mark.parametrize("kind", KINDS)
def test_a_rollout_is_what_the_environment_saw(kind):
    learner = known_learner(**KINDS[kind])
    rollout, _ = collect(learner, 27)
    env = env_of(learner)
    for name, field in (
        ("obs", rollout.observations[:-1]),
        ("final_obs", rollout.final_observations),
        ("rewards", rollout.rewards),
        ("terminated", rollout.terminated),
        ("truncated", rollout.truncated),
        ("actions", rollout.actions),
        ("over", rollout.episode_start[1:]),
    ):
        assert torch.equal(field, env.logged(name)), name
    assert rollout.episode_start[0].all()
    assert (rollout.action_mask is not None) == ("masked" in KINDS[kind])
    assert (rollout.active is not None) == ("mortal" in KINDS[kind])
    if rollout.action_mask is not None:
        assert torch.equal(rollout.action_mask, env.logged("action_mask"))
    if rollout.active is not None:
        assert torch.equal(rollout.active, env.logged("active"))
    over = env.logged("over")
    assert 0 < over.sum() < over.numel()  # episodes end on the way
    # After the end of an episode comes the first observation of the next.
    assert (rollout.observations[1:][over][..., 2] == 0).all()
    assert (rollout.final_observations[over][..., 2] > 0).all()


# The first ratio is one.


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("algo", ["mg2l", "oracle"])
def test_the_first_ratio_is_one(algo, kind, share):
    """If z were drawn again in an epoch, it would not be."""
    learner = known_learner(algo, share_policy=share, act_on="sample", gain=1.0, **KINDS[kind])
    batch, critic_latent = prepared(learner)
    ppo = learner.ppo
    rows = 0
    for part, _ in ppo.minibatches(batch):
        with torch.no_grad():
            log_probs, _ = learner.actor.evaluate(
                part.actor_inputs.flatten(1, 2),
                part.actions.flatten(1, 2),
                part.actor_states,
                part.reset,
                None if part.action_mask is None else part.action_mask.flatten(1, 2),
            )
        assert (log_probs - part.log_probs.flatten(1)).abs().max() < 1e-5
        rows += log_probs.numel()
    assert rows == batch.log_probs.numel()
    ppo.config.ppo_epoch = 1
    metrics = ppo.update(batch, critic_latent)
    assert metrics["clip_fraction"] == 0
    assert abs(float(metrics["kl"])) < 1e-6
    # Normalised advantages have mean zero, so that the surrogate is zero at ratio one.
    assert abs(float(metrics["loss/policy"])) < 1e-5
    assert float(ppo.update(batch, critic_latent)["kl"]) > 1e-6  # and then it moves


# Advantages and returns.


def loop_values(learner, rows, resets, latent):
    """Values ``[A, len(rows), N]`` one row at a time, and states after each."""
    critic, state, found, states = learner.critic, None, [], []
    agents, envs = learner.env.num_agents, learner.env.num_envs
    if critic.body.memory is not None:
        state = critic.body.memory.initial_state(agents, envs)
    for row, reset in zip(rows, resets, strict=True):
        value, state = value_of(learner, row, latent, state, reset)
        found.append(value)
        states.append(state)
    return found, states


def value_of(learner, row, latent, state, reset):
    """Values ``[A, N]`` of observations ``[N, A, O]``."""
    resets = None if reset is None else reset[None]
    with torch.no_grad():
        return learner.critic(learner.critic.reads(row), latent, state, resets)


PREPARES = [
    ({}, "mappo"),
    ({"use_valuenorm": False}, "mappo"),
    ({"use_popart": True, "use_valuenorm": False}, "mappo"),
    ({"use_centralized_V": False}, "oracle"),
    ({"share_policy": True}, "oracle"),
    ({"use_proper_time_limits": False}, "mappo"),
    ({"use_gae": False, "gae_lambda": 0.3}, "mappo"),
    ({"use_recurrent_policy": True, "data_chunk_length": 5}, "oracle"),
    ({"use_naive_recurrent_policy": True, "recurrent_N": 2}, "mappo"),
    ({"ends_at": 4}, "oracle"),
    ({"mortal": True}, "mappo"),
    ({"trial_gamma": 0.8}, "oracle"),
    ({"trial_gamma": 0.8, "mortal": True, "use_naive_recurrent_policy": True}, "mappo"),
    (
        {"mortal": True, "ends_at": 5, "use_recurrent_policy": True, "data_chunk_length": 5},
        "oracle",
    ),
]


@pytest.mark.parametrize(("values", "algo"), PREPARES)
def test_a_batch_is_a_loop_over_steps_and_agents(values, algo):
    learner = known_learner(algo, gamma=0.9, **values)
    config = learner.config.ppo
    if learner.critic.normaliser is not None:  # moments that are not those of a fresh run
        targets = 3 + 2 * torch.randn(2, 500)
        learner.critic.normaliser.update(targets, targets)
    before = copy.deepcopy(learner.critic.normaliser)
    steps = 25  # two and a half episodes
    rollout, critic_latent = collect(learner, steps)
    latent = critic_latent()
    env = env_of(learner)
    obs, final = env.logged("obs"), env.logged("final_obs")
    rewards = env.logged("rewards")
    over, ended, cut = (env.logged(name) for name in ("over", "terminated", "truncated"))

    resets = torch.cat([torch.ones(1, 4, dtype=torch.bool), over])
    rows = torch.cat([obs, rollout.observations[-1:]])
    values_before, states = loop_values(learner, rows, resets, latent)
    mean, std = torch.zeros(2), torch.ones(2)
    if before is not None:
        mean, std = (x.float().expand(2) for x in (before.mean, before.std))
    real = torch.stack(values_before).movedim(1, -1) * std + mean  # [T + 1, N, A]
    advantages = torch.zeros(steps + 1, 4, 2)
    never = torch.zeros(4, dtype=torch.bool)
    gamma = config.trial_gamma or 0.9
    for t in reversed(range(steps)):
        after, _ = value_of(learner, final[t], latent, states[t], never)
        after = after.t() * std + mean
        for n in range(4):
            for a in range(2):
                stop = ended[t, n, a] or (cut[t, n, a] and not config.use_proper_time_limits)
                limit = cut[t, n, a] and not stop
                if config.trial_gamma:  # nothing ends within a task
                    stop = limit = False
                following = 0.0 if stop else after[n, a] if limit else real[t + 1, n, a]
                decay = config.gae_lambda if config.use_gae else 1.0
                carry = 0.0 if stop or limit else gamma * decay * advantages[t + 1, n, a]
                error = rewards[t, n, a] + gamma * following - real[t, n, a]
                advantages[t, n, a] = error + carry
    advantages = advantages[:-1]
    returns = advantages + real[:-1]

    batch = learner.ppo.prepare(rollout, latent)
    active = env.logged("active") if "mortal" in values else torch.ones_like(rewards).bool()
    after_mean, after_std = torch.zeros(2), torch.ones(2)
    if learner.critic.normaliser is not None:
        after_mean, after_std = (
            x.float().expand(2)
            for x in (learner.critic.normaliser.mean, learner.critic.normaliser.std)
        )
        assert not torch.equal(after_mean, mean)
    for a in range(2):
        kept = active[..., a]
        alive = advantages[..., a][kept].double()
        wanted = (advantages[..., a] - alive.mean()) / (alive.std(unbiased=False) + 1e-5)
        torch.testing.assert_close(
            batch.advantages[a][kept], wanted[kept].float(), rtol=1e-3, atol=1e-3
        )
        torch.testing.assert_close(
            batch.returns[a],
            (returns[..., a] - after_mean[a]) / after_std[a],
            rtol=1e-4, atol=1e-4,
        )  # fmt: skip
        kept_values = real[:-1, :, a]
        if config.use_popart:  # predictions of the rescaled output layer
            wanted_values = (kept_values - after_mean[a]) / after_std[a]
        else:
            wanted_values = (kept_values - mean[a]) / std[a]
        torch.testing.assert_close(batch.values[a], wanted_values, rtol=1e-4, atol=1e-4)
    if config.use_popart:
        fresh, _ = loop_values(learner, rows, resets, latent)
        torch.testing.assert_close(
            torch.stack(fresh, 1)[:, :-1], batch.values, rtol=1e-4, atol=1e-4
        )


def test_truncation_is_not_termination():
    """Both end an episode; only one of them ends what can be earned."""
    finals = {}
    variants: dict[str, dict[str, Any]] = {
        "cut": {},
        "ended": {"ends_at": 10, "n_rollout_threads": 1},
    }
    for name, values in variants.items():
        learner = known_learner(use_valuenorm=False, gae_lambda=0.0, gamma=0.9, **values)
        rollout, _ = collect(learner, 10)
        assert bool(rollout.truncated[-1, 0].all()) == (name == "cut")
        assert bool(rollout.terminated[-1, 0].all()) == (name == "ended")
        batch = learner.ppo.prepare(rollout, None)
        finals[name] = batch.returns[:, -1, 0] - rollout.rewards[-1, 0]
        if name == "cut":
            value, _ = value_of(learner, rollout.final_observations[-1], None, None, None)
            torch.testing.assert_close(finals[name], 0.9 * value[:, 0])
            assert (finals[name] != 0).all()
    torch.testing.assert_close(finals["ended"], torch.zeros(2))


# Minibatches.


def numbered(**values):
    """A learner and a batch whose advantages number agent, step and environment."""
    learner = known_learner(**values)
    batch, _ = prepared(learner)
    agents, steps, envs = batch.advantages.shape
    number = torch.arange(agents * steps * envs).float().view(agents, steps, envs)
    return learner.ppo, dataclasses.replace(batch, advantages=number), steps, envs


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 40])
def test_minibatches_cover_every_row_once(parts):
    ppo, batch, steps, envs = numbered(num_mini_batch=parts)
    orders = []
    for _ in range(2):
        pieces = [part.advantages for part, _ in ppo.minibatches(batch)]
        assert len(pieces) == parts
        sizes = [piece[0].numel() for piece in pieces]
        assert max(sizes) - min(sizes) <= 1
        rows = torch.cat([piece.flatten(1) for piece in pieces], 1)
        assert torch.equal(rows.sort(1).values, batch.advantages.flatten(1))
        assert torch.equal(rows[1] - rows[0], torch.full_like(rows[0], steps * envs))
        orders.append(rows)
    assert torch.equal(*orders) == (parts == 1)  # drawn again for every epoch


@pytest.mark.parametrize(
    ("chunk", "parts"), [(5, 1), (5, 3), (2, 4), (1, 2), (10, 4), (None, 1), (None, 3)]
)
def test_recurrent_minibatches_are_of_whole_chunks(chunk, parts):
    """``None`` is a naive recurrent policy, trained on whole rollouts."""
    options: dict[str, Any] = (
        {"use_naive_recurrent_policy": True}
        if chunk is None
        else {"use_recurrent_policy": True, "data_chunk_length": chunk}
    )
    ppo, batch, steps, envs = numbered(num_mini_batch=parts, ends_at=4, **options)
    length = chunk or steps
    seen = []
    for part, where in ppo.minibatches(batch):
        assert where is not None
        number = part.advantages[0].long()  # [chunk, sequences]
        assert number.shape[0] == length
        time, environment = number // envs, number % envs
        assert torch.equal(where[0].view(length, -1), time)
        assert torch.equal(where[1].view(length, -1), environment)
        assert (time[0] % length == 0).all()
        assert torch.equal(time - time[0], torch.arange(length)[:, None].expand_as(time))
        assert (environment == environment[0]).all()
        for name in ("actor_inputs", "critic_observations", "actions", "log_probs", "returns",
                     "values"):  # fmt: skip
            whole, piece = getattr(batch, name), getattr(part, name)
            assert torch.equal(piece, whole[:, time, environment]), name
        assert torch.equal(part.reset, batch.reset[time, environment])
        for name in ("actor_states", "critic_states"):
            whole, piece = getattr(batch, name), getattr(part, name)
            assert torch.equal(piece, whole[:, time[0], environment[0]]), name
            assert piece.shape[2:] == (1, 16)
        seen.append(number.flatten())
    assert len(seen) == parts
    assert torch.equal(torch.cat(seen).sort().values, torch.arange(steps * envs))


def test_minibatches_carry_masks_and_the_living():
    ppo, batch, _, envs = numbered(num_mini_batch=3, discrete=True, masked=True, mortal=True)
    for part, _ in ppo.minibatches(batch):
        number = part.advantages[0].long()
        time, environment = number // envs, number % envs
        for name in ("action_mask", "active", "actions"):
            assert torch.equal(getattr(part, name), getattr(batch, name)[:, time, environment])


@pytest.mark.parametrize(
    "options",
    [{}, {"num_mini_batch": 3}, {"use_recurrent_policy": True, "data_chunk_length": 5},
     {"use_naive_recurrent_policy": True, "num_mini_batch": 2}],
)  # fmt: skip
def test_critics_get_the_latent_of_the_environment_they_evaluate(monkeypatch, options):
    learner = known_learner("oracle", observation_normalization="none", **options)
    rollout, _ = collect(learner)
    latent = torch.arange(4.0)[:, None].expand(4, 3) / 10  # as observations name their row
    batch = learner.ppo.prepare(rollout, latent)
    seen = []
    vjp = learner.critic.vjp

    def spy(*inputs):
        seen.append(inputs[:2])
        return vjp(*inputs)

    monkeypatch.setattr(learner.critic, "vjp", spy)
    learner.ppo.update(batch, CriticLatent(latent))
    assert len(seen) == 2 * options.get("num_mini_batch", 1)
    for observations, tasks in seen:
        rows = observations[0, :, 0]
        assert torch.equal(rows, tasks[:, 0])
        assert len(rows.unique()) > 1
    assert sum(len(tasks) for _, tasks in seen) == 2 * 40


# What cannot be is refused before anything is built.


def test_chunks_must_divide_the_rollout():
    with pytest.raises(ConfigError, match="data_chunk_length=4 must divide max_ep_len=10"):
        tiny_config("mappo", use_recurrent_policy=True, data_chunk_length=4)
    tiny_config("mappo", data_chunk_length=4)  # not read without memory
    tiny_config("mappo", data_chunk_length=4, use_naive_recurrent_policy=True)


@pytest.mark.parametrize(
    ("options", "most", "unit"),
    [
        ({}, 40, "steps"),
        ({"use_recurrent_policy": True, "data_chunk_length": 5}, 8, "chunks"),
        ({"use_naive_recurrent_policy": True}, 4, "sequences"),
    ],
)
def test_there_are_no_empty_minibatches(options, most, unit):
    tiny_config("mappo", num_mini_batch=most, **options)
    message = f"num_mini_batch={most + 1} exceeds the rollout's {most} {unit}"
    with pytest.raises(ConfigError, match=message):
        tiny_config("mappo", num_mini_batch=most + 1, **options)
