"""Contexts that grow while an agent acts: it infers its task from all that it has seen so far."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mg2l.core.distributed import world
from mg2l.experience.replay import Context
from mg2l.experience.rollout import Step
from mg2l.nn.aggregators import RunningPool

if TYPE_CHECKING:
    from mg2l.algorithms.context import ContextInference
    from mg2l.algorithms.mg2l.encoder import TaskEncoder


class GrowingContexts:
    """Latents inferred from growing contexts in N environments, step by step; a `LatentStream`.

    What an agent has seen are its own transitions: those of earlier episodes of its task, all of
    them or as many as are kept for them, and those of the steps since.

    Args:
        inference: the algorithm.
        start: ``[N, A, D]`` latents of agents that have seen nothing.
        earlier: ``[N, S, A, F]`` transitions of earlier episodes.
        seen: ``[N]`` int64, how many transitions they stand for, 0 where there are none.
        seed: of the draws of contexts; None takes it from the algorithm's.
    """

    def __init__(
        self,
        inference: ContextInference,
        start: Tensor,
        earlier: Tensor | None = None,
        seen: Tensor | None = None,
        seed: int | None = None,
    ) -> None:
        self.inference, self.start, self.earlier = inference, start, earlier
        device = start.device
        nothing = torch.zeros(len(start), dtype=torch.int64, device=device)
        self.seen = nothing if seen is None else seen.to(device)
        if seed is None:
            draws = inference.draws
            seed = int(torch.randint(2**62, (1,), generator=draws, device=draws.device))
        self.seed = seed
        self.draws = torch.Generator(device).manual_seed(seed)
        self.rows: Tensor | None = None
        self.steps = 0

    def arguments(self) -> dict[str, Any]:
        """See `LatentStream.arguments`."""
        earlier = None if self.earlier is None else self.earlier.cpu()
        seen = self.seen.cpu()
        return {"num_envs": len(seen), "earlier": earlier, "seen": seen, "seed": self.seed}

    @torch.no_grad()
    def current(self) -> Tensor:
        """See `LatentStream.current`."""
        inference = self.inference
        known = (self.seen + self.steps > 0).view(-1, 1, 1)
        if not bool(known.any()):
            return self.start
        latents = inference.latent_for_actors(inference.infer(self._context()))
        return torch.where(known, latents, self.start)

    def update(self, step: Step) -> None:
        """See `LatentStream.update`."""
        rows = self.inference.transitions.join(*step[:4])
        if self.rows is None:
            self.rows = rows.new_empty(len(rows), 64, *rows.shape[1:])
        elif self.steps == self.rows.shape[1]:
            self.rows = torch.cat([self.rows, torch.empty_like(self.rows)], 1)
        if step.active is not None and self.steps:  # the dead repeat what they saw when they lived
            repeated = self.rows[:, self.steps // 2]
            rows = torch.where(step.active.unsqueeze(-1), rows, repeated)
        self.rows[:, self.steps] = rows
        self.steps += 1

    def _context(self) -> Context:
        """Contexts ``[N, T, A, F]``, drawn from everything that was seen."""
        length = self.inference.context_length

        def uniform(shape: list[int]) -> Tensor:
            return torch.rand(shape, generator=self.draws, device=self.seen.device)

        drawn = world.draw(uniform, (len(self.seen), length)).double()
        step = (drawn * (self.seen + self.steps).unsqueeze(1)).long() - self.seen.unsqueeze(1)
        envs = torch.arange(len(step), device=step.device).unsqueeze(1)
        recent = None if self.rows is None else self.rows[envs, step.clamp(min=0)]
        if self.earlier is None:
            assert recent is not None
            return Context(recent)
        earlier, kept = self.earlier, self.earlier.shape[1]
        if kept != length:  # else they are drawn already
            each = (step + self.seen.unsqueeze(1)) * kept // self.seen.clamp(min=1).unsqueeze(1)
            earlier = earlier[envs, each.clamp(max=kept - 1)]
        if recent is None:
            return Context(earlier)
        return Context(torch.where((step < 0)[..., None, None], earlier, recent))


class PooledContexts(GrowingContexts):
    """The same from every transition seen, where transitions are pooled one after the other.

    A step costs the encoding of one transition, however long the history. Arguments are those of
    `GrowingContexts`, and the ``encoder`` of the algorithm.
    """

    def __init__(
        self,
        inference: ContextInference,
        encoder: TaskEncoder,
        start: Tensor,
        earlier: Tensor | None = None,
        seen: Tensor | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(inference, start, earlier, seen, seed)
        self.encoder = encoder
        self.pool: RunningPool | None = None
        if self.earlier is not None:
            self.pool = self._begin(self.earlier)

    @torch.no_grad()
    def _begin(self, earlier: Tensor) -> RunningPool | None:
        """What was seen before, pooled; where nothing was, it counts nothing."""
        aggregator, weight = self.encoder.aggregator, self.seen / earlier.shape[1]
        if self.seen.device.type != "cpu":  # a GPU would wait for the number of those who have
            return aggregator.begin(earlier, weight)
        some = self.seen > 0
        if not some.any():
            return None
        pooled, mass, kept = aggregator.begin(earlier[some], weight[some])
        place = (some.cumsum(0) - 1).clamp(min=0)
        mass = mass[place] * some.unsqueeze(1)
        return RunningPool(pooled[place], mass, tuple(x[place] for x in kept))

    @torch.no_grad()
    def current(self) -> Tensor:
        """See `LatentStream.current`."""
        if self.pool is None:
            return self.start
        latents = self.inference.latent_for_actors(self.encoder.read_out(self.pool))
        return torch.where(self.pool.mass.unsqueeze(-1) > 0, latents, self.start)

    @torch.no_grad()
    def update(self, step: Step) -> None:
        """See `LatentStream.update`."""
        rows = self.inference.transitions.join(*step[:4])
        alive = torch.ones_like(step.rewards) if step.active is None else step.active.float()
        self.pool = self.encoder.aggregator.extend(self.pool, rows, alive)
