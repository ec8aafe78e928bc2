"""Teams whose agents differ in kind of action space, widths, counts and masks."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from method_helpers import TINY, outputs
from mixed_envs import SPACES, WIDTHS, Yard, YardConfig
from torch.distributions import Categorical, Normal
from torch.nn import functional as F

from mg2l.config import files as loading
from mg2l.deploy import export
from mg2l.deploy.agent import Agent
from mg2l.envs import registry
from mg2l.envs.actions import ActionLayout
from mg2l.envs.random_actions import random_actions
from mg2l.experience.transitions import Transitions
from mg2l.nn.distributions import FactoredHead, GaussianHead, MixedHead, make_head
from mg2l.nn.normaliser import LayerNorm
from mg2l.training.learner import Learner
from mg2l.training.loop import iterate

HIDDEN, ROWS = 8, 6
TEAMS = {
    "mixed": SPACES,
    "widths": (Box(-1, 1, (1,)), Box(-1, 1, (3,)), Box(-2, 2, (2,))),
    "counts": (Discrete(3), Discrete(5), Discrete(2)),
    "choices": (MultiDiscrete([2, 4]), Discrete(3), MultiBinary(3)),
    "equal choices": (MultiDiscrete([2, 4]),) * 3,
    "box beside discrete": (Box(-1, 1, (1,)), Discrete(5)),
}


@pytest.fixture(params=TEAMS.values(), ids=[name.replace(" ", "-") for name in TEAMS])
def layout(request):
    return ActionLayout(request.param)


@pytest.fixture
def yard():
    """The name of a family."""
    registry.register("yard", YardConfig, Yard)
    return "yard"


def make(layout, groups=None):
    torch.manual_seed(0)
    head = make_head(layout, groups or len(layout.spaces), HIDDEN, 1.0, True).double()
    for name, parameter in head.named_parameters():
        if name.endswith(("log_std", "bias")):
            torch.nn.init.normal_(parameter, std=0.5)
    return head


def draw_mask(layout, rows=ROWS):
    """``[A, rows, options]``, of every choice at least one option."""
    mask = torch.zeros(len(layout.spaces), rows, layout.options, dtype=torch.bool)
    for agent, counts in enumerate(layout.counts):
        parts = [
            (torch.rand(rows, n) < 0.5) | F.one_hot(torch.randint(n, (rows,)), n).bool()
            for n in counts
        ]
        if parts:
            mask[agent, :, : sum(counts)] = torch.cat(parts, -1)
    return mask


def reference(head, layout, agent, hidden, action, mask):
    """Log-probability and entropy of one agent, distribution by distribution."""
    raw = dict(zip(head.outputs, head.raw(hidden), strict=True))
    if layout.sizes[agent]:
        size = layout.sizes[agent]
        normal = Normal(*(raw[name][agent, :, :size] for name in ("action_mean", "action_std")))
        return normal.log_prob(action[agent, :, :size]).sum(-1), normal.entropy().sum(-1)
    counts = layout.counts[agent]
    logits = raw["logits"][agent, :, : sum(counts)]
    if mask is not None:
        logits = logits.masked_fill(~mask[agent, :, : sum(counts)], -1e9)
    parts = [Categorical(logits=part) for part in logits.split(counts, -1)]
    chosen = action[agent].reshape(len(hidden[agent]), -1)[:, : len(counts)].long()
    log_probs = [part.log_prob(a) for part, a in zip(parts, chosen.unbind(-1), strict=True)]
    return sum(log_probs), sum(part.entropy() for part in parts)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("share", [True, False])
def test_heads_equal_distributions_agent_by_agent(layout, masked, share):
    head = make(layout, 1 if share else None)
    agents = len(layout.spaces)
    hidden = torch.randn(agents, ROWS, HIDDEN, dtype=torch.float64)
    mask = draw_mask(layout) if masked and layout.choices else None
    for deterministic in (False, True):
        action = head.act(
            outputs(head, hidden), mask, deterministic, torch.Generator().manual_seed(0)
        )
        assert action.shape == (agents, ROWS, *layout.shape)
        log_prob, entropy = head.evaluate(outputs(head, hidden), action, mask)
        for agent in range(agents):
            wanted = reference(head, layout, agent, hidden, action, mask)
            torch.testing.assert_close(log_prob[agent], wanted[0])
            torch.testing.assert_close(entropy[agent], wanted[1])
        within = layout.within(
            action.transpose(0, 1).detach().numpy()
        )  # choices exist, padding is 0
        if layout.shape:
            own = np.maximum(layout.sizes, [len(counts) for counts in layout.counts])
            assert not within[:, np.arange(layout.shape[0]) >= own[:, None]].any()


def test_padding_has_no_gradient_and_does_not_count(layout):
    head = make(layout)
    agents = len(layout.spaces)
    hidden = torch.randn(agents, ROWS, HIDDEN, dtype=torch.float64)
    mask = draw_mask(layout) if layout.choices else None
    with torch.no_grad():
        action = head.act(outputs(head, hidden), mask, False, torch.Generator().manual_seed(0))
    before = head.evaluate(outputs(head, hidden), action, mask)
    (before[0].sum() + before[1].sum()).backward()
    for name, parameter in head.named_parameters():
        numbers = "mean" in name or "log_std" in name
        for agent in range(agents):
            own = layout.sizes[agent] if numbers else sum(layout.counts[agent])
            axis = -1 if name.endswith(("log_std", "bias")) else -2
            gradient = parameter.grad[agent].movedim(axis, 0)
            assert gradient.isfinite().all()
            assert not gradient[own:].any(), (name, agent)
            assert not numbers or not own or gradient[:own].any()
    # Nor does what stands in padding matter.
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            numbers = "mean" in name or "log_std" in name
            for agent in range(agents):
                own = layout.sizes[agent] if numbers else sum(layout.counts[agent])
                axis = -1 if name.endswith(("log_std", "bias")) else -2
                parameter[agent].movedim(axis, 0)[own:] += 3.0
        if layout.shape:
            for agent in range(agents):
                own = layout.sizes[agent] or len(layout.counts[agent])
                action[agent, :, own:] = 7
        after = head.evaluate(outputs(head, hidden), action, mask)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one.detach(), other, rtol=0, atol=0)


def test_the_kinds_of_heads():
    kinds = {name: type(make(ActionLayout(spaces))) for name, spaces in TEAMS.items()}
    assert kinds == {
        "mixed": MixedHead,
        "widths": GaussianHead,
        "counts": FactoredHead,
        "choices": FactoredHead,
        "equal choices": FactoredHead,
        "box beside discrete": MixedHead,
    }


def test_forbidden_options_are_never_drawn():
    layout = ActionLayout(SPACES)
    head = make(layout).float()
    mask = draw_mask(layout, 1).expand(-1, 4000, -1)
    hidden = torch.randn(3, 1, HIDDEN).expand(-1, 4000, -1)
    action = head.act(outputs(head, hidden), mask, False, torch.Generator().manual_seed(0))
    logits = head.raw(hidden)[-1]
    for agent, counts in enumerate(layout.counts):
        start = 0
        for choice, n in enumerate(counts):
            part = slice(start, start + n)
            share = torch.bincount(action[agent, :, choice].long(), minlength=n) / 4000
            wanted = logits[agent, 0, part].masked_fill(~mask[agent, 0, part], -math.inf)
            torch.testing.assert_close(share, wanted.softmax(-1).detach(), rtol=0, atol=0.03)
            assert not share[~mask[agent, 0, part]].any()
            start += n


# The layout.


def test_actions_in_transitions(layout):
    """Each agent's as it would be alone: numbers first, then choices one-hot."""
    agents = len(layout.spaces)

    class Spec:
        actions, transition, observation, action = layout, 0, 0, layout.width
        device = torch.device("cpu")

    transitions = Transitions(Spec())  # type: ignore[arg-type]
    head = make(layout).float()
    hidden = torch.randn(agents, ROWS, HIDDEN)
    action = head.act(outputs(head, hidden), None, False, torch.Generator().manual_seed(0))
    action = 2 * action if layout.numbers and not layout.choices else action
    found = transitions.actions(action.transpose(0, 1))
    assert found.shape == (ROWS, agents, layout.width)
    for agent, space in enumerate(layout.spaces):
        wanted = torch.zeros(ROWS, layout.width)
        if isinstance(space, Box):
            size = space.shape[0]
            low, high = torch.as_tensor(space.low), torch.as_tensor(space.high)
            wanted[:, :size] = action[agent, :, :size].clamp(low, high)
        else:
            start = layout.numbers
            rows = action[agent].reshape(ROWS, -1)
            for choice, n in enumerate(layout.counts[agent]):
                one_hot = F.one_hot(rows[:, choice].long(), n)
                wanted[:, start : start + n] = one_hot
                start += n
        torch.testing.assert_close(found[:, agent], wanted)


