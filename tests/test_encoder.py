"""From a context's transitions to one vector per agent, and to Gaussians."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mg2l.algorithms.mg2l.config import MG2LConfig
from mg2l.algorithms.mg2l.encoder import TaskEncoder, TransitionAggregator
from mg2l.algorithms.mg2l.objective import Objective
from mg2l.algorithms.transition_encoder import TransitionMoments
from mg2l.estimators.gaussian import STD_FLOOR
from mg2l.nn.aggregators import GaussianProduct, PIAHead

FORMS = [
    ("pia", 0),
    ("pia", 2),
    ("transformer", 1),
    ("transformer", 2),
    ("rnn", 0),
    ("gaussian_product", 0),
    ("mean", 0),
]
SETS = [form for form in FORMS if form[0] != "rnn"]
CONTEXTS, LENGTH, AGENTS, FEATURES = 3, 7, 4, 5


def make_encoder(form=("pia", 0), agents=AGENTS, **values):
    torch.manual_seed(0)
    aggregator, blocks = form
    config = MG2LConfig(
        context_dim=8, n_heads=2, hidden_sizes_mlp=[16], aggregator=aggregator, n_blocks=blocks,
        **values,
    )  # fmt: skip
    return TaskEncoder(config, agents, FEATURES).double()


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


# Who sees what.


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("agent", range(AGENTS))
def test_an_agent_sees_only_its_own_transitions_and_z_the_teams(form, agent):
    encoder = make_encoder(form, bounded_by="none")
    context = draw(CONTEXTS, LENGTH, AGENTS, FEATURES)
    others = context.clone()
    others[:, :, torch.arange(AGENTS) != agent] = draw(CONTEXTS, LENGTH, AGENTS - 1, FEATURES)
    before, after = encoder(context), encoder(others)
    for was, now in zip(before.local, after.local, strict=True):
        torch.testing.assert_close(was[:, agent], now[:, agent])
        for other in set(range(AGENTS)) - {agent}:
            assert ((was[:, other] - now[:, other]).abs().amax(-1) > 1e-6).all()
    assert ((before.task.mean - after.task.mean).abs().amax(-1) > 1e-6).all()
    assert ((before.task.std - after.task.std).abs().amax(-1) > 1e-8).all()


@pytest.mark.parametrize("form", FORMS)
def test_every_transition_counts(form):
    """A context is not cut short, and no agent's axis is taken for that of time."""
    encoder = make_encoder(form, bounded_by="none")
    context = draw(CONTEXTS, LENGTH, AGENTS, FEATURES).requires_grad_()
    assert encoder.aggregator(context).shape == (CONTEXTS, AGENTS, 8)
    encoder(context).local.mean[1, 2].square().sum().backward()
    assert context.grad is not None
    touched = context.grad.abs().sum(-1) > 0
    wanted = torch.zeros_like(touched)
    wanted[1, :, 2] = True
    assert torch.equal(touched, wanted)


