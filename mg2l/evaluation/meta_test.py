"""Meta-test: recognise a task from a little experience, and act on it.

On tasks that may never have been trained on, a team explores for K episodes under the prior; then
each agent infers the task from its own transitions alone and acts (K = 0: it acts under the prior).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mg2l.algorithms.base import TaskInference
from mg2l.envs import registry
from mg2l.envs.finite import require_finite
from mg2l.envs.random_actions import random_actions
from mg2l.experience.replay import Context
from mg2l.experience.rollout import Collector, LatentStream, Rollout, Step
from mg2l.training.learner import Learner

Sampling = Literal["uniform", "priority"]


@dataclass(frozen=True)
class Scored:
    """The one episode of every sub-environment that counts."""

    returns: Tensor
    """``[N, A]`` float64, sum of each agent's rewards."""

    lengths: Tensor
    """``[N]`` steps."""

    rollout: Rollout
    """What was played: that episode is its last, or among its last where others took longer."""


class MetaTest:
    """A learner's policies and inference in environments of their own.

    Every call of `play` starts from the same seed, so that different numbers of shots, ways of
    sampling and algorithms meet the same episodes. The learner's streams of random numbers are as
    they were afterwards.

    Args:
        learner: what is tested; nothing of it is trained.
        task_ids: tasks to test on.
        episodes: sub-environments per task, which play one episode each.
        seed: the random seed.
        deterministic: act on the most likely action instead of a sample.
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
        """Whether actors act on what weights the transitions of their own agents."""
        return self.inference.has_priorities and self.inference.decentralised

    @torch.no_grad()
    def play(self, shots: int, sampling: Sampling = "uniform") -> Scored:
        """An episode of every sub-environment after ``shots`` episodes of exploration of its own.

        Algorithms that infer step by step, or remember, play them all in one rollout.

        Args:
            shots: K.
            sampling: how transitions are drawn into a context.
        """
        if not self.infers:
            return _scored(*self.play_through(shots))
        with self.learner.isolated_rng(self.seed):
            return _scored(self.act(self.infer(self.explore(shots), sampling)))

    @torch.no_grad()
    def play_through(self, shots: int) -> tuple[Rollout, int]:
        """``shots`` episodes and another one in one rollout, without contexts.

        One alone where nothing is remembered of the others.

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
    def play_online(self) -> Scored:
        """An episode without exploration, in which the context grows with every step."""
        with self.learner.isolated_rng(self.seed):
            return _scored(self.act(_Growing(self)))

    @torch.no_grad()
    def play_mismatched(self, shots: int) -> np.ndarray:
        """Return ``[K, K]`` of acting in task j (columns) on what task i showed (rows)."""
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
        episodes = [self.explore_once(shot) for shot in range(shots)]
        found = [self.transitions(episode) for episode in episodes]
        length = max((len(episode.rewards) for episode in episodes), default=0)
        same = [x[:, torch.arange(length, device=x.device) % x.shape[1]] for x in found]
        return torch.cat(same, 1) if same else None

    @torch.no_grad()
    def explore_once(self, shot: int) -> Rollout:
        """An exploration episode of every sub-environment."""
        latent = self._context_inference().exploration_latent(len(self.ids), self.steps)
        return self._collect(1, latent, shot)

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
        length = inference.context_length
        if sampling == "priority":
            weights = inference.priorities(experience)  # [N, A, S]
            drawn = torch.multinomial(
                weights.flatten(0, 1).cpu(), length, replacement=True, generator=self.learner.draws
            )
            index = drawn.view(count, agents, length).transpose(1, 2)
        else:
            index = torch.randint(held, (count, length, 1), generator=self.learner.draws)
            index = index.expand(-1, -1, agents)
        index = index.unsqueeze(-1).expand(-1, -1, -1, features).to(experience.device)
        return experience.gather(1, index)

    def act(self, latent: Tensor | LatentStream | None) -> Rollout:
        """The episode that counts: the same one whatever was explored before.

        Args:
            latent: of the actors, as `Collector.collect` takes it.
        """
        return self._collect(1, latent, -1)

    def _collect(
        self,
        episodes: int,
        latent: Tensor | LatentStream | None,
        episode: int,
        ids: np.ndarray | None = None,
    ) -> Rollout:
        ids = self.ids if ids is None else ids
        seeds = self._seeds(episode)
        steps = self.steps * episodes
        return self.collector.collect(steps, ids, latent, self.deterministic, seeds, episodes)

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
    """Small meta-tests in the course of training.

    Args:
        learner: what is trained.
    """

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.tests: dict[str, MetaTest] = {}

    def measure(self) -> dict[str, float]:
        """``eval/<part>_<K>_shots``: mean return over tasks and episodes, the same every time."""
        start, config = time.perf_counter(), self.learner.config
        tasks = self.learner.env.tasks
        if not self.tests:
            for part, ids in tasks.parts.items():
                found = MetaTest(self.learner, ids.tolist(), config.eval_episodes, config.seed)
                self.tests[part] = found
        metrics = {
            f"eval/{part}_{shots}_shots": float(test.play(shots).returns.mean())
            for part, test in self.tests.items()
            for shots in config.eval_shots
        }
        metrics["time/eval"] = time.perf_counter() - start
        return metrics

    def close(self) -> None:
        """Free the environments."""
        for test in self.tests.values():
            test.close()


class _Growing:
    """Latents inferred from this episode so far; at first a draw from the prior."""

    def __init__(self, test: MetaTest) -> None:
        self.test = test
        self.steps: list[Tensor] = []
        self.prior = test.infer(None, "uniform")[0]

    def current(self) -> Tensor:
        if not self.steps:
            return self.prior
        return self.test.infer(torch.stack(self.steps, 1), "uniform")[0]

    def update(self, step: Step) -> None:
        self.steps.append(self.test._context_inference().transitions.join(*step[:4]))


def _scored(rollout: Rollout, number: int = 0) -> Scored:
    """The episode of that number of every sub-environment."""
    episode = rollout.episode(number)
    return Scored(episode.returns, episode.lengths, rollout)


def first_steps(rollout: Rollout, steps: int) -> Rollout:
    """The first ``steps`` steps of a rollout."""
    kept: dict[str, Any] = {}
    for name, value in vars(rollout).items():
        extra = 1 if name in ("observations", "episode_start") else 0
        kept[name] = None if value is None else value[: steps + extra]
    return Rollout(**kept)
