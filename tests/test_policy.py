"""Stacked networks equal loops over agents, heads equal ``torch.distributions``."""

import itertools
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from method_helpers import outputs
from torch import nn
from torch.distributions import Categorical, Normal
from torch.nn import functional as F

from mg2l.config.sections import PolicyConfig, PPOConfig
from mg2l.envs.actions import ActionLayout
from mg2l.nn.critic import Critic
from mg2l.nn.distributions import CategoricalHead, GaussianHead
from mg2l.nn.policy import Actor
from mg2l.nn.stacked import StackedGRU, StackedLinear, StackedMLP

AGENTS, ROWS, OBS, TASK, HIDDEN = 3, 6, 4, 2, 8
GROUPS = [AGENTS, 1]


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def linear_of(stacked, agent):
    """The layer of one agent as a plain module."""
    group = agent if len(stacked.weight) > 1 else 0
    layer = nn.Linear(stacked.weight.shape[2], stacked.weight.shape[1]).double()
    layer.weight.data = stacked.weight.data[group].clone()
    layer.bias.data = stacked.bias.data[group].clone()
    return layer


def randomise_biases(module):
    for name, p in module.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(p)


# Layers.


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("rows", [(ROWS,), (2, 5), (0,)])
def test_stacked_linear_is_a_loop(groups, rows):
    torch.manual_seed(0)
    layer = StackedLinear(groups, OBS, HIDDEN, 1.0).double()
    randomise_biases(layer)
    x = draw(AGENTS, *rows, OBS)
    wanted = torch.stack([linear_of(layer, a)(x[a]) for a in range(AGENTS)])
    torch.testing.assert_close(layer(x), wanted)
    strided = draw(*rows, OBS, AGENTS).movedim(-1, 0)
    wanted = torch.stack([linear_of(layer, a)(strided[a]) for a in range(AGENTS)])
    torch.testing.assert_close(layer(strided), wanted)


