"""Meta-test: recognise a task from a little experience, and act on it.

On tasks that may never have been trained on, a team explores for K episodes under the prior; then
each agent infers the task from its own transitions alone and acts (K = 0: it acts under the prior).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mg2l.algorithms.base import TaskInference
from mg2l.core.distributed import world
from mg2l.envs import registry
from mg2l.envs.finite import require_finite
from mg2l.envs.random_actions import random_actions
from mg2l.experience.replay import Context
from mg2l.experience.rollout import Collector, LatentStream, Rollout
from mg2l.training.learner import Learner

Sampling = Literal["uniform", "priority"]


@dataclass(frozen=True)
class Scored:
    """The episode of every sub-environment that counts."""

    returns: Tensor
    """``[N, A]`` float64, sum of each agent's rewards."""

    lengths: Tensor
    """``[N]`` steps."""


@dataclass(frozen=True)
class ScoredRollout(Scored):
    """The scored episode, and the whole rollout."""

    rollout: Rollout
    """The rollout: that episode is its last, or among its last where others took longer."""


class MetaTest:
    """A learner's policies and inference in environments of their own.

    Every call of `play` starts from the same seed, so that different numbers of shots, ways of
    sampling and algorithms meet the same episodes. The learner's random streams are restored
    afterwards.

    Args:
        learner: the learner to test, which is not trained.
        task_ids: tasks to test on.
        episodes: sub-environments per task, which play one episode each.
        seed: the random seed.
        deterministic: act on the most likely action instead of a sample, except while exploring.
    """

    def __init__(
        self,
        learner: Learner,
        task_ids: Sequence[int],
        episodes: int,
        seed: int,
        deterministic: bool = False,
    ) -> None:
        self.learner, self.inference = learner, learner.inference
        self.episodes, self.seed, self.deterministic = episodes, seed, deterministic
        self.ids = np.repeat(np.asarray(task_ids, np.int64), episodes)
        self.env = registry.make(learner.config.env, len(self.ids), seed)
        self.steps = learner.config.env.max_ep_len
        self.collector = Collector(self.env, learner.actor, learner.device, learner.noise)

    def close(self) -> None:
        """Free the environments."""
        self.env.close()

    @property
    def infers(self) -> bool:
        """Whether the algorithm infers the task from contexts."""
        return self.inference.infers_from_contexts

    @property
    def prioritises(self) -> bool:
        """Whether the actors' inference weights the transitions of their own agents."""
        return self.inference.has_priorities and self.inference.decentralised

    @torch.no_grad()
    def play(self, shots: int, sampling: Sampling = "uniform") -> ScoredRollout:
        """An episode of every sub-environment after ``shots`` exploration episodes of its own.

        Algorithms that infer step by step, or remember, play them all in one rollout.

        Args:
            shots: K.
            sampling: how transitions are drawn into a context.
        """
        if not self.infers:
            return _scored(*self.play_through(shots))
        with self.learner.isolated_rng(self.seed):
            return _scored(self.act(self.latent_after(self.explore(shots), sampling)))

    @torch.no_grad()
    def play_each(
        self,
        shots: Sequence[int],
        samplings: Sequence[Sampling] = ("uniform",),
        report: Callable[[int, Sampling, Scored], object] = lambda shots, sampling, scored: None,
    ) -> dict[tuple[int, Sampling], Scored]:
        """Results of `play` for each of several numbers of shots, exploring only once.

        Args:
            shots: numbers of episodes of exploration.
            samplings: how transitions are drawn into contexts of at least one episode; without any,
                and where no task is inferred from contexts, ``uniform`` alone is played.
            report: called with each pair that has been played, and how.
        """
        found: dict[tuple[int, Sampling], Scored] = {}
        if not self.infers:
            rollout, last = self.play_through(max(shots))
            for count in shots:
                episode = rollout.episode(min(count, last))
                found[count, "uniform"] = Scored(episode.returns, episode.lengths)
                report(count, "uniform", found[count, "uniform"])
            return found
        episodes: list[Tensor] = []
        with self.learner.isolated_rng(self.seed):
            for count in range(max(shots) + 1):
                for sampling in samplings if count in shots else ():
                    if count or sampling == "uniform":
                        with self.learner.kept_rng():
                            latent = self.latent_after(_joined(episodes), sampling)
                            scored = _scored(self.act(latent))
                        found[count, sampling] = Scored(scored.returns, scored.lengths)
                        report(count, sampling, found[count, sampling])
                if count < max(shots):
                    rollout = self.explore_once(count, _joined(episodes))
                    episodes.append(self.transitions(rollout))
        return found

    @torch.no_grad()
    def play_through(self, shots: int) -> tuple[Rollout, int]:
        """``shots`` episodes and another one in one rollout, without contexts.

        A single one where the algorithm has no memory of the others.

        Returns:
            The rollout, and the number of each sub-environment's last episode.
        """
        with self.learner.isolated_rng(self.seed):
            latent = self.inference.actor_latent(self.ids, self.steps * (shots + 1))
            remembers = self.learner.actor.body.remembers_episodes
            if isinstance(latent, Tensor) or (latent is None and not remembers):
                return self.act(latent), 0
            return self._collect(shots + 1, latent, 0), shots

    @torch.no_grad()
    def play_online(self) -> ScoredRollout:
        """An episode without exploration, in which knowledge of the task grows with every step.

        Contexts grow; algorithms that infer step by step, or remember, do so anyway.
        """
        if not self.infers:
            return self.play(0)
        with self.learner.isolated_rng(self.seed):
            return _scored(self.act(self._growing(None, "uniform")))

    @torch.no_grad()
    def play_mismatched(self, shots: int) -> np.ndarray:
        """Return ``[K, K]`` of acting in task j (columns) on contexts of task i (rows)."""
        with self.learner.isolated_rng(self.seed):
            latent = self.infer(self.explore(shots), "uniform")
            tasks = len(self.ids) // self.episodes
            found = np.zeros((tasks, tasks))
            for shift in range(tasks):
                acting = np.roll(np.arange(tasks), -shift)
                ids = self.ids.reshape(tasks, -1)[acting].reshape(-1)
                returns = _scored(self._collect(1, latent, -1, ids)).returns
                by_task = returns.view(tasks, -1).mean(1).cpu().numpy()
                found[np.arange(tasks), acting] = by_task
        return found

    def play_random(self) -> tuple[np.ndarray, np.ndarray]:
        """An episode of actions drawn uniformly from their space.

        Returns:
            Returns ``[N, A]`` and lengths ``[N]`` of the episodes of all sub-environments.
        """
        rng = np.random.default_rng(self.seed)
        info = self.env.reset(self._seeds(-1), self.ids)[1]
        returns = np.zeros((self.env.num_envs, self.env.num_agents))
        lengths, playing = np.zeros(len(returns), np.int64), np.ones(len(returns), np.bool_)
        while playing.any():
            actions = random_actions(self.env, rng, info)
            _, reward, terminated, truncated, info = self.env.step(actions)
            require_finite(self.env, "reward", reward, int(lengths.max()) + 1)
            returns[playing] += reward[playing]
            lengths[playing] += 1
            playing &= ~(terminated | truncated).all(1)
        return returns, lengths

    @torch.no_grad()
    def explore(self, shots: int) -> Tensor | None:
        """``[N, shots * T, A, F]``: each sub-environment's transitions, or None for no shot.

        Where episodes end early, T is the longest of all, and each is repeated to
        that length: no episode counts for more than another.
        """
        episodes: list[Tensor] = []
        for shot in range(shots):
            episodes.append(self.transitions(self.explore_once(shot, _joined(episodes))))
        return _joined(episodes)

    @torch.no_grad()
    def explore_once(self, shot: int, experience: Tensor | None = None) -> Rollout:
        """An exploration episode of every sub-environment, after others ``[N, S, A, F]``."""
        inference = self._context_inference()
        latent: Tensor | LatentStream | None
        if inference.explores_on_context:
            latent = self._growing(experience, "uniform")
        else:
            latent = inference.exploration_latent(len(self.ids), self.steps)
        return self._collect(1, latent, shot, explores=True)

    def latent_after(self, experience: Tensor | None, sampling: Sampling) -> Tensor | LatentStream:
        """Latents of the actors in the episode that counts: of `infer`, or growing from there."""
        if self._context_inference().grows_contexts:
            return self._growing(experience, sampling)
        return self.infer(experience, sampling)

    def _growing(self, experience: Tensor | None, sampling: Sampling) -> LatentStream:
        inference = self._context_inference()
        count = len(self.ids)
        if experience is None:
            return inference.growing_latent(count)
        seen = torch.full((count,), experience.shape[1])
        earlier = experience if sampling == "uniform" else self._drawn(experience, sampling)
        return inference.growing_latent(count, earlier, seen)

    def transitions(self, rollout: Rollout) -> Tensor:
        """Transitions of each sub-environment's first episode, ``[N, T, A, F]``."""
        return self._context_inference().transitions(rollout, episodes=1).transpose(0, 1)

    @torch.no_grad()
    def infer(self, experience: Tensor | None, sampling: Sampling) -> Tensor:
        """Latents of the actors after their experience ``[N, S, A, F]``: ``[1, N, A, D]``.

        A draw from the prior where there is none.
        """
        inference = self._context_inference()
        if experience is None:
            prior = inference.sample_prior(len(self.ids))
            assert prior is not None
            return prior
        context = Context(self._drawn(experience, sampling))
        return inference.latent_for_actors(inference.infer(context)).unsqueeze(0)

    def _drawn(self, experience: Tensor, sampling: Sampling) -> Tensor:
        """``[N, T, A, F]``: T transitions of each agent's own, uniformly or by their priority."""
        inference = self._context_inference()
        count, held, agents, features = experience.shape
        length, draws = inference.context_length, self.learner.draws
        if sampling == "priority":
            weights = inference.priorities(experience)  # [N, A, S]
            drawn = torch.multinomial(
                weights.flatten(0, 1), length, replacement=True, generator=draws
            )
            index = drawn.view(count, agents, length).transpose(1, 2)
        else:
            shape = (count, length, 1)
            index = torch.randint(held, shape, generator=draws, device=draws.device)
            index = index.expand(-1, -1, agents)
        index = index.unsqueeze(-1).expand(-1, -1, -1, features)
        return experience.gather(1, index)

    def act(self, latent: Tensor | LatentStream | None) -> Rollout:
        """The episode that counts, the same after any exploration.

        Args:
            latent: latent of the actors, as `Collector.collect` takes it.
        """
        return self._collect(1, latent, -1)

    def _collect(
        self,
        episodes: int,
        latent: Tensor | LatentStream | None,
        episode: int,
        ids: np.ndarray | None = None,
        explores: bool = False,
    ) -> Rollout:
        ids = self.ids if ids is None else ids
        seeds = self._seeds(episode)
        steps = self.steps * episodes
        # Exploring teams sample: those that always do what seems best hardly learn anything more.
        deterministic = self.deterministic and not explores
        return self.collector.collect(steps, ids, latent, deterministic, seeds, episodes)

    def _seeds(self, episode: int) -> list[int]:
        """Seeds of all sub-environments in an exploration episode; -1 is the one that counts."""
        sequence = np.random.SeedSequence([self.seed, episode + 1])
        return [int(seed) for seed in sequence.generate_state(len(self.ids))]

    def _context_inference(self) -> TaskInference:
        if not self.infers:
            name = self.learner.config.algo_name
            raise ValueError(f"{name} does not infer the task from contexts")
        return self.inference