def test_local_losses_can_be_cut_off_from_the_encoder():
    encoder = make_encoder(FORMS[0], bounded_by="none", local_to_encoder=False)
    context = draw(CONTEXTS, LENGTH, AGENTS, FEATURES).requires_grad_()
    encoder(context).local.mean.sum().backward()
    assert context.grad is None
    assert all(p.grad is not None for p in encoder.local.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_contexts_of_a_batch_do_not_meet(form):
    encoder = make_encoder(form)
    context = draw(CONTEXTS, LENGTH, AGENTS, FEATURES)
    together = encoder(context)
    for b in range(CONTEXTS):
        alone = encoder(context[b : b + 1])
        torch.testing.assert_close(together.task.mean[b], alone.task.mean[0])
        torch.testing.assert_close(together.local.mean[b], alone.local.mean[0])


@pytest.mark.parametrize("form", SETS)
def test_the_order_of_transitions_does_not_matter(form):
    encoder = make_encoder(form)
    context = draw(CONTEXTS, LENGTH, AGENTS, FEATURES)
    # Each context and agent in an order of its own: nothing but a set may be read.
    order = torch.rand(CONTEXTS, LENGTH, AGENTS).argsort(1)
    shuffled = context.gather(1, order.unsqueeze(-1).expand_as(context))
    before, after = encoder(context), encoder(shuffled)
    torch.testing.assert_close(before.local.mean, after.local.mean)
    torch.testing.assert_close(before.task.mean, after.task.mean)


def test_a_recurrent_aggregator_does_read_the_order():
    encoder = make_encoder(("rnn", 0))
    context = draw(CONTEXTS, LENGTH, AGENTS, FEATURES)
    before, after = encoder(context), encoder(context.flip(1))
    assert not torch.allclose(before.local.mean, after.local.mean)


@pytest.mark.parametrize("form", FORMS)
def test_the_order_of_agents_does_not_matter_to_z(form):
    encoder = make_encoder(form)
    context = draw(CONTEXTS, LENGTH, AGENTS, FEATURES)
    before, after = encoder(context), encoder(context[:, :, torch.tensor([2, 0, 3, 1])])
    torch.testing.assert_close(before.task.mean, after.task.mean)
    torch.testing.assert_close(before.task.std, after.task.std)


def test_agents_have_their_own_local_networks():
    encoder = make_encoder()
    context = draw(CONTEXTS, LENGTH, 1, FEATURES).expand(-1, -1, AGENTS, -1)
    mean = encoder(context).local.mean
    assert not torch.allclose(mean[:, 0], mean[:, 1])
    x = encoder.aggregator(context)
    torch.testing.assert_close(x[:, 0], x[:, 1])  # what is before them is shared


# The algebra of the attention head.


def literal_pia(head, x):
    """``W_o sum_t softmax_t(q . W_k x_t / sqrt(d)) (W_v x_t + b_v) + b_o``, one t at a time."""
    logits = torch.stack(
        [(head.key(x[..., t, :]) * head.query).sum(-1) for t in range(x.shape[-2])], -1
    ) / math.sqrt(x.shape[-1])
    weights = logits.softmax(-1)
    values = [head.value(x[..., t, :]) for t in range(x.shape[-2])]
    pooled = torch.stack([w.unsqueeze(-1) * v for w, v in zip(weights.unbind(-1), values,
                                                              strict=True)]).sum(0)  # fmt: skip
    return head.output(pooled), weights


@pytest.mark.parametrize("shape", [(1,), (9,), (3, 9), (2, 3, 9)])
@pytest.mark.parametrize("before", [True, False])
def test_pia_pooling_is_the_literal_composition(shape, before):
    torch.manual_seed(1)
    width, hidden_width = 6, 11
    head = PIAHead(width, 4).double()
    layer = nn.Linear(hidden_width, width).double() if before else None
    hidden = 3 * draw(*shape, hidden_width if before else width)
    wanted, weights = literal_pia(head, hidden if layer is None else layer(hidden))
    found, found_weights = head.pool(hidden, layer)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(found_weights, weights, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        found_weights.sum(-1), torch.ones(shape[:-1], dtype=torch.float64), rtol=0, atol=1e-12
    )
    if layer is None:
        torch.testing.assert_close(head(hidden), wanted, rtol=0, atol=1e-12)


def test_pia_pooling_has_the_gradients_of_the_literal_composition():
    torch.manual_seed(1)
    head, layer = PIAHead(6, 4).double(), nn.Linear(11, 6).double()
    hidden = draw(3, 9, 11).requires_grad_()
    wanted_from = [hidden, *layer.parameters(), *head.parameters()]
    cotangent = draw(3, 4)
    gradients = [
        torch.autograd.grad((out * cotangent).sum(), wanted_from)
        for out in (head.pool(hidden, layer)[0], literal_pia(head, layer(hidden))[0])
    ]
    for found, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("blocks", [0, 2])
def test_the_aggregator_is_mlp_blocks_and_head(blocks):
    encoder = make_encoder(("pia", blocks))
    aggregator = encoder.aggregator
    assert len(aggregator.blocks) == blocks
    context = draw(CONTEXTS, LENGTH, AGENTS, FEATURES)
    hidden = context
    for layer in aggregator.layers:
        hidden = F.gelu(layer(hidden))
    x = aggregator.output(hidden).transpose(1, 2)
    for block in aggregator.blocks:
        x = literal_block(block, x)
    wanted, weights = literal_pia(aggregator.aggregate, x)
    torch.testing.assert_close(aggregator(context), wanted, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(aggregator.priorities(context), weights, rtol=1e-9, atol=1e-10)


def literal_block(block, x):
    """Attention, Add & Norm, feed forward, Add & Norm, one head at a time."""
    width = x.shape[-1]
    q, k, v = block.qkv(x).split(width, -1)
    size = width // block.heads
    heads = []
    for h in range(block.heads):
        part = slice(h * size, (h + 1) * size)
        weights = (q[..., part] @ k[..., part].transpose(-1, -2) / math.sqrt(size)).softmax(-1)
        heads.append(weights @ v[..., part])
    x = block.norm1(x + block.output(torch.cat(heads, -1)))
    return block.norm2(x + block.feed_forward(x))


def test_gaussian_product_is_the_product_of_its_factors():
    torch.manual_seed(0)
    aggregate = GaussianProduct(3, 2).double()
    x = draw(4, 6, 3)
    factors = aggregate.factor(x)
    mean, variance = factors[..., :3], F.softplus(factors[..., 3:]) + 1e-6
    left, spread = mean[:, 0], variance[:, 0]
    for t in range(1, 6):  # two at a time, by the rule for two Gaussians
        total = spread + variance[:, t]
        left = (left * variance[:, t] + mean[:, t] * spread) / total
        spread = spread * variance[:, t] / total
    wanted = aggregate.output(torch.cat([left, spread.log()], -1))
    torch.testing.assert_close(aggregate(x), wanted)


@pytest.mark.parametrize("form", [form for form in FORMS if form[0] != "pia"])
def test_priorities_need_an_attention_head(form):
    encoder = make_encoder(form)
    with pytest.raises(ValueError, match="priorities need aggregator 'pia'"):
        encoder.aggregator.priorities(draw(1, LENGTH, AGENTS, FEATURES))


# Standardised transitions.


def test_moments_are_those_of_all_transitions():
    torch.manual_seed(0)
    moments = TransitionMoments(FEATURES)
    parts = [draw(size, 3, 2, FEATURES) * 5 + torch.arange(FEATURES) for size in (4, 9, 1)]
    for part in parts:
        moments.update(part)
    rows = torch.cat([part.flatten(0, -2) for part in parts])
    assert moments.count == len(rows)
    torch.testing.assert_close(moments.mean, rows.mean(0))
    torch.testing.assert_close(moments.variance, rows.var(0, unbiased=False))


def test_standardising_is_folded_into_the_first_layer():
    torch.manual_seed(0)
    encoder = make_encoder()
    context = draw(CONTEXTS, LENGTH, AGENTS, FEATURES) * 4 + 3
    context[..., -1] = 2.0  # a feature that never changes
    rows = context.flatten(0, -2)
    standard = (context - rows.mean(0)) / rows.var(0, unbiased=False).clamp(min=1e-6).sqrt()
    wanted = encoder(standard)
    encoder.aggregator.moments.update(context)
    found = encoder(context)
    torch.testing.assert_close(found.task.mean, wanted.task.mean)
    torch.testing.assert_close(found.local.mean, wanted.local.mean)
    assert not torch.allclose(encoder(standard).task.mean, wanted.task.mean)


def test_moments_travel_with_the_state():
    encoder, other = make_encoder(), make_encoder()
    encoder.aggregator.moments.update(draw(50, FEATURES) * 4)
    other.load_state_dict(copy.deepcopy(encoder.state_dict()))
    context = draw(CONTEXTS, LENGTH, AGENTS, FEATURES)
    assert torch.equal(encoder(context).task.mean, other(context).task.mean)


# Gaussians.


@pytest.mark.parametrize("form", FORMS)
def test_means_live_on_the_sphere_and_spreads_above_the_floor(form):
    encoder = make_encoder(form)
    task, local = encoder(draw(CONTEXTS, LENGTH, AGENTS, FEATURES) * 100)
    for q in (task, local):
        torch.testing.assert_close(q.mean.norm(dim=-1), torch.full_like(q.mean[..., 0], 8**0.5))
        assert q.std.min() >= STD_FLOOR
    assert task.mean.shape == (CONTEXTS, 8)
    assert local.mean.shape == (CONTEXTS, AGENTS, 8)


def test_unbounded_means_are_left_alone():
    encoder = make_encoder(bounded_by="none")
    z = draw(3, 8)
    assert encoder.project(z) is z
    norms = encoder(draw(CONTEXTS, LENGTH, AGENTS, FEATURES)).task.mean.norm(dim=-1)
    assert norms.std() > 1e-3


def test_a_point_has_no_spread():
    encoder = make_encoder(dist="deterministic")
    task, local = encoder(draw(CONTEXTS, LENGTH, AGENTS, FEATURES))
    assert not task.std.any()
    assert not local.std.any()
    assert torch.equal(task.sample(), task.mean)


def test_infer_task_is_the_global_half():
    encoder = make_encoder()
    context = draw(CONTEXTS, LENGTH, AGENTS, FEATURES)
    assert torch.equal(encoder.infer_task(context).mean, encoder(context).task.mean)


# Learning.


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_of_order_one_at_the_start(form):
    """With gain 0.01 in every layer they were 4e-8."""
    encoder = make_encoder(form, bounded_by="none", score="dot", keys="context").float()
    objective = Objective(encoder.config, 3, encoder, torch.Generator().manual_seed(0))
    tasks = torch.arange(30) % 3
    contexts = (
        torch.randn(33, LENGTH, AGENTS, FEATURES)
        + torch.cat([tasks, torch.arange(3)])[:, None, None, None]
    )
    loss, _ = objective(contexts[:30], tasks, contexts[30:], encoder)
    loss.backward()
    for name, module in encoder.named_children():
        squares = [p.grad.square().sum() for p in module.parameters() if p.grad is not None]
        norm = float(torch.stack(squares).sum().sqrt())
        assert 1e-2 < norm < 1e3, name
    first = encoder.aggregator.layers[0]
    assert isinstance(first, nn.Linear)
    assert first.weight.grad is not None
    assert first.weight.grad.norm() > 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_every_parameter_is_registered_and_gets_a_gradient(form):
    """Layers kept in Python lists would be neither saved nor optimised."""
    encoder = make_encoder(form)
    task, local = encoder(draw(CONTEXTS, LENGTH, AGENTS, FEATURES))
    (task.mean.sum() + task.std.sum() + (local.mean * draw(8)).sum() + local.std.sum()).backward()
    unreached = [name for name, p in encoder.named_parameters() if p.grad is None]
    assert unreached == []
    clone = make_encoder(form)
    for p in clone.parameters():
        nn.init.zeros_(p)
    clone.load_state_dict(encoder.state_dict())
    context = draw(CONTEXTS, LENGTH, AGENTS, FEATURES)
    assert torch.equal(clone(context).local.mean, encoder(context).local.mean)


def test_deeper_transition_encoders():
    torch.manual_seed(0)
    config = MG2LConfig(context_dim=8, hidden_sizes_mlp=[12, 10, 6])
    aggregator = TransitionAggregator(config, FEATURES)
    sizes = [layer.weight.shape for layer in aggregator.layers if isinstance(layer, nn.Linear)]
    assert sizes == [(12, FEATURES), (10, 12), (6, 10)]
    assert aggregator(torch.randn(2, LENGTH, AGENTS, FEATURES)).shape == (2, AGENTS, 8)


def test_a_transition_encoder_needs_a_layer():
    with pytest.raises(
        ValueError, match=r"hidden_sizes_mlp must have at least one layer, got \[\]"
    ):
        MG2LConfig(hidden_sizes_mlp=[])
