"""Actors and critics trained in turns and at the same time."""

from __future__ import annotations

import threading

import pytest
import torch
from method_helpers import known_learner, prepared

from mg2l.experience.finite import NonFiniteLossError
from mg2l.training.interleave import SideBySide, take_turns


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_turns_go_on_until_all_have_ended():
    seen = []

    def work(name, steps):
        for step in range(steps):
            seen.append(f"{name}{step}")
            yield

    take_turns(work("a", 1), work("b", 3), work("c", 2))
    assert seen == ["a0", "b0", "c0", "b1", "c1", "b2"]
    take_turns()


def test_both_run_at_the_same_time_on_half_of_the_threads(threads):
    torch.set_num_threads(5)
    meeting, found = threading.Barrier(2, timeout=30), {}

    def work(name):
        for _ in range(2):
            meeting.wait()  # neither goes on without the other
            found[name] = torch.get_num_threads()
            yield

    with SideBySide() as side_by_side:
        for _ in range(3):
            side_by_side.run(work("one"), work("two"))
    assert found == {"one": 2, "two": 3}
    assert torch.get_num_threads() == 5


def test_two_items_at_the_same_time(threads):
    torch.set_num_threads(3)
    meeting = threading.Barrier(2, timeout=30)

    def work(item):
        meeting.wait()
        return item, torch.get_num_threads(), torch.is_grad_enabled()

    with SideBySide() as side_by_side:
        assert [*side_by_side.both(work, ["a", "b"])] == [("a", 2, True), ("b", 1, True)]
        with torch.no_grad():
            assert [*side_by_side.both(work, ["a", "b"])] == [("a", 2, False), ("b", 1, False)]
    assert torch.get_num_threads() == 3


def test_errors_of_both_are_raised_when_both_have_ended(threads):
    torch.set_num_threads(2)
    ended = []

    def work(name, fails):
        yield
        ended.append(name)
        if fails:
            raise ValueError(name)

    for one, two, raised in ((True, False, "one"), (False, True, "two"), (True, True, "two")):
        ended.clear()
        with pytest.raises(ValueError, match=raised), SideBySide() as side_by_side:
            side_by_side.run(work("one", one), work("two", two))
        assert sorted(ended) == ["one", "two"]
        assert torch.get_num_threads() == 2


@pytest.mark.parametrize("algo", ["mg2l", "ma-pearl"])
@pytest.mark.parametrize("parts", [1, 3])
def test_an_update_is_the_same_on_one_thread_and_on_two(threads, algo, parts):
    results = []
    for count in (1, 2):
        torch.set_num_threads(count)
        learner = known_learner(algo, num_mini_batch=parts)
        batch, critic_latent = prepared(learner)
        metrics = learner.ppo.update(batch, critic_latent)
        modules = learner.modules().values()
        results.append([*metrics.values(), *(p.detach() for m in modules for p in m.parameters())])
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_critics_that_take_much_longer_take_turns_with_the_actors(threads, monkeypatch):
    results: list[list[torch.Tensor]] = []
    for count in (1, 2):
        torch.set_num_threads(count)
        learner = known_learner()
        beside = learner.ppo.takes_as_long
        batch, critic_latent = prepared(learner)
        with monkeypatch.context() as patch:
            patch.setattr("mg2l.training.ppo.HEAVIER", 0.5)
            patch.setattr("mg2l.training.ppo.SideBySide", None)
            assert beside
            assert not learner.ppo.takes_as_long
            learner.ppo.update(batch, critic_latent)
        results.append([p.detach() for m in learner.modules().values() for p in m.parameters()])
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("name", ["loss/policy", "loss/value"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_loss_that_is_not_finite_is_found(threads, name, count):
    torch.set_num_threads(count)
    learner = known_learner()
    batch, critic_latent = prepared(learner)
    (batch.advantages if name == "loss/policy" else batch.returns)[0, 1, 2] = torch.nan
    with pytest.raises(NonFiniteLossError, match=name):
        learner.ppo.update(batch, critic_latent)
    assert torch.get_num_threads() == count
