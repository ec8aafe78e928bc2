"""The context replay: a ring of segments per task."""

import pytest
import torch
from method_helpers import known_learner

from mg2l.core.schema import ConfigError
from mg2l.experience.replay import Context, ContextReplay

TASKS, SEGMENT, AGENTS, FEATURES, SLOTS = 3, 5, 2, 4, 4


def make(capacity=SLOTS * SEGMENT, tasks=TASKS, memory=None):
    device = torch.device("cpu")
    return ContextReplay(tasks, capacity, SEGMENT, AGENTS, FEATURES, device, memory)


def segment(task, number):
    """Transitions that say ``(task, number of the segment, step, agent)``."""
    rows = torch.zeros(SEGMENT, AGENTS, FEATURES)
    rows[..., 0], rows[..., 1] = task, number
    rows[..., 2] = torch.arange(SEGMENT)[:, None]
    rows[..., 3] = torch.arange(AGENTS)
    return rows


def filled(counts, **values):
    replay = make(**values)
    for task, count in enumerate(counts):
        for number in range(count):
            replay.add(task, segment(task, number))
    return replay


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_oldest_segment_goes_first():
    replay = filled([0, SLOTS + 2, 1])
    assert replay.sizes.tolist() == [0, SLOTS, 1]
    held = replay.data[1, :, 0, 0, 1].tolist()
    assert sorted(held) == [2, 3, 4, 5]
    replay.add(1, segment(1, SLOTS + 2))
    assert sorted(replay.data[1, :, 0, 0, 1].tolist()) == [3, 4, 5, 6]
    assert torch.equal(replay.data[2, 0], segment(2, 0))


def test_capacity_is_in_transitions_rounded_down_to_segments():
    assert make(capacity=SLOTS * SEGMENT + 4).data.shape == (
        TASKS, SLOTS, SEGMENT, AGENTS, FEATURES,
    )  # fmt: skip
    with pytest.raises(ValueError, match="capacity must be at least one segment of 5, got 4"):
        make(capacity=4)


def test_memory_bounds_the_capacity_of_every_task():
    one = 4 * TASKS * SEGMENT * AGENTS * FEATURES
    sizes = (TASKS, SLOTS * SEGMENT, SEGMENT, AGENTS, FEATURES, torch.device("cpu"))
    for memory, slots in ((one, 1), (2 * one - 1, 1), (3 * one, 3), (10 * one, SLOTS)):
        replay = ContextReplay(*sizes, memory)
        assert replay.data.shape[1] == slots
        assert replay.data.nbytes <= memory
    with pytest.raises(ValueError, match=f"memory must be at least {one} bytes.*got {one - 1}"):
        ContextReplay(*sizes, one - 1)


def test_a_bound_that_is_not_reached_changes_nothing():
    counts, tasks = [1, 3, SLOTS + 3], torch.tensor([2, 0, 1])
    bounded = make(memory=10**6)
    for task, count in enumerate(counts):
        for number in range(count):
            bounded.add(task, segment(task, number))
    free = filled(counts).sample(tasks, 9, 2, generator()).gather()
    assert torch.equal(bounded.sample(tasks, 9, 2, generator()).gather(), free)


def test_what_is_saved_of_a_task_with_fewer_segments_is_zero():
    replay = make()
    replay.data.fill_(float("nan"))
    for number in range(2):
        replay.add(1, segment(1, number))
    saved = replay.state_dict()["data"]
    assert saved.shape[1] == 2
    assert not saved[0].any()
    assert torch.equal(saved[1, 1], segment(1, 1))


@pytest.mark.parametrize("segments", [1, 2, 50])
def test_a_context_is_of_its_task_and_of_what_is_held(segments):
    counts = [1, 3, SLOTS + 3]
    replay = filled(counts)
    tasks = torch.tensor([2, 0, 1, 1, 2, 0, 0, 2])
    context = replay.sample(tasks, 300, segments, generator()).gather()
    assert context.shape == (len(tasks), 300, AGENTS, FEATURES)
    for row, task in zip(context, tasks.tolist(), strict=True):
        assert (row[..., 0] == task).all()
        assert torch.equal(row[..., 3], torch.arange(AGENTS).float().expand(300, AGENTS))
        assert torch.equal(row[:, 0, :3], row[:, 1, :3])  # agents at the same moment
        seen = set(row[:, 0, 1].long().tolist())
        assert len(seen) <= segments
        assert seen <= set(range(max(0, counts[task] - SLOTS), counts[task]))
        assert set(row[:, 0, 2].long().tolist()) == set(range(SEGMENT))
        if segments == 50:
            assert len(seen) == min(counts[task], SLOTS)


