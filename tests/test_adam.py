"""Adam equals torch's, in numbers and in the form of its state."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from mg2l.nn.adam import Adam, clip_grad_norm
from mg2l.ops import backend


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape)) for shape in [(2, 5, 3), (2, 5), (4,)]]


def step(ours, theirs, optimisers, skipped: int | None = None) -> None:
    for i, (one, two) in enumerate(zip(ours, theirs, strict=True)):
        gradient = None if i == skipped else torch.randn(one.shape)
        one.grad, two.grad = gradient, None if gradient is None else gradient.clone()
    for optimiser in optimisers:
        optimiser.step()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_steps_and_states_are_those_of_torch(weight_decay):
    ours, theirs = parameters(), parameters()
    options = {"lr": 1e-2, "eps": 1e-5, "weight_decay": weight_decay}
    pair: list[Any] = [Adam(ours, **options), torch.optim.Adam(theirs, **options, fused=True)]
    for i in range(3):  # a parameter that got no gradient yet has no moments
        step(ours, theirs, pair, skipped=2 if i < 2 else None)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    states = [optimiser.state_dict() for optimiser in pair]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    assert states[0]["state"].keys() == states[1]["state"].keys()
    # Each continues from the state of the other.
    for optimiser, state in zip(pair, states[::-1], strict=True):
        optimiser.load_state_dict(copy.deepcopy(state))
    for skipped in (None, 1, 1, 0, None):
        step(ours, theirs, pair, skipped)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    counts = [[int(x["step"]) for x in o.state_dict()["state"].values()] for o in pair]
    assert counts[0] == counts[1] == [7, 6, 6]


def test_a_state_that_is_loaded_is_a_copy_and_options_stay():
    ours = parameters()
    first, second = Adam(ours, 1e-2), Adam(ours, 1e-3, eps=1e-3, weight_decay=0.1)
    step(ours, parameters(), [first])
    second.load_state_dict(first.state_dict())
    (group,) = second.param_groups
    assert (group["lr"], group["eps"], group["weight_decay"]) == (1e-2, 1e-3, 0.1)
    held = second.state[ours[0]]["exp_avg"].clone()
    first.step()
    assert torch.equal(second.state[ours[0]]["exp_avg"], held)


@pytest.mark.parametrize("wrong", [3, torch.zeros(7)])
def test_moments_of_other_parameters_are_refused(wrong):
    ours = parameters()
    optimiser = Adam(ours, 1e-2)
    step(ours, parameters(), [optimiser])
    state = optimiser.state_dict()
    state["state"] = {0: {**state["state"][0], "exp_avg": wrong}}
    with pytest.raises(ValueError, match=r"exp_avg of parameter 0 must have shape \[2, 5, 3\]"):
        optimiser.load_state_dict(state)


@pytest.mark.parametrize("ops", [backend.NATIVE, backend.TORCH])
@pytest.mark.parametrize("limit", [0.5, 1e3, float("inf")])
def test_clipping_is_that_of_torch(limit, ops):
    ours, theirs = parameters(), parameters()
    step(ours, theirs, [], skipped=1)
    norm = clip_grad_norm(ours, limit, ops)
    torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(theirs, limit))
    for one, two in zip(ours, theirs, strict=True):
        assert (one.grad is None) == (two.grad is None)
        if one.grad is not None and two.grad is not None:
            torch.testing.assert_close(one.grad, two.grad)
