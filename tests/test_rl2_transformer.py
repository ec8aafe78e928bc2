"""RL^2 with attention for memory: causal, cached, windowed, and of use across episodes."""

from typing import Any

import pytest
import torch
from learning_helpers import MEMORY, check_memory, paid_learner
from method_helpers import collect

from mg2l.core.schema import ConfigError
from mg2l.nn.transformer import StackedTransformer, rotate
from mg2l.training.learner import Learner

AGENTS, STEPS, ROWS, WIDTH = 3, 7, 2, 8


def transformer_learner(**values: Any) -> Learner:
    return paid_learner("rl2-transformer", **{"episodes_per_task": 2, **values})


def networks(groups: int, window: int) -> tuple[StackedTransformer, torch.Tensor, torch.Tensor]:
    memory = StackedTransformer(groups, WIDTH, 2, 2, window).double()
    x = torch.randn(AGENTS, STEPS, ROWS, WIDTH, dtype=torch.float64)
    return memory, x, memory.initial_state(AGENTS, ROWS)


NO_RESET = torch.zeros(STEPS, ROWS, dtype=torch.bool)


@pytest.mark.parametrize("window", [3, STEPS, 20])
@pytest.mark.parametrize("groups", [1, AGENTS])
def test_step_by_step_with_a_cache_is_the_whole_at_once(groups, window):
    memory, x, state = networks(groups, window)
    whole, last = memory(x, state, NO_RESET)
    full = state.new_zeros(AGENTS, ROWS, *memory.state_shape)  # what an exported agent begins with
    for t in range(STEPS):
        for name in ("growing", "full"):
            before = state if name == "growing" else full
            out, after = memory(x[:, t : t + 1], before, NO_RESET[:1])
            torch.testing.assert_close(out[:, 0], whole[:, t])
            assert after.shape[2] == min(window, before.shape[2] + 1)
            state, full = (after, full) if name == "growing" else (state, after)
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize("window", [3, STEPS])
def test_a_step_sees_the_past_within_its_window_alone(window):
    memory, x, state = networks(AGENTS, window)
    memory.blocks = memory.blocks[:1]
    state = state[..., : 2 * WIDTH + 1]
    x.requires_grad_()
    out, _ = memory(x, state, NO_RESET)
    (gradient,) = torch.autograd.grad(out[0, 5, 0].square().sum(), x)
    seen = gradient.abs().sum(-1) > 0
    wanted = torch.zeros(AGENTS, STEPS, ROWS, dtype=torch.bool)
    wanted[0, max(0, 6 - window) : 6, 0] = True  # of its own agent and environment
    assert torch.equal(seen, wanted)


def test_agents_have_weights_of_their_own():
    memory, x, state = networks(AGENTS, 20)
    whole, _ = memory(x, state, NO_RESET)
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter[1] += 1
    changed = (memory(x, state, NO_RESET)[0] - whole).abs().flatten(1).max(1).values > 1e-6
    assert changed.tolist() == [False, True, False]


def test_rotated_scores_depend_on_the_distance_alone():
    q, k = torch.randn(2, 1, 6, dtype=torch.float64)
    scores = [
        rotate(q, torch.tensor([t + 4])) @ rotate(k, torch.tensor([t])).transpose(0, 1)
        for t in (0, 3, 50)
    ]
    torch.testing.assert_close(scores[0], scores[1])
    torch.testing.assert_close(scores[0], scores[2])
    assert not torch.allclose(scores[0], q @ k.transpose(0, 1))


def test_what_was_acted_on_is_what_is_trained():
    learner = transformer_learner(gain=1.0)
    rollout, critic_latent = collect(learner, 20)
    assert rollout.states is None  # a cache for each step would fill the memory
    batch = learner.ppo.prepare(rollout, critic_latent())
    assert batch.actor_states is not None
    log_probs, _ = learner.actor.evaluate(
        batch.actor_inputs.flatten(1, 2), batch.actions.flatten(1, 2), batch.actor_states[:, 0],
        batch.reset, None,
    )  # fmt: skip
    torch.testing.assert_close(log_probs, batch.log_probs.flatten(1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"use_naive_recurrent_policy": False}, "use_naive_recurrent_policy=true"),
        ({"recurrent_reset": "episode"}, "recurrent_reset=task"),
        ({"trial_gamma": 0}, "trial_gamma above 0, got 0"),
        ({"memory_heads": 3}, "algo_hidden_size=16 must be a multiple of twice memory_heads=3"),
    ],
)
def test_what_it_cannot_run_with(values, said):
    with pytest.raises(ConfigError, match=said):
        transformer_learner(**values)


def test_it_learns_to_find_out_and_to_remember():
    check_memory(transformer_learner(**MEMORY))