def test_random_actions_lie_within_and_keep_to_masks():
    env = Yard(YardConfig(max_ep_len=5), 50)
    _, info = env.reset(0)
    rng = np.random.default_rng(0)
    for _ in range(6):
        actions = random_actions(env, rng, info)
        np.testing.assert_array_equal(env.action_layout.within(actions), actions)
        mask = info["action_mask"]
        rows = np.arange(50)
        assert mask[rows, 1, actions[:, 1, 0].astype(int)].all()
        assert mask[rows, 2, 2 + actions[:, 2, 1].astype(int)].all()
        assert len(np.unique(actions[:, 2, 1])) == 3
        info = env.step(actions)[4]


def test_actions_outside_of_their_spaces_are_refused():
    layout = ActionLayout(SPACES)
    actions = np.zeros((4, 3, 2))
    actions[:, 0] = [3.0, -3.0]
    actions[:, 1, 1] = 99  # padding
    within = layout.within(actions)
    np.testing.assert_array_equal(within[0], [[1, -1], [0, 0], [0, 0]])
    for at, value, message in (
        ((2, 1, 0), 3, r"actions must be in \[0, 3\), got 3.0 of agent 1, choice 0"),
        ((0, 2, 1), -1, r"in \[0, 4\), got -1.0 of agent 2, choice 1"),
        ((0, 2, 0), 0.5, r"in \[0, 2\), got 0.5 of agent 2, choice 0"),
        ((0, 0, 0), math.nan, "actions must be numbers, got NaN"),
    ):
        wrong = actions.copy()
        wrong[at] = value
        with pytest.raises(ValueError, match=message):
            layout.within(wrong)
    with pytest.raises(ValueError, match="actions must be integers, got float64"):
        ActionLayout(TEAMS["choices"]).within(np.zeros((1, 3, 3)))
    with pytest.raises(ValueError, match="a team must have at least one agent"):
        ActionLayout([])


