"""Critics of all agents: the joint observation is read once, and never copied per agent."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from method_helpers import KnownEnv, known_learner

from mg2l.config.files import load_config
from mg2l.config.sections import PolicyConfig, PPOConfig
from mg2l.envs import registry
from mg2l.nn.critic import Critic, PooledCritic
from mg2l.nn.stacked import StackedLinear

AGENTS, ROWS, OBS, TASK = 3, 20, 4, 2


def make_critic(**values):
    torch.manual_seed(0)
    config = PolicyConfig(algo_hidden_size=8, **values)
    return Critic(config, PPOConfig(), AGENTS, OBS, TASK)


def per_agent(critic, observations, latent):
    """Values and the latent's gradient where every agent's critic has a copy of all inputs."""
    latent = latent.clone().requires_grad_()
    body, joint = critic.body, critic.reads(observations).expand(AGENTS, -1, -1)
    features, _ = body(body.inputs(joint, latent.expand(AGENTS, -1, -1)), None, None)
    return critic.value(features).squeeze(-1), latent


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("norm", ["none", "layer"])
def test_a_joint_critic_is_one_per_agent_on_copies_of_the_joint_observation(shared, norm):
    critic = make_critic(share_policy=shared, observation_normalization=norm).double()
    observations = torch.randn(ROWS, AGENTS, OBS, dtype=torch.float64)
    latent = torch.randn(ROWS, TASK, dtype=torch.float64)
    wanted, each = per_agent(critic, observations, latent)
    loss = torch.randn(AGENTS, ROWS, dtype=torch.float64)
    (wanted * loss).sum().backward()
    gradients = {name: p.grad.clone() for name, p in critic.named_parameters()}
    critic.zero_grad()
    latent.requires_grad_()
    values, _ = critic(critic.reads(observations), latent, None, None)
    (values * loss).sum().backward()
    with torch.no_grad():  # then all layers are one operator
        known, _ = critic(critic.reads(observations), latent.detach(), None, None)
    torch.testing.assert_close(known, wanted)
    torch.testing.assert_close(values, wanted)
    torch.testing.assert_close(latent.grad, each.grad)
    for name, parameter in critic.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name])


def test_each_critic_reads_its_own_agent_where_it_is_not_centralised():
    critic = make_critic(use_centralized_V=False)
    observations = torch.randn(ROWS, AGENTS, OBS)
    values, _ = critic(critic.reads(observations), torch.zeros(ROWS, TASK), None, None)
    observations[:, 1] += 1
    moved, _ = critic(critic.reads(observations), torch.zeros(ROWS, TASK), None, None)
    assert (moved != values).any(1).tolist() == [False, True, False]


def test_the_gradient_of_a_latent_is_that_of_its_columns():
    torch.manual_seed(0)
    layer = StackedLinear(AGENTS, OBS + TASK, 5, 1.0).double()
    x, z = (torch.randn(ROWS, width, dtype=torch.float64) for width in (OBS, TASK))
    parameters = (z.requires_grad_(), layer.weight, layer.bias)

    def outputs(z, weight, bias):
        return torch.func.functional_call(
            _Shared(layer), {"layer.weight": weight, "layer.bias": bias}, (x, z)
        )

    assert torch.autograd.gradcheck(outputs, parameters)


class _Shared(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, z):
        return self.layer.shared(x, z, None)


# Pooled critics.


def make_pooled(shared_reward, **values):
    torch.manual_seed(0)
    config = PolicyConfig(algo_hidden_size=8, critic="pooled", **values)
    return PooledCritic(config, PPOConfig(), AGENTS, OBS, TASK, shared_reward=shared_reward)


@pytest.mark.parametrize("share_policy", [False, True])
@pytest.mark.parametrize("shared_reward", [False, True])
def test_a_pooled_critic_reads_all_agents(shared_reward, share_policy):
    critic = make_pooled(shared_reward, share_policy=share_policy)
    observations, latent = torch.randn(ROWS, AGENTS, OBS), torch.randn(ROWS, TASK)
    latent.requires_grad_()
    values, _ = critic(critic.reads(observations), latent, None, None)
    assert values.shape == (AGENTS, ROWS)
    assert bool((values == values[0]).all()) == shared_reward
    values.square().sum().backward()
    assert all(bool(p.grad.any()) for p in (*critic.parameters(), latent))
    for agent in range(AGENTS):
        moved = observations.clone()
        moved[:, agent] += 1
        other, _ = critic(critic.reads(moved), latent, None, None)
        assert bool((other != values).any(1).all())


def test_pooling_is_an_attention_over_agents():
    critic = make_pooled(True)
    observations, latent = torch.randn(ROWS, AGENTS, OBS), torch.randn(ROWS, TASK)
    encoded, _ = critic.encoder(critic.reads(observations), None, None)
    weights = torch.einsum("qh,arh->arq", critic.query, encoded).softmax(0)
    pooled = torch.einsum("arq,arh->rqh", weights, encoded).flatten(1)
    inputs = torch.cat([pooled, latent], -1).unsqueeze(0)
    wanted = critic.value(critic.body(inputs, None, None)[0]).squeeze(-1)
    values, _ = critic(critic.reads(observations), latent, None, None)
    torch.testing.assert_close(values, wanted.expand(AGENTS, -1))


def test_the_parameters_of_a_pooled_critic_grow_linearly_with_agents():
    def count(agents):
        config = PolicyConfig(algo_hidden_size=8, critic="pooled")
        critic = PooledCritic(config, PPOConfig(), agents, OBS, TASK, shared_reward=True)
        return sum(p.numel() for p in critic.parameters())

    assert count(8) - count(4) == 2 * (count(4) - count(2))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"share_policy": True, "num_mini_batch": 2},
        {"use_recurrent_policy": True, "data_chunk_length": 5},
        {"use_popart": True, "use_valuenorm": False},
        {"observation_normalization": "layer", "mortal": True},
    ],
)
@pytest.mark.parametrize("shared_reward", [False, True])
def test_ppo_trains_pooled_critics(monkeypatch, values, shared_reward):
    monkeypatch.setattr(KnownEnv, "shared_reward", shared_reward)
    learner = known_learner("oracle", critic="pooled", **values)
    before = [p.clone() for p in learner.critic.parameters()]
    tasks = learner.draw_tasks()
    metrics = learner.update_policy(learner.collect(tasks), tasks)
    assert all(np.isfinite(value) for value in metrics.values())
    for old, new in zip(before, learner.critic.parameters(), strict=True):
        assert not torch.equal(old, new)


def test_a_pooled_critic_is_centralised():
    with pytest.raises(ValueError, match=r"critic=pooled.*use_centralized_V=false"):
        PolicyConfig(critic="pooled", use_centralized_V=False)


@pytest.mark.parametrize(
    ("family", "shared"),
    [
        ("mpe-spread", True),
        ("mpe-goals", False),
        ("mpe-goals-joint", True),
        ("mpe-weights", True),
        ("mujoco-cheetah-dir", True),
    ],
)
def test_a_reward_that_is_shared_is_that_of_all_agents(family, shared):
    env = registry.make(load_config(env=family, algo="mappo").env, 2, 0)
    env.reset()
    rng, same = np.random.default_rng(0), []
    for _ in range(60):
        actions = rng.uniform(-1, 1, (2, env.num_agents, env.action_layout.width))
        _, rewards, *_ = env.step(actions)
        same.append((rewards == rewards[:, :1]).all())
    assert all(same) == shared == env.shared_reward
