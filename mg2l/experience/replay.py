"""Context replay: the transitions of each task, packed for sampling by index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Context:
    """B contexts of T transitions, which may still lie where they were drawn from."""

    rows: Tensor
    """``[R, A, F]``, or ``[B, T, A, F]`` without an index."""

    index: Tensor | None = None
    """``[B, T]`` int64 into the rows."""

    def gather(self) -> Tensor:
        """The transitions, ``[B, T, A, F]``."""
        return self.rows if self.index is None else self.rows[self.index]


def as_context(context: Context | Tensor) -> Context:
    """Transitions ``[B, T, A, F]`` as a context."""
    return context if isinstance(context, Context) else Context(context)


def active_transitions(transitions: Tensor, active: Tensor | None) -> Tensor:
    """Transitions without those of dead agents, for contexts.

    Where an agent was dead, the transitions in which it was alive are repeated in turn. A context
    is a set drawn with replacement, each agent's on its own, so that this is to draw from its
    living transitions alone. An agent that was never alive has transitions of zeros.

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
    anything of the tasks.

    Args:
        tasks: K.
        capacity: transitions kept per task; rounded down to whole segments.
        segment: steps of a segment.
        agents: A.
        features: F, observation + action + 1 + observation.
        device: where the transitions live.

    Raises:
        ValueError: ``capacity`` does not hold one segment.
    """

    def __init__(
        self,
        tasks: int,
        capacity: int,
        segment: int,
        agents: int,
        features: int,
        device: torch.device,
    ) -> None:
        if capacity < segment:
            raise ValueError(f"capacity must be at least one segment of {segment}, got {capacity}")
        self.data = torch.zeros(
            tasks, capacity // segment, segment, agents, features, device=device
        )
        self.added = torch.zeros(tasks, dtype=torch.int64)

    @property
    def sizes(self) -> Tensor:
        """``[K]`` segments held of each task."""
        return self.added.clamp(max=self.data.shape[1])

    def add(self, task: int, transitions: Tensor) -> None:
        """Append a segment ``[segment, A, F]`` of one task, overwriting its oldest."""
        self.data[task, int(self.added[task]) % self.data.shape[1]] = transitions
        self.added[task] += 1

    def sample(
        self, tasks: Tensor, length: int, segments: int, generator: Any, fewest: int = 0
    ) -> Context:
        """Draw contexts with replacement.

        Args:
            tasks: ``[B]`` int64 on the CPU.
            length: T.
            segments: how many segments a context's transitions come from.
            generator: source of randomness on the CPU.
            fewest: if not 0, a context's transitions come from a number of segments that is
                log-uniform between this and ``segments``.

        Returns:
            Contexts ``[B, T, A, F]`` that still lie in the replay.

        Raises:
            ValueError: a task has no transitions yet.
        """
        sizes = self.sizes[tasks]
        if int(sizes.min()) == 0:
            empty = sorted({int(task) for task in tasks[sizes == 0]})
            raise ValueError(f"tasks {empty} have no transitions in the context replay yet")
        slots, steps = self.data.shape[1:3]
        batch = len(tasks)
        held = torch.rand(batch, segments, generator=generator) * sizes.unsqueeze(1)
        which = torch.randint(segments, (batch, length), generator=generator)
        if fewest:
            drawn = torch.rand(batch, 1, generator=generator)
            which %= (fewest * (segments / fewest) ** drawn).round().long()
        segment = held.long().gather(1, which) + (tasks * slots).unsqueeze(1)
        step = torch.randint(steps, (batch, length), generator=generator)
        index = (segment * steps + step).to(self.data.device)
        return Context(self.data.flatten(0, 2), index)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that a continuation bit for bit needs; only what is held."""
        return {"data": self.data[:, : int(self.sizes.max())], "added": self.added}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore `state_dict`."""
        self.data[:, : state["data"].shape[1]] = state["data"]
        self.added.copy_(state["added"])