def test_layer_norm_counts_what_an_agent_observes():
    own = torch.arange(5) < torch.tensor(WIDTHS).view(-1, 1, 1)
    norm = LayerNorm(5, own)
    x = torch.randn(3, ROWS, 5) * own
    for agent, width in enumerate(WIDTHS):
        wanted = F.pad(F.layer_norm(x[agent, :, :width], (width,)), (0, 5 - width))
        torch.testing.assert_close(norm(x)[agent], wanted)


# Training.

ALGORITHMS = loading.available("algo")


def learner(folder: Path, algo: str, **values: Any) -> Learner:
    (folder / "yard.yaml").write_text("family: yard\n")
    values = {**TINY, "n_agents": 3, "data_chunk_length": 5, **values}
    config = loading.load_config("default", algo, str(folder / "yard.yaml"), values)
    return Learner(config, torch.device("cpu"))


@pytest.mark.parametrize(
    ("algo", "share"), [*((algo, False) for algo in ALGORITHMS), ("mg2l", True), ("rl2", True)]
)
def test_every_algorithm_trains_a_yard(tmp_path, yard, algo, share):
    team = learner(tmp_path, algo, share_policy=share)
    team.prepare()
    for iteration in range(2):
        before = [parameter.clone() for parameter in team.actor.head.parameters()]
        metrics = iterate(team, iteration)
        assert all(np.isfinite(v) for v in metrics.values() if isinstance(v, float))
    # One Gaussian of two numbers, one of two options that are allowed, and of two and three.
    wanted = (2 * (0.5 + 0.5 * math.log(2 * math.pi)) + math.log(2) + math.log(6)) / 3
    assert metrics["entropy"] == pytest.approx(wanted, abs=0.02)
    for name, old in zip(dict(team.actor.head.named_parameters()), before, strict=True):
        new = dict(team.actor.head.named_parameters())[name]
        assert not torch.equal(old, new)
        if share:
            continue
        numbers = name.startswith("numbers")
        for agent, own in enumerate((2, 0, 0) if numbers else (0, 3, 6)):
            axis = -1 if name.endswith(("log_std", "bias")) else -2
            moved = (new - old)[agent].movedim(axis, 0)
            assert not moved[own:].any()  # padding never learns
    team.close()