@pytest.mark.parametrize("groups", GROUPS)
def test_gradients_of_stacked_linear(groups):
    torch.manual_seed(0)
    layer = StackedLinear(groups, 3, 2, 1.0).double()

    def run(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    x = draw(AGENTS, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(run, (x, layer.weight, layer.bias))
    # Whether or not the input wants one.
    without, with_it = (
        torch.autograd.grad(layer(rows).square().sum(), layer.weight)[0] for rows in (x.detach(), x)
    )
    torch.testing.assert_close(without, with_it)


@pytest.mark.parametrize("orthogonal", [True, False])
def test_initialisation(orthogonal):
    torch.manual_seed(0)
    layer = StackedLinear(AGENTS, 8, 8, 0.5, orthogonal)
    for weight in layer.weight:
        square = weight @ weight.t()
        assert torch.allclose(square, 0.25 * torch.eye(8), atol=1e-5) == orthogonal
        assert weight.abs().max() <= (1 if orthogonal else 0.5 * math.sqrt(6 / 16))
    assert not layer.bias.any()
    assert not torch.equal(layer.weight[0], layer.weight[1])


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("layers", [0, 2])
def test_stacked_mlp_is_a_loop(groups, relu, layers):
    torch.manual_seed(0)
    mlp = StackedMLP(groups, OBS, HIDDEN, layers, relu, True).double()
    randomise_biases(mlp)
    x = draw(AGENTS, ROWS, OBS)
    wanted = []
    for agent in range(AGENTS):
        h = x[agent]
        for layer in mlp.layers:
            h = linear_of(layer, agent)(h)
            h = nn.LayerNorm(HIDDEN, elementwise_affine=False)(F.relu(h) if relu else h.tanh())
        wanted.append(h)
    assert len(mlp.layers) == 1 + layers
    torch.testing.assert_close(mlp(x), torch.stack(wanted))


def gru_of(stacked, agent, layers):
    """The GRU of one agent as ``torch.nn.GRU``."""
    gru = nn.GRU(HIDDEN, HIDDEN, layers).double()
    for index in range(layers):
        for kind, stack in (("ih", stacked.input), ("hh", stacked.state)):
            plain = linear_of(stack[index], agent)
            getattr(gru, f"weight_{kind}_l{index}").data = plain.weight.data
            getattr(gru, f"bias_{kind}_l{index}").data = plain.bias.data
    return gru


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("layers", [1, 2])
def test_stacked_gru_is_a_loop_that_forgets_where_an_episode_begins(groups, layers):
    torch.manual_seed(0)
    steps = 7
    stacked = StackedGRU(groups, HIDDEN, layers, True).double()
    randomise_biases(stacked)
    x, state = draw(AGENTS, steps, ROWS, HIDDEN), draw(AGENTS, ROWS, layers, HIDDEN)
    resets = torch.rand(steps, ROWS) < 0.3
    resets[0, 0], resets[0, 1] = True, False
    outputs, last = stacked(x, state, resets)
    for agent in range(AGENTS):
        gru = gru_of(stacked, agent, layers)
        for row in range(ROWS):
            h = state[agent, row].unsqueeze(1)
            for t in range(steps):
                if resets[t, row]:
                    h = torch.zeros_like(h)
                out, h = gru(x[agent, t, row].view(1, 1, -1), h)
                wanted = F.layer_norm(out[0, 0], (HIDDEN,))
                torch.testing.assert_close(outputs[agent, t, row], wanted)
            torch.testing.assert_close(last[agent, row], h.squeeze(1))


@pytest.mark.parametrize("groups", GROUPS)
def test_the_gradient_of_a_stacked_gru(groups):
    torch.manual_seed(0)
    gru = StackedGRU(groups, 3, 2, True).double()
    randomise_biases(gru)
    first = torch.tensor([[True, False], [False, False], [False, True]])
    inputs = (draw(AGENTS, 3, 2, 3).requires_grad_(), draw(AGENTS, 2, 2, 3).requires_grad_())
    assert torch.autograd.gradcheck(
        lambda x, state, *_: gru(x, state, first), (*inputs, *gru.parameters())
    )


def test_a_state_is_kept_where_no_episode_begins():
    torch.manual_seed(0)
    gru = StackedGRU(AGENTS, HIDDEN, 1, True).double()
    x, state = draw(AGENTS, 1, 2, HIDDEN), draw(AGENTS, 2, 1, HIDDEN)
    out, _ = gru(x, state, torch.tensor([[True, False]]))
    blank, _ = gru(x, torch.zeros_like(state), torch.zeros(1, 2, dtype=torch.bool))
    torch.testing.assert_close(out[:, :, 0], blank[:, :, 0])
    assert not torch.allclose(out[:, :, 1], blank[:, :, 1])


# Heads.


@pytest.mark.parametrize("groups", GROUPS)
def test_gaussian_head(groups):
    torch.manual_seed(0)
    head = GaussianHead(groups, HIDDEN, 3, 1.0, True).double()
    nn.init.normal_(head.log_std, std=0.5)
    hidden, action = draw(AGENTS, ROWS, HIDDEN), draw(AGENTS, ROWS, 3)
    normal = Normal(head.mean(hidden), head.log_std.exp().expand(AGENTS, ROWS, 3))
    log_prob, entropy = head.evaluate(outputs(head, hidden), action, None)
    torch.testing.assert_close(log_prob, normal.log_prob(action).sum(-1))
    torch.testing.assert_close(entropy, normal.entropy().sum(-1))
    drawn = head.act(outputs(head, hidden), None, False, torch.Generator().manual_seed(0))
    log_prob, _ = head.evaluate(outputs(head, hidden), drawn, None)
    torch.testing.assert_close(log_prob, normal.log_prob(drawn).sum(-1))
    likely = head.act(outputs(head, hidden), None, True, None)
    torch.testing.assert_close(likely, normal.mean)


def test_gaussian_actions_have_the_heads_moments():
    torch.manual_seed(0)
    head = GaussianHead(2, HIDDEN, 2, 1.0, True)
    head.log_std.data = torch.tensor([[[-1.0, 0.0]], [[0.5, 1.0]]])
    hidden = torch.randn(2, 1, HIDDEN)
    drawn = head.act(outputs(head, hidden.expand(2, 100_000, HIDDEN)), None, False, None)
    std = head.log_std.exp().squeeze(1)
    torch.testing.assert_close(drawn.std(1), std, rtol=0.02, atol=0)
    torch.testing.assert_close(drawn.mean(1), head.mean(hidden).squeeze(1), rtol=0, atol=0.05)


def masks():
    mask = torch.rand(AGENTS, ROWS, 5) < 0.5
    return mask | F.one_hot(torch.randint(5, (AGENTS, ROWS)), 5).bool()


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("masked", [True, False])
def test_categorical_head(groups, masked):
    torch.manual_seed(0)
    head = CategoricalHead(groups, HIDDEN, 5, 1.0, True).double()
    hidden = draw(AGENTS, ROWS, HIDDEN)
    mask = masks() if masked else None
    probs = head.logits(hidden).exp()
    if mask is not None:
        probs = probs * mask
    probs = probs / probs.sum(-1, keepdim=True)
    categorical = Categorical(probs)
    action = head.act(outputs(head, hidden), mask, False, torch.Generator().manual_seed(0))
    assert action.dtype == torch.int64
    assert mask is None or mask.gather(-1, action.unsqueeze(-1)).all()
    log_prob, entropy = head.evaluate(outputs(head, hidden), action, mask)
    torch.testing.assert_close(log_prob, categorical.log_prob(action))
    wanted = -(probs * probs.clamp(min=1e-300).log()).sum(-1)
    torch.testing.assert_close(entropy, wanted)
    likely = head.act(outputs(head, hidden), mask, True, None)
    assert torch.equal(likely, probs.argmax(-1))


def test_forbidden_actions_are_never_drawn_and_leave_gradients_finite():
    torch.manual_seed(0)
    head = CategoricalHead(1, HIDDEN, 4, 1.0, True)
    hidden = torch.randn(1, 1, HIDDEN).expand(1, 20_000, HIDDEN).clone().requires_grad_()
    mask = torch.tensor([True, False, True, False]).expand(1, 20_000, 4)
    action = head.act(outputs(head, hidden), mask, False, None)
    share = torch.bincount(action.flatten(), minlength=4) / 20_000
    logits = head.logits(hidden[:, :1]).flatten()[[0, 2]]
    torch.testing.assert_close(share[[0, 2]], logits.softmax(0).detach(), rtol=0, atol=0.02)
    assert not share[[1, 3]].any()
    log_prob, entropy = head.evaluate(outputs(head, hidden), action, mask)
    (log_prob.sum() + entropy.sum()).backward()
    for reached in (hidden, head.logits.weight):
        assert reached.grad is not None
        assert reached.grad.isfinite().all()
    only = torch.tensor([False, True, False, False]).expand(1, 20_000, 4)
    log_prob, entropy = head.evaluate(outputs(head, hidden), torch.ones_like(action), only)
    torch.testing.assert_close(log_prob, torch.zeros_like(log_prob))
    torch.testing.assert_close(entropy, torch.zeros_like(entropy), rtol=0, atol=1e-6)


# Actors and critics.

BOX, DISCRETE = spaces.Box(-1, 1, (3,)), spaces.Discrete(5)


def make_actor(space=BOX, task=TASK, **values):
    torch.manual_seed(0)
    config = PolicyConfig(algo_hidden_size=HIDDEN, layer_N=1, **values)
    return Actor(config, AGENTS, OBS, task, ActionLayout([space] * AGENTS)).double()


def test_the_observation_is_normalised_separately_from_the_task():
    """One LayerNorm over both would let the larger one drown the other."""
    body = make_actor(observation_normalization="layer").body
    obs, task = draw(AGENTS, ROWS, OBS), 100 * draw(AGENTS, ROWS, TASK)
    found = body.inputs(obs, task)
    torch.testing.assert_close(found[..., :OBS], F.layer_norm(obs, (OBS,)))
    assert torch.equal(found[..., OBS:], task)
    plain = make_actor(observation_normalization="none").body
    assert torch.equal(plain.inputs(obs, task), torch.cat([obs, task], -1))


def test_a_shared_policy_knows_whose_it_is():
    actor = make_actor(share_policy=True)
    assert {len(p) for p in actor.parameters()} == {1}
    obs = draw(1, ROWS, OBS).expand(AGENTS, -1, -1)
    inputs = actor.body.inputs(obs, None)
    for agent in range(AGENTS):
        assert torch.equal(inputs[agent, :, OBS:], torch.eye(AGENTS)[agent].expand(ROWS, -1))
    actor = make_actor(share_policy=True, task=0)
    inputs = actor.body.inputs(obs, None)
    features, _ = actor.body(inputs, None, None)
    assert not torch.allclose(features[0], features[1])


def test_own_policies_share_nothing():
    actor = make_actor()
    assert {len(p) for p in actor.parameters()} == {AGENTS}
    inputs = draw(AGENTS, ROWS, OBS + TASK)
    log_prob, _ = actor.evaluate(inputs, draw(AGENTS, ROWS, 3), None, None, None)
    log_prob[1].sum().backward()
    for p in actor.parameters():
        assert p.grad is not None
        assert p.grad[1].any()
        assert not p.grad[[0, 2]].any()


def test_the_first_policies_are_nearly_uniform():
    """The output layer's gain of 0.01: no action is preferred before anything is learned."""
    actor = make_actor(DISCRETE)
    _, entropy = actor.evaluate(
        draw(AGENTS, ROWS, OBS + TASK), torch.zeros(AGENTS, ROWS, dtype=torch.int64), *[None] * 3
    )
    assert entropy.min() > math.log(5) - 1e-3


def test_other_action_spaces_are_refused():
    for space in (spaces.Box(-1, 1, (2, 2)), spaces.Text(3)):
        with pytest.raises(ValueError, match=r"action space must .* got "):
            make_actor(space)


MEMORIES = [
    {"use_recurrent_policy": True},
    {"use_recurrent_policy": True, "recurrent_N": 2},
    {"use_naive_recurrent_policy": True},
]


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("space", [BOX, DISCRETE])
def test_chunks_are_evaluated_as_they_were_acted(memory, share, space):
    torch.manual_seed(0)
    steps, chunk = 12, 4
    actor = make_actor(space, task=0, share_policy=share, **memory)
    randomise_biases(actor)
    generator = torch.Generator().manual_seed(0)
    resets = torch.rand(steps, ROWS) < 0.2
    resets[0] = True
    mask = masks() if space is DISCRETE else None
    assert actor.body.memory is not None
    state = actor.body.memory.initial_state(AGENTS, ROWS)
    inputs, states, actions, said = [], [], [], []
    for t in range(steps):
        inputs.append(actor.body.inputs(draw(AGENTS, ROWS, OBS), None))
        states.append(state)
        action, x, state = actor.act(inputs[-1], state, resets[t : t + 1], mask, generator)
        actions.append(action)
        said.append(actor.log_probs(x, action, mask))
    for start in range(0, steps, chunk):
        part = slice(start, start + chunk)
        x, a = torch.stack(inputs[part], 1), torch.stack(actions[part], 1)
        allowed = None if mask is None else mask.repeat(1, chunk, 1)
        log_prob, _ = actor.evaluate(
            x.flatten(1, 2), a.flatten(1, 2), states[start], resets[part], allowed
        )
        wanted = torch.stack(said[part], 1).flatten(1)
        torch.testing.assert_close(log_prob, wanted, rtol=0, atol=1e-10)


def test_memory_lasts_within_an_episode_and_no_longer():
    torch.manual_seed(0)
    actor = make_actor(task=0, use_recurrent_policy=True)
    x, action = draw(AGENTS, 3, 1, OBS), draw(AGENTS, 3, 3)
    other = x.clone()
    other[:, 0] += 1
    assert actor.body.memory is not None
    state = actor.body.memory.initial_state(AGENTS, 1)
    for pattern, differs in (([True, False, False], True), ([True, False, True], False)):
        resets = torch.tensor(pattern)[:, None]
        said = [
            actor.evaluate(y.flatten(1, 2), action, state, resets, None)[0][:, 2]
            for y in (x, other)
        ]
        assert bool((said[0] != said[1]).all()) == differs
        assert differs or torch.equal(*said)


@pytest.mark.parametrize(("popart", "valuenorm"), [*itertools.product([True, False], repeat=2)])
def test_critics_have_the_normaliser_that_was_asked_for(popart, valuenorm):
    if popart and valuenorm:
        with pytest.raises(ValueError, match="use_popart=true and use_valuenorm=true"):
            PPOConfig(use_popart=popart, use_valuenorm=valuenorm)
        return
    ppo = PPOConfig(use_popart=popart, use_valuenorm=valuenorm)
    critic = Critic(PolicyConfig(algo_hidden_size=HIDDEN), ppo, AGENTS, OBS, 0)
    wanted = "PopArt" if popart else "ValueNorm" if valuenorm else "NoneType"
    assert type(critic.normaliser).__name__ == wanted
    values, _ = critic(critic.reads(torch.randn(ROWS, AGENTS, OBS)), None, None, None)
    assert values.shape == (AGENTS, ROWS)
    assert np.isfinite(values.detach().numpy()).all()
