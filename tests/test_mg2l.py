"""Global and local losses: what is paired with what, and whom the gradients reach."""

import itertools
import math

import pytest
import torch
from torch import nn

from mg2l.algorithms.base import Encoding
from mg2l.algorithms.losses import leave_one_out
from mg2l.algorithms.mg2l.config import MG2LConfig
from mg2l.algorithms.mg2l.encoder import TaskEncoder
from mg2l.algorithms.mg2l.objective import Objective
from mg2l.estimators.gaussian import Gaussian, kl_between, kl_to_standard

TASKS, AGENTS, LENGTH, FEATURES = 3, 2, 4, 5
ORDER = torch.tensor([2, 0, 1, 1, 0, 2, 2])  # neither sorted nor balanced, and no multiple of K, A


def config_of(**values):
    return MG2LConfig(context_dim=8, n_heads=2, hidden_sizes_mlp=[16], **values)


def make(seed=0, **values):
    """A real encoder, its objective, queries and the contexts of their keys; in float64."""
    torch.manual_seed(seed)
    config = config_of(**values)
    encoder = TaskEncoder(config, AGENTS, FEATURES)
    noise = torch.Generator().manual_seed(seed)
    objective = Objective(config, TASKS, encoder, noise).double()
    queries = torch.randn(len(ORDER), LENGTH, AGENTS, FEATURES).double()
    keys = torch.randn(len(objective.key_tasks(ORDER)), LENGTH, AGENTS, FEATURES).double()
    return objective, encoder, queries, keys


class Reader(nn.Module):
    """Says what is written in a context: its task for ``z``, and for agent ``i``'s own ``z^i``
    the task plus ``shift * i``, a language that agents do not share."""

    def __init__(self, size, shift):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(float(size)).double())
        self.shift = shift

    def forward(self, context):
        task = context[:, 0, 0, 0].long()
        agents = torch.arange(AGENTS)
        codes = self.scale * torch.eye(TASKS).double()
        local = codes[(task[:, None] + self.shift * agents) % TASKS]
        return Encoding(
            Gaussian(codes[task], torch.ones(len(task), TASKS).double()),
            Gaussian(local, torch.ones_like(local)),
        )

    def project(self, z):
        return z


def written(tasks):
    return tasks.double()[:, None, None, None].expand(-1, LENGTH, AGENTS, FEATURES)


def read(shift, size=1.5, **values):
    """Metrics of an objective whose encoder reads what is written."""
    config = config_of(score="dot", temperature=1.0, kl_weight=0.0, **values)
    reader = Reader(size, shift)
    objective = Objective(config, TASKS, reader, torch.Generator())  # type: ignore[arg-type]
    if objective.task_keys is not None:
        objective.task_keys.data = torch.eye(TASKS).double() * size
    keys = written(objective.key_tasks(ORDER)) if objective.needs_keys else None
    return objective(written(ORDER), ORDER, keys, reader)[1]


def perfect(size):
    """InfoNCE where the positive scores ``size^2`` and all others 0."""
    return math.log(TASKS) + size**2 - math.log(math.exp(size**2) + TASKS - 1)


@pytest.mark.parametrize("negatives", ["shared", "independent"])
@pytest.mark.parametrize("query", ["own", "joint"])
def test_each_agents_query_meets_its_own_key_of_its_own_task(negatives, query):
    metrics = read(1, keys="context", negatives=negatives, local_query=query)
    assert metrics["accuracy/local"] == 1
    assert metrics["accuracy/global"] == 1
    # A joint query scores twice: once with z, once with z^i.
    wanted = perfect(1.5 if query == "own" else 1.5 * 2**0.5)
    assert metrics["mi/local"].item() == pytest.approx(wanted, rel=1e-6)
    assert metrics["mi/global"].item() == pytest.approx(perfect(1.5), rel=1e-6)
    assert metrics["loss/local"].item() == pytest.approx(-AGENTS * wanted, rel=1e-6)
    assert metrics["loss/global"].item() == pytest.approx(-perfect(1.5), rel=1e-6)


@pytest.mark.parametrize("negatives", ["shared", "independent"])
@pytest.mark.parametrize(
    "form", [{"keys": "task"}, {"keys": "task", "local_objective": "mi"},
             {"keys": "context", "local_objective": "mi"}]
)  # fmt: skip
def test_where_all_agents_meet_the_same_keys_they_must_speak_one_language(form, negatives):
    metrics = read(0, negatives=negatives, **form)
    assert metrics["accuracy/local"] == 1
    assert metrics["mi/local"].item() == pytest.approx(perfect(1.5), rel=1e-6)
    metrics = read(1, negatives=negatives, **form)
    assert metrics["accuracy/local"] == 1 / AGENTS  # agent 0 alone speaks that of z


