"""FiLM and hypernetworks: what they compute, where they begin, and what else works with them."""

import pytest
import torch
from method_helpers import tiny_learner

from mg2l.deploy import export
from mg2l.deploy.policy import Policy
from mg2l.deploy.reference import References
from mg2l.nn.conditioning import FiLM, HyperHead, Latents
from mg2l.nn.stacked import StackedLinear
from mg2l.training.loop import iterate

AGENTS, ROWS, LATENT, WIDTH = 2, 5, 3, 4


def stir(module):
    """Parameters as if it had been trained."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))


def test_a_hypernetwork_makes_the_weights_of_a_linear_head():
    hyper, head = HyperHead(AGENTS, LATENT, WIDTH, 2), StackedLinear(AGENTS, 5 * 3, 6, 1.0)
    stir(hyper)
    stir(head)
    features, z = torch.randn(AGENTS, ROWS, WIDTH), torch.randn(AGENTS, ROWS, LATENT)
    found = head(hyper(features, z))
    embedding = hyper.generator(z)
    for agent in range(AGENTS):
        bases = head.weight[agent].view(6, 3, 5)  # [out, 1 and embedding, features and bias]
        for row in range(ROWS):
            weight = bases[:, 0] + torch.einsum("oeh,e->oh", bases[:, 1:], embedding[agent, row])
            wanted = weight[:, :WIDTH] @ features[agent, row] + weight[:, WIDTH]
            torch.testing.assert_close(found[agent, row], wanted + head.bias[agent])


def test_film_scales_and_shifts():
    film = FiLM(AGENTS, LATENT, WIDTH)
    features, z = torch.randn(AGENTS, ROWS, WIDTH), torch.randn(AGENTS, ROWS, LATENT)
    torch.testing.assert_close(film(features, z), features)  # before training
    stir(film)
    scale, shift = film.generator(z).chunk(2, -1)
    torch.testing.assert_close(film(features, z), features + scale * features + shift)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("groups", [1, AGENTS])
@pytest.mark.parametrize("want", [False, True])
@pytest.mark.parametrize("kind", [FiLM, HyperHead])
def test_gradients_without_a_graph(kind, want, groups, shared):
    sizes = (groups, LATENT, WIDTH) if kind is FiLM else (groups, LATENT, WIDTH, 2)
    module = kind(*sizes).double()
    stir(module)
    latents, index = (2, torch.tensor([1, 0, 1, 1, 0])) if shared else (ROWS, None)
    features = torch.randn(AGENTS, ROWS, WIDTH, dtype=torch.float64, requires_grad=True)
    z = torch.randn(AGENTS, latents, LATENT, dtype=torch.float64, requires_grad=True)
    wanted = module(features, z, index)
    rows = z if index is None else z[:, index]
    torch.testing.assert_close(wanted, module(features, rows))  # each once, or each for its row
    grad = torch.randn_like(wanted)
    parameters = list(module.parameters())
    gradients = torch.autograd.grad(module(features, rows), [features, z, *parameters], grad)
    assert module.has_vjp
    with torch.no_grad():
        y, pull = module.vjp(features.detach(), Latents(z.detach(), index), want)
        to_features, to_latent = pull(grad)
    torch.testing.assert_close(y, wanted.detach())
    torch.testing.assert_close(to_features, gradients[0])
    assert (to_latent is not None) == want
    if to_latent is not None:
        torch.testing.assert_close(to_latent, gradients[1])
    for parameter, gradient in zip(parameters, gradients[2:], strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize("kind", ["film", "hyper"])
@pytest.mark.parametrize("algo", ["mg2l", "oracle", "rl2", "varibad"])
def test_training_and_export(algo, kind):
    values = {"episodes_per_task": 1, "share_policy": algo == "oracle"}
    learner = tiny_learner(algo, conditioning=kind, hyper_dim=3, **values)
    before = [p.detach().clone() for p in learner.actor.parameters()]
    iterate(learner, 0)
    assert not all(
        torch.equal(a, b) for a, b in zip(before, learner.actor.parameters(), strict=True)
    )
    stir(learner.actor.body)
    references = References(learner)
    for agent in range(2):
        network = Policy(learner.actor, agent)
        for reference in references.policy(agent):
            found = network(**reference.inputs)
            for got, wanted in zip(found, reference.outputs, strict=True):
                torch.testing.assert_close(got.double(), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["film", "hyper"])
def test_policies_depend_on_the_latent_after_training_alone(kind):
    learner = tiny_learner("oracle", conditioning=kind, gain=1.0)
    body, head = learner.actor.body, learner.actor.head
    observations = torch.randn(2, ROWS, learner.spec.observation)

    def means():
        z = torch.randn(2, ROWS, learner.inference.actor_latent_dim)
        return head.raw(body(body.inputs(observations, z), None, None)[0])[0]

    torch.testing.assert_close(means(), means())
    loss = means().square().sum()
    loss.backward()
    assert body.condition is not None
    gradient = body.condition.generator.output.weight.grad
    assert gradient is not None
    assert bool(gradient.any())
    stir(body.condition)
    assert not torch.allclose(means(), means())


def test_without_latent_and_memory_there_is_nothing_to_condition_on():
    for kind in ("film", "hyper"):
        learner = tiny_learner("mappo", conditioning=kind)
        assert learner.actor.body.condition is None
        assert learner.critic.body.condition is None
    tiny_learner("mappo", conditioning="film", use_naive_recurrent_policy=True)


@pytest.mark.ci
def test_an_exported_team_with_a_hypernetwork(tmp_path):
    learner = tiny_learner("rl2-transformer", conditioning="hyper", episodes_per_task=2)
    export.write_team(learner, tmp_path / "out", [0])
