"""Videos of a team that recognises a task and acts: ``python -m mg2l.evaluate RUN --video``.

A video shows an episode of exploration under the prior, with what each agent would infer from its
own transitions so far, and then an episode in which it acts on the inferred representation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mg2l.envs import video as env_video
from mg2l.evaluation.meta_test import MetaTest, first_steps
from mg2l.evaluation.picture import Drawing, Trajectory
from mg2l.experience.rollout import Rollout
from mg2l.training.learner import Learner

TASKS = 12
"""Tasks that are rendered at most, and training tasks on a map."""

AGENTS = 4
"""Agents that have a map at most."""

CONTEXTS = 12
"""Representations of each training task on a map."""

SHOTS = 5
"""Episodes that each of them is inferred from."""

KINDS = {
    "train": "training task",
    "validation": "validation task",
    "test": "test task",
    "ood": "task beyond training",
}
"""What a task of each part is called."""

PICTURES = 200
"""Largest number of frames: a longer video shows every second step, or third, ..."""


@dataclass(frozen=True)
class Recording:
    """S steps of one task: one or two episodes."""

    phases: list[tuple[str, int]]
    """Title of each episode, and its number of steps."""

    pictures: env_video.Frames
    """``[S]``, before each step."""

    rewards: NDArray[np.float64]
    """``[S]``, mean over agents."""

    acts_on: NDArray[np.float64] | None
    """``[S, A, D]`` representation that each agent acts on, or the mean of its belief; or None."""

    infers: NDArray[np.float64] | None
    """``[S, A, D]`` representation inferred from its own transitions before each step."""


class VideoRenderer:
    """Renders videos of a team without changing its state.

    Args:
        learner: learner of the team.
        seed: the random seed; the videos of all tasks begin alike.
        deterministic: act on the most likely action instead of a sample, except while exploring.
    """

    def __init__(self, learner: Learner, seed: int, deterministic: bool = False) -> None:
        self.learner, self.seed, self.deterministic = learner, seed, deterministic
        self.tasks = learner.env.tasks
        self.known = self._known() if learner.inference.representation_dim else None

    def frames(self, task: int) -> Iterator[NDArray[np.uint8]]:
        """Pictures of a task, ``[height, width, 3]`` each."""
        held = self.record(task)
        count = len(held.pictures)
        shown = range(0, count, -(-count // PICTURES))
        trajectory = None
        if self.known is not None and held.acts_on is not None and held.infers is not None:
            acts_on, infers = (way[shown, :AGENTS] for way in (held.acts_on, held.infers))
            names = self.tasks.names[: min(TASKS, self.tasks.n_train)]
            trajectory = Trajectory(*self.known, names, acts_on, infers)
        draw = Drawing(trajectory)
        part = next(name for name, ids in self.tasks.parts.items() if task in ids)
        kind = KINDS[part]
        title = f"{self.tasks.names[task]}  ({kind})"
        steps = [(name, step, length) for name, length in held.phases for step in range(length)]
        for index, moment in enumerate(shown):
            name, step, length = steps[moment]
            gained = held.rewards[moment - step : moment].sum()
            subtitle = f"{name}   step {step}/{length}   return {gained:.1f}"
            yield draw(held.pictures[moment], title, subtitle, index)

    @torch.no_grad()
    def record(self, task: int) -> Recording:
        """Record the episodes of a video.

        Raises:
            ConfigError: a package that renders the environment is missing.
        """
        test = MetaTest(self.learner, [task], 1, self.seed, self.deterministic)
        camera = test.collector.env = env_video.RecordedEnv(test.env)
        try:
            if test.infers:
                return self._recognition(test, camera)
            rollout, last = test.play_through(1)
            latent = None if self.known is None else self._numbers(rollout.latent)[:, 0]
            # An algorithm without memory acts for one episode.
            names = ["first episode", "second episode"] if last else ["acting"]
            phases = list(zip(names, rollout.episodes().lengths.tolist(), strict=True))
            return Recording(phases, camera.frames, _team(rollout), latent, latent)
        finally:
            test.close()

    def _recognition(self, test: MetaTest, camera: env_video.RecordedEnv) -> Recording:
        """Record exploration, then acting on the inferred representation."""
        with self.learner.isolated_rng(self.seed):
            explored = test.explore_once(0)
            pictures = list(camera.frames)
            inferred = [
                test.infer(test.transitions(first_steps(explored, t)), "uniform")
                for t in range(1, len(explored.rewards) + 1)
            ]
            acted = test.act(inferred[-1])
        assert explored.latent is not None
        # Before its first step an agent has seen nothing: there is only the draw from the prior.
        infers = torch.cat(
            [explored.latent[:1], *inferred, *inferred[-1:] * (len(acted.rewards) - 1)]
        )
        acts_on = np.concatenate([self._numbers(rollout.latent) for rollout in (explored, acted)])
        return Recording(
            [("exploring", len(explored.rewards)), ("acting", len(acted.rewards))],
            [*pictures, *camera.frames],
            np.concatenate([_team(explored), _team(acted)]),
            acts_on[:, 0],
            self._numbers(infers)[:, 0],
        )

    def _known(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Representations of training tasks, ``[M, A, D]``, and which task each is of, ``[M]``."""
        ids = self.tasks.train_ids[:TASKS]
        # Of other episodes than those that are rendered.
        test = MetaTest(self.learner, ids.tolist(), CONTEXTS, self.seed + 1)
        try:
            if test.infers:
                with self.learner.isolated_rng(test.seed):
                    latent = test.infer(test.explore(SHOTS), "uniform")
            else:
                last = test.play_through(SHOTS - 1)[0].latent
                assert last is not None
                latent = last[-1:]
        finally:
            test.close()
        return self._numbers(latent)[0, :, :AGENTS], np.arange(len(ids)).repeat(CONTEXTS)

    def _numbers(self, latent: Tensor | None) -> NDArray[np.float64]:
        """Representations in latents of actors, ``[T, N, A, D]``, of beliefs the means."""
        assert latent is not None
        width = self.learner.inference.representation_dim
        found: NDArray[np.float64] = latent[..., :width].double().cpu().numpy()
        return found