def test_the_operator_computes_what_the_parts_do(monkeypatch):
    """The losses of the defaults, their metrics and gradients."""
    objective, _, queries, _ = make(kl_weight=0.3)
    found = []
    for at_once in (True, False):
        assert objective._at_once
        if not at_once:
            monkeypatch.setattr(Objective, "_at_once", False)
        objective.noise.manual_seed(1)
        loss, metrics = objective(queries, ORDER, None, objective.encoder)
        parameters = [p for p in objective.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        found.append((loss, metrics, gradients))
    (loss, metrics, gradients), (other, others, wanted) = found
    torch.testing.assert_close(loss, other)
    assert metrics.keys() == others.keys()
    assert {"mi/gap", "mi/l1out"} < metrics.keys()
    for name, value in metrics.items():
        torch.testing.assert_close(value, others[name], check_dtype=False)
    for a, b in zip(gradients, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("keys", ["task", "context"])
@pytest.mark.parametrize("local_objective", ["conditional_mi", "mi"])
def test_shared_and_independent_negatives_agree_where_contexts_do(keys, local_objective):
    results = []
    for negatives in ("shared", "independent"):
        objective, encoder, queries, _ = make(
            keys=keys, negatives=negatives, local_objective=local_objective
        )
        contexts = torch.randn(
            TASKS, LENGTH, AGENTS, FEATURES, generator=torch.Generator().manual_seed(5)
        ).double()
        picked = objective.key_tasks(ORDER)
        assert len(picked) == (TASKS if negatives == "shared" else TASKS * len(ORDER))
        loss, metrics = objective(queries, ORDER, contexts[picked], encoder)
        loss.backward()
        gradients = {name: p.grad for name, p in encoder.named_parameters()}
        results.append((loss, metrics["mi/local"], metrics["mi/global"], gradients))
    torch.testing.assert_close(*results)


def test_independent_negatives_are_each_querys_own():
    objective, encoder, queries, keys = make(keys="context", negatives="independent")
    other = keys.clone().view(len(ORDER), TASKS, LENGTH, AGENTS, FEATURES)
    other[4] += 1.0

    def per_query(contexts):
        found = []
        for b in range(len(ORDER)):
            part = contexts.view(len(ORDER), TASKS, LENGTH, AGENTS, FEATURES)[b]
            metrics = objective(queries[b : b + 1], ORDER[b : b + 1], part, encoder)[1]
            found.append(torch.stack([metrics["mi/global"], metrics["mi/local"]]))
        return torch.stack(found)

    before, after = per_query(keys), per_query(other)
    together = objective(queries, ORDER, keys, encoder)[1]
    torch.testing.assert_close(
        torch.stack([together["mi/global"], together["mi/local"]]), before.mean(0)
    )
    changed = (before != after).any(1)
    assert changed.tolist() == [b == 4 for b in range(len(ORDER))]
    together = objective(queries, ORDER, other.flatten(0, 1), encoder)[1]
    torch.testing.assert_close(together["mi/global"], after[:, 0].mean())


# Whom the gradients reach.

FORMS = [
    dict(zip(("keys", "negatives", "local_objective", "score"), choice, strict=True))
    for choice in itertools.product(
        ["task", "context"],
        ["shared", "independent"],
        ["conditional_mi", "mi", "kl", "none"],
        ["cosine", "bilinear"],
    )
]


def touched(objective):
    """Parts whose parameters got a gradient."""
    found = set()
    for name, p in objective.named_parameters():
        if p.grad is not None and bool(p.grad.any()):
            part, _, rest = name.partition(".")
            found.add(rest.partition(".")[0] if part == "encoder" else part)
    return found


@pytest.mark.parametrize("values", FORMS, ids=lambda values: "-".join(values.values()))
@pytest.mark.parametrize("query", ["own", "joint"])
@pytest.mark.parametrize("to_encoder", [True, False], ids=["to encoder", "cut off"])
def test_the_local_loss_trains_what_agents_infer_with_and_the_global_loss_all_else(
    values, query, to_encoder
):
    objective, encoder, queries, keys = make(
        local_query=query, local_to_encoder=to_encoder, **values
    )
    context_keys = keys if objective.needs_keys else None
    metrics = objective(queries, ORDER, context_keys, encoder)[1]
    if values["local_objective"] == "none":
        assert not metrics["loss/local"].requires_grad
        assert metrics["loss/local"] == 0
    else:
        metrics["loss/local"].backward(retain_graph=True)
        assert touched(objective) == {"local"} | ({"aggregator"} if to_encoder else set())
        objective.zero_grad()
    metrics["loss/global"].backward()
    wanted = {"aggregator", "over_agents"}
    wanted |= {"task_keys"} if values["keys"] == "task" else set()
    wanted |= {"bilinear"} if values["score"] == "bilinear" else set()
    assert touched(objective) == wanted


@pytest.mark.parametrize("values", FORMS[::2], ids=lambda values: "-".join(values.values()))
def test_the_slow_copy_of_the_encoder_is_never_trained(values):
    objective, _, queries, keys = make(**values)
    slow = make(seed=1, **values)[1]
    loss, _ = objective(queries, ORDER, keys if objective.needs_keys else None, slow)
    loss.backward()
    assert all(p.grad is None for p in slow.parameters())


def test_the_loss_is_the_sum_of_both():
    objective, encoder, queries, keys = make(keys="context")
    loss, metrics = objective(queries, ORDER, keys, encoder)
    torch.testing.assert_close(loss, metrics["loss/global"] + metrics["loss/local"])


def test_a_joint_query_starves_once_z_knows_the_task_and_an_own_one_does_not():
    """Why ``local_query: own`` is the default."""
    norms = {}
    for query in ("own", "joint"):
        objective, encoder, queries, _ = make(
            local_query=query, score="dot", bounded_by="none", kl_weight=0.0
        )
        with torch.no_grad():
            encoder.over_agents.output.weight.zero_()
            encoder.over_agents.output.bias.copy_(100 * torch.eye(16)[0])  # z is a code ...
            objective.task_keys.copy_(-torch.eye(TASKS, 8))
            objective.task_keys[0] *= -1  # ... that of task 0
        tasks = torch.zeros(len(ORDER), dtype=torch.int64)
        objective(queries, tasks, None, encoder)[1]["loss/local"].backward()
        gradients = [p.grad for p in encoder.local.parameters()]
        norms[query] = float(torch.stack([g.norm() for g in gradients if g is not None]).norm())
    assert norms["own"] > 100 * norms["joint"]


# Values of the terms.


def test_the_gap_is_leave_one_out_minus_the_local_bound():
    objective, encoder, queries, _ = make()
    before = objective.noise.get_state()
    metrics = objective(queries, ORDER, None, encoder)[1]
    objective.noise.set_state(before)
    task = encoder(queries).task
    upper = leave_one_out(task, task.sample(objective.noise))
    torch.testing.assert_close(metrics["mi/l1out"], upper)
    torch.testing.assert_close(metrics["mi/gap"], upper - metrics["mi/local"])
    assert not metrics["mi/gap"].requires_grad


def test_kl_terms_and_their_weight():
    weights = (0.0, 0.7)
    losses = []
    for weight in weights:
        objective, encoder, queries, _ = make(bounded_by="none", kl_weight=weight)
        metrics = objective(queries, ORDER, None, encoder)[1]
        losses.append((metrics["loss/global"], metrics["loss/local"]))
    task, local = encoder(queries)
    about_task = kl_to_standard(task).mean()
    torch.testing.assert_close(losses[1][0] - losses[0][0], 0.7 * about_task)
    torch.testing.assert_close(metrics["kl/global"], about_task)
    about_local = kl_to_standard(local).mean(0).sum()
    torch.testing.assert_close(losses[1][1] - losses[0][1], 0.7 * about_local)


def test_the_kl_objective_draws_each_agent_to_z():
    objective, encoder, queries, _ = make(local_objective="kl", bounded_by="none")
    metrics = objective(queries, ORDER, None, encoder)[1]
    task, local = encoder(queries)
    parts = [
        kl_between(Gaussian(local.mean[:, i], local.std[:, i]), task).mean() for i in range(AGENTS)
    ]
    torch.testing.assert_close(metrics["loss/local"], torch.stack(parts).sum())


def test_of_points_kl_is_half_a_squared_distance():
    """It would be infinite for Gaussians without a spread."""
    objective, encoder, queries, _ = make(
        dist="deterministic", bounded_by="none", local_objective="kl", kl_weight=1.0
    )
    loss, metrics = objective(queries, ORDER, None, encoder)
    task, local = encoder(queries)
    torch.testing.assert_close(metrics["kl/global"], 0.5 * task.mean.square().sum(-1).mean())
    offset = local.mean - task.mean.unsqueeze(1)
    torch.testing.assert_close(metrics["loss/local"], 0.5 * offset.square().sum(-1).mean(0).sum())
    loss.backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters() if p.grad is not None)
    assert "mi/gap" not in metrics  # a point has no density


@pytest.mark.parametrize("contrast", ["mean", "sample"])
def test_samples_are_contrasted_only_where_asked_for(contrast):
    objective, encoder, queries, _ = make(contrast=contrast)
    first = objective(queries, ORDER, None, encoder)[1]["mi/global"]
    second = objective(queries, ORDER, None, encoder)[1]["mi/global"]
    assert bool(first == second) == (contrast == "mean")


@pytest.mark.parametrize("score", ["dot", "cosine", "bilinear"])
def test_scores_make_a_difference_but_for_a_bilinear_form_at_its_start(score):
    objective, encoder, queries, _ = make(score=score, bounded_by="none")
    found = objective(queries, ORDER, None, encoder)[1]["mi/global"]
    objective, encoder, queries, _ = make(score="dot", bounded_by="none")
    dot = objective(queries, ORDER, None, encoder)[1]["mi/global"]
    assert bool(torch.isclose(found, dot)) == (score != "cosine")


def test_temperature_divides_scores():
    objective, encoder, queries, _ = make(score="dot", temperature=0.5)
    found = objective(queries, ORDER, None, encoder)[1]["mi/global"]
    z = encoder(queries).task.mean
    scores = z @ encoder.project(objective.task_keys).t() / 0.5
    wanted = math.log(TASKS) + scores.log_softmax(1)[torch.arange(len(ORDER)), ORDER].mean()
    torch.testing.assert_close(found, wanted)
