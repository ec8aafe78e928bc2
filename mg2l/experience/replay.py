"""Context replay: the transitions of each task, packed for sampling by index."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mg2l.core.distributed import world
from mg2l.core.transfer import to_device


@dataclass(frozen=True)
class Distinct:
    """The transitions of B contexts of T, each once in a context.

    Contexts are drawn with replacement, often from few transitions: what is computed of one is
    computed once.
    """

    rows: Tensor
    """``[U, A, F]``; without the others ``[B, T, A, F]``, all transitions, with U = B T."""

    contexts: Tensor | None = None
    """``[U]`` int64, ascending: which of the contexts each is of."""

    places: Tensor | None = None
    """``[B, T]`` int64 into the rows."""

    counts: Tensor | None = None
    """``[U]`` int64, how often each is in its context."""

    def join(self, other: Distinct) -> Distinct:
        """Both, as contexts behind each other."""
        rows = torch.cat([self.rows, other.rows])
        if self.contexts is None or self.places is None or self.counts is None:
            return Distinct(rows)
        assert other.contexts is not None
        assert other.places is not None
        assert other.counts is not None
        return Distinct(
            rows,
            torch.cat([self.contexts, other.contexts + len(self.places)]),
            torch.cat([self.places, other.places + len(self.rows)]),
            torch.cat([self.counts, other.counts]),
        )

    def repeat(self, x: Tensor) -> Tensor:
        """What belongs to the contexts, ``[B, *]``, for each of their rows: ``[U, *]``."""
        if self.contexts is None:
            return x.unsqueeze(1).expand(-1, self.rows.shape[1], *x.shape[1:]).flatten(0, 1)
        return x[self.contexts]

    def mean(self, x: Tensor) -> Tensor:
        """The mean over all transitions of what belongs to each row, ``[U, *]`` of all rows."""
        if self.counts is None:
            return x.mean(0)
        total: Tensor = torch.tensordot(self.counts.to(x.dtype), x, 1)
        return total / self.counts.sum()


@dataclass(frozen=True)
class Context:
    """B contexts of T transitions, which may be an index into the rows they were drawn from."""

    rows: Tensor
    """``[R, A, F]``, or ``[B, T, A, F]`` without an index."""

    index: Tensor | None = None
    """``[B, T]`` int64 into the rows."""

    seen: Tensor | None = None
    """``[B]`` int64, how many transitions each was drawn from; None is T."""

    agents: Tensor | None = None
    """``[A]`` int64, the agents of the rows whose transitions these are; None is all."""

    @property
    def stands_for(self) -> Tensor:
        """``[B]``, how many transitions each context stands for."""
        if self.seen is not None:
            return self.seen
        steps = self.rows.shape[:2] if self.index is None else self.index.shape
        return torch.full(steps[:1], steps[1], device=self.rows.device)

    def gather(self) -> Tensor:
        """The transitions, ``[B, T, A, F]``."""
        return self._rows(self.index)

    def _rows(self, index: Tensor | None) -> Tensor:
        """Rows ``[*]`` of an index, or all, of the agents whose transitions these are."""
        if self.agents is None:
            return self.rows if index is None else self.rows[index]
        return (
            self.rows[..., self.agents, :]
            if index is None
            else self.rows[index.unsqueeze(-1), self.agents]
        )

    @functools.cached_property
    def distinct(self) -> Distinct:
        """The transitions, each once in a context; on a GPU all, for whose number it would wait."""
        if self.index is None or self.index.device.type != "cpu":
            return Distinct(self.gather())
        keys = self.index + (torch.arange(len(self.index)) * len(self.rows)).unsqueeze(1)
        distinct, places, counts = keys.unique(return_inverse=True, return_counts=True)
        rows = self._rows(distinct % len(self.rows))
        return Distinct(rows, distinct // len(self.rows), places, counts)

    def halves(self) -> list[Context]:
        """The first and the second half of the contexts; one of them may hold none."""
        halves = (self.rows if self.index is None else self.index).tensor_split(2)
        seen = [None, None] if self.seen is None else self.seen.tensor_split(2)
        if self.index is None:
            return [replace(self, rows=x, seen=n) for x, n in zip(halves, seen, strict=True)]
        return [replace(self, index=x, seen=n) for x, n in zip(halves, seen, strict=True)]

    def own(self) -> Context:
        """This process's part of contexts that are the same in all processes."""
        seen = None if self.seen is None else world.own(self.seen)
        if self.index is None:
            return replace(self, rows=world.own(self.rows), seen=seen)
        return replace(self, index=world.own(self.index), seen=seen)


def as_context(context: Context | Tensor) -> Context:
    """Transitions ``[B, T, A, F]`` as a context."""
    return context if isinstance(context, Context) else Context(context)


def active_transitions(transitions: Tensor, active: Tensor | None) -> Tensor:
    """Transitions without those of dead agents, for contexts.

    Where an agent was dead, the transitions in which it was alive are repeated in turn. A context
    is a set drawn with replacement, each agent's on its own, so that only its living
    transitions are drawn. An agent that was never alive has transitions of zeros.

    Args:
        transitions: ``[T, N, A, F]``.
        active: ``[T, N, A]`` bool, who was alive; None is all of them.
    """
    if active is None or bool(active.all()):
        return transitions
    alive = active.sum(0)
    living_first = active.byte().argsort(dim=0, descending=True, stable=True)
    steps = torch.arange(len(active), device=active.device).view(-1, 1, 1)
    index = living_first.gather(0, steps % alive.clamp(min=1))
    repeated = transitions.gather(0, index.unsqueeze(-1).expand_as(transitions))
    return repeated * (alive > 0).unsqueeze(-1)