def test_segments_and_steps_are_drawn_evenly():
    replay = filled([SLOTS], tasks=1)
    context = replay.sample(torch.zeros(20_000, dtype=torch.int64), 1, 1, generator()).gather()
    cell = (context[:, 0, 0, 1] * SEGMENT + context[:, 0, 0, 2]).long()
    share = torch.bincount(cell, minlength=SLOTS * SEGMENT) / len(cell)
    torch.testing.assert_close(share, torch.full((SLOTS * SEGMENT,), 1 / 20), rtol=0, atol=0.008)


@pytest.mark.parametrize("fewest", [0, 1])
def test_runs_are_consecutive(fewest):
    replay = filled([SLOTS] * TASKS)
    tasks = torch.arange(TASKS).repeat(50)
    seen = torch.arange(1, 151).clamp(max=3 * SEGMENT)
    for known in (None, seen):
        if known is not None and fewest:
            continue
        context = replay.sample(tasks, 10, 3, generator(), fewest, seen=known, run=4)
        assert context.index is not None
        assert context.index.shape == (150, 10)
        step, task = context.index % SEGMENT, context.index // (SLOTS * SEGMENT)
        assert torch.equal(task, tasks.unsqueeze(1).expand(-1, 10))
        for first in (0, 4, 8):
            before, after = step[:, first : first + 4][:, :-1], step[:, first + 1 : first + 4]
            follows = (after == before + 1) | (after == 0)  # of the next segment
            assert follows.all()
            if known is None:
                assert (after == before + 1).float().mean() > 0.7
        if known is not None:
            assert (step < known.unsqueeze(1)).all()
    one = replay.sample(tasks, 9, 1, generator(), seen=torch.full((150,), SEGMENT), run=3)
    assert one.index is not None
    segments = one.index // SEGMENT
    assert torch.equal(segments, segments[:, :1].expand(-1, 9))


def test_contexts_of_one_task_differ():
    replay = filled([SLOTS] * TASKS)
    context = replay.sample(torch.zeros(2, dtype=torch.int64), 30, 2, generator()).gather()
    assert not torch.equal(context[0], context[1])


def test_sampling_repeats_with_its_generator_and_leaves_the_data_alone():
    replay = filled([SLOTS] * TASKS)
    before = replay.data.clone()
    tasks = torch.tensor([0, 1, 2])
    first, second = (replay.sample(tasks, 9, 2, generator(3)).gather() for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, replay.sample(tasks, 9, 2, generator(4)).gather())
    first.zero_()
    assert torch.equal(replay.data, before)


def test_what_is_added_is_copied():
    replay, rows = make(), segment(0, 0)
    replay.add(0, rows)
    rows.zero_()
    assert torch.equal(replay.data[0, 0], segment(0, 0))


@pytest.mark.parametrize(("counts", "named"), [([1, 0, 2], r"\[1\]"), ([0, 2, 0], r"\[0, 2\]")])
def test_empty_tasks_are_named(counts, named):
    replay = filled(counts)
    with pytest.raises(ValueError, match=rf"tasks {named} have no transitions"):
        replay.sample(torch.tensor([2, 0, 1, 0]), 3, 2, generator()).gather()
    held = [task for task, count in enumerate(counts) if count]
    replay.sample(torch.tensor(held), 3, 2, generator())  # the others can be drawn from


@pytest.mark.parametrize("counts", [[1, 0, 3], [SLOTS, SLOTS + 1, 2 * SLOTS + 3]])
def test_state_round_trip(counts):
    replay = filled(counts)
    state = {name: value.clone() for name, value in replay.state_dict().items()}
    other = make()
    other.load_state_dict(state)
    for task, count in enumerate(counts):  # both keep overwriting the same segments
        for one in (replay, other):
            one.add(task, segment(task, count))
    tasks = torch.tensor([0, 1, 2, 2, 1])
    one, two = (r.sample(tasks, 40, 3, generator(1)).gather() for r in (replay, other))
    assert torch.equal(one, two)
    assert torch.equal(replay.sizes, other.sizes)