@pytest.mark.parametrize("values", [{"observation_normalization": "layer"}, {"gpu_id": -1}])
def test_ratios_are_1_before_the_first_step(tmp_path, yard, values):
    team = learner(tmp_path, "rl2", **values)
    team.prepare()
    tasks = team.draw_tasks()
    rollout = team.collect(tasks)
    batch = team.ppo.prepare(rollout, team.inference.critic_latent(tasks, rollout)())
    for part, _ in team.ppo.minibatches(batch):
        assert part.action_mask is not None
        log_prob, _ = team.actor.evaluate(
            part.actor_inputs.flatten(1, 2),
            part.actions.flatten(1, 2),
            part.actor_states,
            part.reset,
            part.action_mask.flatten(1, 2),
        )
        torch.testing.assert_close(log_prob, part.log_probs.flatten(1), rtol=0, atol=1e-5)
    team.close()


def test_a_team_learns_its_goal(tmp_path, yard):
    rates = {"actor_lr": 5e-3, "critic_lr": 5e-3, "ppo_epoch": 10, "n_iters": 12}
    team = learner(tmp_path, "oracle", n_rollout_threads=32, max_ep_len=20, **rates)
    team.prepare()
    rewards = []
    for iteration in range(12):
        tasks = team.draw_tasks()
        team.decay_learning_rates(iteration)
        rollout = team.collect(tasks)
        team.update_policy(rollout, tasks)
        rewards.append(rollout.rewards.mean((0, 1)))
    assert bool((rewards[-1] > 0.7 * rewards[0]).all()), rewards  # of every agent
    team.close()


def test_exported_agents_have_their_own_heads(tmp_path, yard):
    team = learner(tmp_path, "rl2")
    team.prepare()
    for iteration in range(2):
        iterate(team, iteration)
    written = export.write_team(team, tmp_path / "export")
    assert written["action"] is None
    assert [entry["action"] for entry in written["agents"]] == [
        {"kind": "box", "low": [-1.0] * 2, "high": [1.0] * 2},
        {"kind": "discrete", "n": 3, "first": 2},
        {"kind": "choices", "counts": [2, 4], "first": 2},
    ]
    assert [entry.get("observation") for entry in written["agents"]] == [3, 4, None]
    deviations = [v for entry in written["agents"] for v in entry["deviation"].values()]
    assert max(deviations) < 1e-5
    layout, transitions = team.env.action_layout, team.inference.transitions
    agents = [Agent(tmp_path / "export", i, seed=0) for i in range(3)]
    for _ in range(20):
        seen = [np.random.default_rng(0).normal(size=w).astype(np.float32) for w in WIDTHS]
        actions = [
            agents[0].act(seen[0]),
            agents[1].act(seen[1], [False, True, True]),
            agents[2].act(seen[2], [False, True, True, True, True, False]),
        ]
        assert actions[0].shape == (2,)
        assert actions[1] in (1, 2)
        assert actions[2][0] == 1
        assert actions[2][1] in (0, 1, 2)
        joint = np.zeros((1, 3, 2))
        joint[0, 0], joint[0, 1, 0], joint[0, 2] = actions
        layout.within(joint)
        if transitions is not None:
            rows = transitions.join(
                torch.tensor(np.stack([np.pad(s, (0, 5 - len(s))) for s in seen]))[None],
                torch.tensor(joint, dtype=torch.float32),
                torch.ones(1, 3),
                torch.tensor(np.stack([np.pad(s, (0, 5 - len(s))) for s in seen]))[None],
            )
            for index, (agent, one, action) in enumerate(zip(agents, seen, actions, strict=True)):
                row = agent.transition(one, action, 1.0, one)
                np.testing.assert_allclose(row, rows[0, index].numpy())
                agent.observe(one, action, 1.0, one)
    with pytest.raises(ValueError, match=r"observation must have shape \(3,\), got \(5,\)"):
        agents[0].act(np.zeros(5))
    with pytest.raises(ValueError, match="mask must be"):
        agents[2].act(seen[2], [False, False, True, True, True, True])
    team.close()