class ContextReplay:
    """Ring of transitions ``(o, a, r, o')`` per task: one tensor ``[K, capacity, A, F]``.

    Transitions are added a segment at a time: consecutive steps of one environment. A context is
    drawn from a few segments only. Drawn from the whole ring, contexts of one task would all
    share its average layout, by which an encoder can recognise the rings without learning
    anything about the tasks.

    Args:
        tasks: K.
        capacity: transitions kept per task; rounded down to whole segments.
        segment: steps of a segment.
        agents: A.
        features: F, observation + action + 1 + observation.
        device: device of the transitions.
        memory: bytes that all tasks' transitions may take together, which lowers the capacity of
            each where they would take more; None is no bound.

    Raises:
        ValueError: ``capacity`` does not hold one segment, or ``memory`` not one of every task.
    """

    def __init__(
        self,
        tasks: int,
        capacity: int,
        segment: int,
        agents: int,
        features: int,
        device: torch.device,
        memory: int | None = None,
    ) -> None:
        if capacity < segment:
            raise ValueError(f"capacity must be at least one segment of {segment}, got {capacity}")
        slots = capacity // segment
        if memory is not None:
            needed = 4 * tasks * segment * agents * features
            if memory < needed:
                raise ValueError(
                    f"memory must be at least {needed} bytes, one segment of {segment} transitions "
                    f"of each of {tasks} tasks, got {memory}"
                )
            slots = min(slots, memory // needed)
        # Not filled: on a CPU, pages that hold no transitions yet take no memory.
        self.data = torch.empty(tasks, slots, segment, agents, features, device=device)
        self.added = torch.zeros(tasks, dtype=torch.int64)
        self._sizes_there: Tensor | None = None

    @property
    def sizes(self) -> Tensor:
        """``[K]`` segments held of each task."""
        return self.added.clamp(max=self.data.shape[1])

    def add(self, task: int, transitions: Tensor) -> None:
        """Append a segment ``[segment, A, F]`` of one task, overwriting its oldest."""
        self.data[task, int(self.added[task]) % self.data.shape[1]] = transitions
        self.added[task] += 1
        self._sizes_there = None

    def sample(
        self,
        tasks: Tensor,
        length: int,
        segments: int,
        generator: Any,
        fewest: int = 0,
        *,
        seen: Tensor | None = None,
        run: int = 1,
    ) -> Context:
        """Draw contexts with replacement, for the tasks of this process's rows.

        Args:
            tasks: ``[B]`` int64.
            length: T.
            segments: how many segments a context's transitions come from.
            generator: source of randomness, on the device of the transitions.
            fewest: if not 0, a context's transitions come from a number of segments that is
                log-uniform between this and ``segments``.
            seen: ``[B]`` int64, at least 1: transitions of a context come from the first as many of
                its segments, one after the other; None is all of them.
            run: if above 1, as many consecutive transitions are drawn together.

        Returns:
            Contexts ``[B, T, A, F]``, as an index into the replay.

        Raises:
            ValueError: a task has no transitions yet.
        """
        if int(self.added.min()) == 0:
            empty = sorted({task for task in tasks.tolist() if not self.added[task]})
            if empty:
                raise ValueError(f"tasks {empty} have no transitions in the context replay yet")
        device = self.data.device
        tasks = to_device(tasks, device) if tasks.device.type == "cpu" else tasks
        if self._sizes_there is None:
            self._sizes_there = to_device(self.sizes, device)
        sizes = self._sizes_there[tasks]
        slots, steps = self.data.shape[1:3]
        batch = len(tasks)

        def uniform(shape: list[int]) -> Tensor:
            return torch.rand(shape, generator=generator, device=device)

        def integers(most: int) -> Tensor:
            def draw(shape: list[int]) -> Tensor:
                return torch.randint(most, shape, generator=generator, device=device)

            return world.draw(draw, (batch, length))

        def fewer(drawn: Tensor) -> Tensor:
            return (fewest * (segments / fewest) ** drawn).round().long()

        held = world.draw(uniform, (batch, segments)) * sizes.unsqueeze(1)
        if run > 1:
            most = torch.full_like(tasks, segments * steps) if seen is None else seen
            if seen is None and fewest:
                most = fewer(world.draw(uniform, (batch, 1))).squeeze(1) * steps
            start = world.draw(uniform, (batch, -(-length // run))).double() * most.unsqueeze(1)
            each = start.long().unsqueeze(-1) + torch.arange(run, device=device)
            drawn = each.flatten(1)[:, :length] % most.unsqueeze(1)
            which, step = drawn // steps, drawn % steps
        elif seen is None:
            which = integers(segments)
            if fewest:
                which %= fewer(world.draw(uniform, (batch, 1)))
            step = integers(steps)
        else:
            drawn = (world.draw(uniform, (batch, length)).double() * seen.unsqueeze(1)).long()
            which, step = drawn // steps, drawn % steps
        segment = held.long().gather(1, which) + (tasks * slots).unsqueeze(1)
        return Context(self.data.flatten(0, 2), segment * steps + step, seen)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything needed to continue bit for bit, without empty rows."""
        sizes = self.sizes
        held = self.data[:, : int(sizes.max())]
        held[(torch.arange(held.shape[1]) >= sizes.unsqueeze(1)).to(held.device)] = 0
        return {"data": held, "added": self.added}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore `state_dict`."""
        self.data[:, : state["data"].shape[1]] = state["data"]
        self.added.copy_(state["added"])
        self._sizes_there = None