def write_videos(
    learner: Learner, folder: Path, kind: str, seed: int, deterministic: bool = False
) -> Iterator[Path]:
    """Render the test tasks, or where there are none those of training: `TASKS` at most.

    Args:
        learner: learner of the team.
        folder: where each video is written as its task's number and name.
        kind: ``gif``, ``mp4`` or ``webp``.
        seed: the random seed.
        deterministic: act on the most likely action instead of a sample, except while exploring.

    Yields:
        Each video's path when it is written.

    Raises:
        ConfigError: a package that renders or writes videos is missing.
    """
    tasks, renderer = learner.env.tasks, VideoRenderer(learner, seed, deterministic)
    ids = tasks.test_ids if len(tasks.test_ids) else tasks.train_ids
    for task in ids[:TASKS].tolist():
        path = folder / f"{file_name(task, tasks.names[task])}.{kind}"
        env_video.write(path, list(renderer.frames(task)))
        yield path


def file_name(task: int, name: str) -> str:
    """A name that every file system accepts: ``3-landmark-0-1`` of task 3, ``landmark 0+1``.

    The number distinguishes names that differ only in other characters.
    """
    return f"{task}-{re.sub(r'[^a-z0-9]+', '-', name.lower())[:80].strip('-')}".rstrip("-")


def _team(rollout: Rollout) -> NDArray[np.float64]:
    """``[T]`` rewards of one sub-environment, mean over agents."""
    found: NDArray[np.float64] = rollout.rewards[:, 0].double().mean(1).cpu().numpy()
    return found