class PeriodicTest:
    """Small meta-tests during training.

    Args:
        learner: the learner that is trained.
    """

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.tests: dict[str, MetaTest] = {}

    def measure(self) -> dict[str, float]:
        """``eval/<part>_<K>_shots``: mean return over tasks and episodes, the same every time.

        Each process of a run tests some of the parts, and all return the same.
        """
        start, config = time.perf_counter(), self.learner.config
        parts, shots = self.learner.env.tasks.parts, sorted(set(config.eval_shots))
        returns = torch.zeros(len(parts), len(shots), dtype=torch.float64)
        for number, (part, ids) in enumerate(parts.items()):
            if number % world.size == world.rank:
                returns[number] = self._measure_part(part, ids, shots)
        metrics = {
            f"eval/{part}_{count}_shots": value
            for part, row in zip(parts, world.sum(returns).tolist(), strict=True)
            for count, value in zip(shots, row, strict=True)
        }
        metrics["time/eval"] = time.perf_counter() - start
        return metrics

    def _measure_part(self, part: str, ids: np.ndarray, shots: Sequence[int]) -> Tensor:
        """Mean return after each number of shots, as if this process were the only one."""
        config = self.learner.config
        with world.local():
            if part not in self.tests:
                found = MetaTest(self.learner, ids.tolist(), config.eval_episodes, config.seed)
                self.tests[part] = found
            scored = self.tests[part].play_each(shots)
        return torch.stack([scored[count, "uniform"].returns.mean().cpu() for count in shots])

    def close(self) -> None:
        """Free the environments."""
        for test in self.tests.values():
            test.close()


def _scored(rollout: Rollout, number: int = 0) -> ScoredRollout:
    """The episode of that number of every sub-environment."""
    episode = rollout.episode(number)
    return ScoredRollout(episode.returns, episode.lengths, rollout)


def _joined(episodes: Sequence[Tensor]) -> Tensor | None:
    """Transitions ``[N, T, A, F]`` of episodes one after the other, None where there are none.

    Each is repeated to the length of the longest.
    """
    length = max((x.shape[1] for x in episodes), default=0)
    same = [x[:, torch.arange(length, device=x.device) % x.shape[1]] for x in episodes]
    return torch.cat(same, 1) if same else None


def first_steps(rollout: Rollout, steps: int) -> Rollout:
    """The first ``steps`` steps of a rollout."""
    kept: dict[str, Any] = {}
    for name, value in vars(rollout).items():
        extra = 1 if name in ("observations", "episode_start") else 0
        kept[name] = None if value is None else value[: steps + extra]
    return Rollout(**kept)
