"""Observations are standardised by what agents have acted on, and nothing of them is lost."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from method_helpers import (
    TINY,
    KnownConfig,
    KnownEnv,
    collect,
    known_learner,
    prepared,
    tiny_config,
    tiny_learner,
)
from test_export import check_follows
from test_export import collect as follow

from mg2l.config import files as loading
from mg2l.config.sections import PolicyConfig
from mg2l.core.schema import ConfigError
from mg2l.deploy import export
from mg2l.deploy.agent import Agent
from mg2l.deploy.policy import Policy
from mg2l.deploy.reference import References
from mg2l.envs import registry
from mg2l.envs.actions import ActionLayout
from mg2l.envs.base import StepResult
from mg2l.evaluation.meta_test import PeriodicTest
from mg2l.nn.normaliser import LayerNorm, RunningNorm
from mg2l.nn.policy import Actor
from mg2l.ops import reference
from mg2l.training import loop
from mg2l.training.learner import Learner


def norm_of(learner: Learner) -> RunningNorm:
    norm = learner.actor.body.normalise
    assert isinstance(norm, RunningNorm)
    return norm


def state_of(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in norm_of(learner).state_dict().items()}


# One module.


@pytest.mark.parametrize("groups", [3, 1])
@pytest.mark.parametrize("width", [1, 2, 5])
def test_each_number_is_standardised_and_clipped(groups, width):
    rng = np.random.default_rng(0)
    scale = 10.0 ** rng.uniform(-4, 4, (3, width))
    shift = scale * rng.uniform(-1e3, 1e3, (3, width))
    seen = torch.as_tensor((rng.normal(size=(40, 7, 3, width)) * scale + shift).astype(np.float32))
    alive = torch.as_tensor(rng.random((40, 7, 3)) < 0.7)
    norm = RunningNorm(groups, width, limit=2.0)
    rows = seen.flatten(0, 1).transpose(0, 1)
    assert torch.equal(norm(rows), rows)  # nothing is known yet
    for part, active in zip(seen.split(13), alive.split(13), strict=True):
        norm.update(part, active)
    found, values = norm(rows), rows.double().numpy()
    for agent in range(3):
        own = seen[alive] if groups == 1 else seen[..., agent, :][alive[..., agent]]
        mean, std = own.double().mean(0), own.double().std(0, unbiased=False)
        wanted = ((values[agent] - mean.numpy()) / std.numpy()).clip(-2, 2)
        np.testing.assert_allclose(found[agent], wanted, atol=1e-5)
    assert found.abs().max() <= 2


def test_images_are_left_alone():
    norm = RunningNorm(2, 6, limit=10.0, image=4)
    seen = torch.rand(30, 2, 6) * 100
    norm.update(seen, None)
    found = norm(seen.transpose(0, 1))
    assert torch.equal(found[..., :4], seen.transpose(0, 1)[..., :4])
    torch.testing.assert_close(found[..., 4:].std(1, unbiased=False), torch.ones(2, 2))


@pytest.mark.parametrize("width", [1, 2, 3])
def test_layer_norm_is_refused_where_it_leaves_too_little(width):
    config = PolicyConfig(observation_normalization="layer", algo_hidden_size=8)
    if width > 2:
        assert isinstance(
            Actor(config, 1, width, 0, ActionLayout([Box(-1, 1, (1,))])).body.normalise, LayerNorm
        )
        return
    left = "nothing" if width == 1 else "a sign"
    with pytest.raises(ConfigError, match=f"at least 3 numbers, got {width}, .* leave {left}"):
        Actor(config, 1, width, 0, ActionLayout([Box(-1, 1, (1,))]))


# The key, and what it was called.


@pytest.mark.parametrize(
    ("given", "wanted"),
    [({}, "running"), ({"use_feature_normalization": True}, "layer"),
     ({"policy": {"use_feature_normalization": False}}, "none"),
     ({"policy.use_feature_normalization": True}, "layer"),
     ({"observation_normalization": "layer"}, "layer")],
)  # fmt: skip
def test_the_older_key_is_an_alias(given, wanted):
    found = loading.load_config(algo="mappo", env="mujoco-hopper-param", overrides=given).policy
    assert found.observation_normalization == wanted
    assert found.use_feature_normalization == (wanted == "layer")
    if all(isinstance(value, bool) for value in given.values()):
        words = [f"{key}={str(value).lower()}" for key, value in given.items()]
        assert loading.load_config(env="mujoco-hopper-param", overrides=words).policy == found


def test_values_that_the_older_key_cannot_have():
    with pytest.raises(ConfigError, match="use_feature_normalization must be true or false, got 3"):
        loading.load_config(overrides=["use_feature_normalization=3"])
    both = ["use_feature_normalization=true", "observation_normalization=none"]
    with pytest.raises(ConfigError, match="observation_normalization is given twice: layer and no"):
        loading.load_config(overrides=both)
    with pytest.raises(ConfigError, match=r"observation_clip must be in \(0, 1e\+06\], got 0"):
        loading.load_config(overrides=["observation_clip=0"])


# When the moments change.


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("kind", [{}, {"mortal": True}, {"use_recurrent_policy": True,
                                                          "data_chunk_length": 5}])  # fmt: skip
def test_a_policy_learns_in_the_units_that_it_acted_in(share, kind):
    learner = known_learner("oracle", share_policy=share, **kind)
    for _ in range(2):
        tasks = learner.draw_tasks()
        learner.update_policy(learner.collect(tasks), tasks)
    before = state_of(learner)
    rollout, critic_latent = collect(learner)
    batch = learner.ppo.prepare(rollout, critic_latent())
    for part, _ in learner.ppo.minibatches(batch):
        log_probs, _ = learner.actor.evaluate(
            part.actor_inputs.flatten(1, 2), part.actions.flatten(1, 2), part.actor_states,
            part.reset, None,
        )  # fmt: skip
        ratio = (log_probs - part.log_probs.flatten(1)).exp()
        torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=1e-5)
    learner.ppo.update(batch, critic_latent)
    assert all(torch.equal(value, before[name]) for name, value in state_of(learner).items())


def test_moments_are_of_all_that_was_acted_on(monkeypatch):
    """In training and exploration, by agents that were alive; a meta-test leaves them unchanged."""
    learner = known_learner("mg2l", mortal=True)
    kept = []
    watched = learner.actor.observe

    def watch(observations: torch.Tensor, active: torch.Tensor) -> None:
        kept.append((observations.clone(), active.clone()))
        watched(observations, active)

    monkeypatch.setattr(learner.actor, "observe", watch)
    norm_of(learner).load_state_dict(RunningNorm(2, 4, 10.0).state_dict())
    for iteration in range(2):
        loop.iterate(learner, iteration)
    assert [len(observations) for observations, _ in kept] == [10] * 4
    for agent in range(2):
        seen = torch.cat([o[:, :, agent][alive[:, :, agent]] for o, alive in kept]).double()
        assert len(seen) == sum(int(alive[:, :, agent].sum()) for _, alive in kept)
        moments = norm_of(learner).moments
        torch.testing.assert_close(moments.mean[agent], seen.mean(0))
        torch.testing.assert_close(moments.variance[agent], seen.var(0, unbiased=False))
    before = state_of(learner)
    periodic = PeriodicTest(learner)
    periodic.measure()
    periodic.close()
    assert all(torch.equal(value, before[name]) for name, value in state_of(learner).items())


@pytest.mark.parametrize("centralised", [True, False])
def test_critics_read_what_the_actors_do(centralised):
    learner = known_learner(use_centralized_V=centralised)
    tasks = learner.draw_tasks()
    learner.update_policy(learner.collect(tasks), tasks)
    batch, _ = prepared(learner)
    steps, envs = batch.advantages.shape[1:]
    own = batch.actor_inputs  # [A, T, N, O]
    joint = torch.cat([own[0], own[1]], -1)
    for agent in range(2):
        wanted = joint if centralised else own[agent]
        read = batch.critic_observations[0 if centralised else agent]  # one joint observation
        torch.testing.assert_close(read, wanted)
    assert own.shape == (2, steps, envs, 4)
    assert own.flatten(1, 2).mean(1).abs().max() < 1  # standardised by another rollout's


def test_continues_bit_for_bit():
    runs = []
    for _ in range(2):
        learner = known_learner("mg2l")
        state = copy.deepcopy(learner.networks())
        loop.iterate(learner, 0)
        runs.append((state, copy.deepcopy(learner.networks())))
    fresh = Learner(learner.config, torch.device("cpu"))
    fresh.load_networks(runs[0][1])
    assert all(
        torch.equal(value, state_of(fresh)[name]) for name, value in state_of(learner).items()
    )
    assert not torch.equal(
        runs[0][0]["actor"]["body.normalise.moments.mean"],
        runs[0][1]["actor"]["body.normalise.moments.mean"],
    )
    for one, two in zip(runs[0], runs[1], strict=True):
        for name, module in one.items():
            assert all(torch.equal(value, two[name][key]) for key, value in module.items()), name


# An agent on its own.

RUNNING: list[dict[str, Any]] = [
    {"algo": "mappo"},
    {"algo": "mg2l", "share_policy": True},
    {"algo": "rl2", "data_chunk_length": 5, "observation_clip": 0.5},
    {"algo": "mg2l", "env": "magent-gather", "n_agents": 2, "obs": "cnn"},
]


def standardising(values: dict[str, Any]) -> Learner:
    """A learner whose observations have moments of very different sizes."""
    learner = tiny_learner(**{"env": "mpe-spread", **values}, observation_normalization="running")
    norm, agents = norm_of(learner), learner.env.num_agents
    scale = 10 ** torch.linspace(-3, 3, norm.moments.mean.shape[1])
    numbers = (torch.randn(50, agents, len(scale)) + 30 * torch.rand(agents, 1)) * scale
    learner.actor.observe(torch.cat([torch.rand(50, agents, norm.image), numbers], -1), None)
    return learner


@pytest.mark.parametrize("values", RUNNING, ids=str)
def test_an_agent_on_its_own_standardises_as_the_learner_does(values):
    learner = standardising(values)
    references = References(learner)
    for index in range(learner.env.num_agents):
        policy = Policy(learner.actor, index)
        for one in references.policy(index):
            for got, wanted in zip(policy(**one.inputs), one.outputs, strict=True):
                torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("values", [RUNNING[0], RUNNING[2]], ids=str)
def test_an_exported_agent_standardises_as_the_run_does(values, tmp_path):
    """Observations, and the rewards that ``rl2`` reads."""
    learner = standardising(values)
    for _ in range(2):
        learner.collect(learner.draw_tasks())
    export.write_team(learner, tmp_path / "team", agents=[1])
    agent = Agent(tmp_path / "team", 1, seed=0, deterministic=True)
    check_follows(agent, follow(learner, "as always"))


# Learning from one number.


class Thermostat(KnownEnv):
    """Each agent sees one number and is paid for meeting it: ``bonus - (a - x)^2``."""

    bonus = 0.0

    def __init__(self, config: KnownConfig, num_envs: int, seed: int) -> None:
        super().__init__(config, num_envs, seed)
        self.observation_spaces = (Box(-1, 1, (1,)),) * self.num_agents
        self.action_spaces = (Box(-1, 1, (1,)),) * self.num_agents

    def _observe(self) -> Any:
        shape = (self.num_envs, self.num_agents, 1)
        self.x = self.rng.uniform(-1, 1, shape).astype(np.float32)
        return self.x

    def step(self, actions: Any) -> StepResult:
        wanted = self.x[..., 0]
        rewards = self.bonus - np.square(np.clip(actions, -1, 1)[..., 0] - wanted)
        seen, _, terminated, truncated, info = super().step(actions)
        info["final_obs"] = seen
        return seen, rewards.astype(np.float32), terminated, truncated, info


def thermostat(bonus: float = 0.0, **values: Any) -> Learner:
    family = type("Thermostat", (Thermostat,), {"bonus": bonus})
    registry.register("warm", KnownConfig, family)
    wanted = {**TINY, "max_ep_len": 20, "n_rollout_threads": 32,
              "n_iters": 12, "ppo_epoch": 15, "actor_lr": 3e-3, "critic_lr": 3e-3,
              "algo_hidden_size": 32, **values}  # fmt: skip
    config = loading.load_config(algo="mappo", env="warm", overrides=wanted)
    return Learner(config, torch.device("cpu"))


@pytest.mark.parametrize("bonus", [0.0, 100.0, -1000.0])
def test_one_number_is_learned_from_whatever_is_added_to_rewards(bonus):
    """Blind teams get -6.7 at best, 20 steps of -1/3; what explores acts on a spread of its own.

    Where values begin at 0 they stay at -16 with a bonus of 100.
    """
    learner = thermostat(bonus)
    returns = [loop.iterate(learner, i)["return"] - 20 * bonus for i in range(12)]
    assert np.mean(returns[:2]) < -7
    assert np.mean(returns[-2:]) > -5.5


@pytest.mark.parametrize("popart", [False, True])
@pytest.mark.parametrize("share", [False, True])
def test_advantages_do_not_depend_on_a_constant_that_is_always_paid(popart, share):
    learner = thermostat(use_popart=popart, use_valuenorm=not popart, share_policy=share)
    rollout, critic_latent = collect(learner)
    before = copy.deepcopy(learner.critic.state_dict())
    plain = learner.ppo.prepare(rollout, critic_latent())
    learner.critic.load_state_dict(before)
    rollout.rewards += 100
    other = learner.ppo.prepare(rollout, critic_latent())
    torch.testing.assert_close(other.advantages, plain.advantages, rtol=0, atol=2e-2)
    torch.testing.assert_close(other.returns, plain.returns, rtol=0, atol=2e-2)
    norm = learner.critic.normaliser
    assert norm is not None
    worth = rollout.rewards.double().mean((0, 1)) / (1 - learner.config.ppo.gamma)
    worth = worth.mean(0, keepdim=True) if share else worth
    torch.testing.assert_close(norm.mean, worth, rtol=1e-3, atol=0)


@pytest.mark.parametrize("options", [{}, {"ends_at": 4}, {"mortal": True}, {"use_gae": False}])
def test_values_begin_where_they_equal_their_own_returns(options):
    """Terminations count, and the dead do not; with every option of the estimator."""
    learner = known_learner(gamma=0.9, **options)
    rollout, _ = collect(learner, 25)
    rollout.rewards += 7
    kept = None if rollout.active is None else rollout.active.movedim(-1, 0)
    ended = (rollout.terminated, rollout.truncated)
    returns = learner.ppo.returns_of_constant(rollout.rewards, *ended, 0.9, kept)
    ppo = learner.config.ppo
    for agent in range(2):
        counted = slice(None) if kept is None else kept[agent]
        value = float(returns[agent][counted].mean())
        constant = torch.full((26, 4, 2), value, dtype=torch.float64)
        found = reference.gae(
            rollout.rewards.double(), constant, *ended, ppo.gamma,
            ppo.gae_lambda if ppo.use_gae else 1.0, final_values=constant[1:],
        ).returns[..., agent]  # fmt: skip
        torch.testing.assert_close(found, returns[agent])
        assert value > 10  # 7 a step are worth 70, less where episodes end


def test_nothing_ends_and_nothing_is_discounted():
    """Then no constant equals its own returns, and values begin at those of one rollout."""
    learner = thermostat(gamma=1.0)
    batch, _ = prepared(learner)
    assert batch.returns.isfinite().all()
    assert learner.critic.normaliser is not None
    assert learner.critic.normaliser.mean.abs().max() < 100


def test_layer_norm_over_one_number_is_one_line():
    with pytest.raises(ConfigError, match="observation_normalization=layer needs observations of"):
        thermostat(observation_normalization="layer")
    tiny_config("mappo", observation_normalization="layer")  # six numbers and more