def test_the_state_holds_no_more_than_is_held():
    assert filled([1, 0, 2]).state_dict()["data"].shape[1] == 2


def test_a_replay_that_memory_cannot_hold_is_refused_by_its_key():
    with pytest.raises(
        ConfigError, match="replay_memory=1 MB holds no episode of max_ep_len=20000"
    ):
        known_learner("mg2l", max_ep_len=20_000, ae_buffer_size=20_000, replay_memory=1)


def test_distinct_transitions_are_those_of_each_context():
    torch.manual_seed(0)
    rows = torch.randn(6, 2, 3)
    index, more = torch.tensor([[4, 1, 4, 4], [1, 0, 5, 1]]), torch.tensor([[3, 3, 1, 3]])
    context = Context(rows, index)
    drawn = context.distinct
    assert drawn.repeat(torch.tensor([0, 1])).tolist() == [0, 0, 1, 1, 1]
    assert drawn.counts is not None
    assert drawn.counts.tolist() == [1, 3, 1, 2, 1]
    assert drawn.places is not None
    assert torch.equal(drawn.rows[drawn.places], context.gather())
    torch.testing.assert_close(drawn.mean(drawn.rows), context.gather().mean((0, 1)))
    other = Context(rows, more)
    both = drawn.join(other.distinct)
    wanted = Context(rows, torch.cat([index, more])).distinct
    for name in ("rows", "contexts", "places", "counts"):
        assert torch.equal(getattr(both, name), getattr(wanted, name))


def test_transitions_without_an_index_are_all_distinct():
    rows = torch.randn(2, 4, 2, 3)
    drawn = Context(rows).distinct
    assert drawn.places is None
    assert torch.equal(drawn.rows, rows)
    assert drawn.repeat(torch.tensor([0, 1])).tolist() == [0] * 4 + [1] * 4
    torch.testing.assert_close(drawn.mean(rows.flatten(0, 1)), rows.mean((0, 1)))
    both = drawn.join(Context(rows[:1]).distinct)
    assert torch.equal(both.rows, torch.cat([rows, rows[:1]]))
    assert both.places is None


def test_contexts_of_some_agents():
    torch.manual_seed(0)
    rows, some = torch.randn(6, 3, 2), torch.tensor([2, 0])
    index = torch.tensor([[4, 1, 4], [1, 0, 5]])
    wanted = rows[index][:, :, some]
    drawn, whole = Context(rows, index, agents=some), Context(rows[index], agents=some)
    for context in (drawn, whole):
        assert torch.equal(context.gather(), wanted)
        assert torch.equal(context.own().gather(), wanted)
        assert torch.equal(torch.cat([half.gather() for half in context.halves()]), wanted)
    assert drawn.distinct.places is not None
    assert torch.equal(drawn.distinct.rows[drawn.distinct.places], wanted)
    assert torch.equal(whole.distinct.rows, wanted)


def test_contexts_know_how_many_transitions_they_stand_for():
    rows, index = torch.randn(20, 2, 3), torch.arange(12).view(4, 3)
    assert Context(rows, index).stands_for.tolist() == [3] * 4
    assert Context(rows.view(4, 5, 2, 3)).stands_for.tolist() == [5] * 4
    for context in (Context(rows, index, torch.arange(4)),
                    Context(rows.view(4, 5, 2, 3), seen=torch.arange(4))):  # fmt: skip
        assert [x.stands_for.tolist() for x in context.halves()] == [[0, 1], [2, 3]]
        assert context.own().stands_for.tolist() == [0, 1, 2, 3]


def test_a_sample_knows_what_it_was_drawn_from():
    replay = filled([2] * TASKS)
    tasks, seen = torch.tensor([0, 1]), torch.tensor([1, 7])
    assert replay.sample(tasks, 5, 2, generator(), seen=seen).stands_for.tolist() == [1, 7]
    assert replay.sample(tasks, 5, 2, generator(), run=3).stands_for.tolist() == [5, 5]
