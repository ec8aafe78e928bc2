"""How well a trained representation identifies the tasks, on contexts that it was never trained on.

All tasks are explored again under the prior. Figures of representations of contexts from half of
these episodes say how well they predict what is known of the other half.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mg2l.algorithms.base import TaskInference
from mg2l.core.schema import ConfigError
from mg2l.evaluation import plots, trained
from mg2l.evaluation.representation import Map, describe, explained, plane, recognised
from mg2l.experience.replay import Context, ContextReplay
from mg2l.training.checkpoint import CheckpointError
from mg2l.training.learner import Learner

EPISODES = 600
"""Fresh episodes per training task at most, half of them for fitting.

Many times as many as a context has: else all contexts of a half would be nearly the same.
Of validation, held-out and further tasks there are as many as in one of these halves.
"""

TOTAL = 6000
"""Fresh episodes of all training tasks together, of which there may be many."""

FEWEST = 40
"""Fresh episodes of each task at least."""

CONTEXTS = 128
"""Contexts per task, for fitting and for testing each."""

POINTS = 1500
"""Contexts in a map at most."""


def load(path: Path, trust: bool = False) -> Learner:
    """The learner of a run, at its last checkpoint.

    Raises:
        ConfigError: no run lies at ``path``, or it has one training task only.
        CheckpointError: it has no whole checkpoint, or its algorithm infers nothing.
    """
    learner = trained.load(path, trust=trust)
    if not learner.inference.infers_from_contexts:
        raise CheckpointError(
            f"{path}: {learner.config.algo_name} infers no task from contexts, "
            "there is nothing to probe"
        )
    if learner.tasks < 2:
        raise ConfigError(f"{path}: probing needs at least 2 training tasks, got {learner.tasks}")
    return learner


def fresh_count(tasks: int) -> int:
    """Fresh episodes of each of so many tasks."""
    return min(EPISODES, max(FEWEST, TOTAL // tasks))


def episodes_to_explore(learner: Learner) -> int:
    """Episodes of all tasks together that `probe` explores: two halves of the training tasks."""
    return (learner.tasks + len(learner.env.tasks)) * (fresh_count(learner.tasks) // 2)


def fresh_episodes(
    learner: Learner,
    tasks: Sequence[int],
    episodes: int,
    on_episode: Callable[[], object] = lambda: None,
) -> ContextReplay:
    """Transitions of ``episodes`` new exploration episodes of each of these tasks, in their order.

    ``on_episode`` is called after each of them.
    """
    assert learner.explorer is not None
    env, steps = learner.explorer.env, learner.config.env.max_ep_len
    inference, ids = learner.inference, np.asarray(tasks, np.int64)
    width = inference.transitions.width
    fresh = ContextReplay(len(ids), episodes * steps, steps, env.num_agents, width, learner.device)
    while int(fresh.added.min()) < episodes:
        rows = np.resize(learner.rng.permutation(len(ids)), env.num_envs)
        rollout = learner.explorer.collect(
            steps, ids[rows], inference.exploration_latent(env.num_envs, steps)
        )
        transitions = inference.transitions(rollout, episodes=1)
        for column, row in enumerate(rows):
            if fresh.added[row] < episodes:
                fresh.add(int(row), transitions[:, column])
                on_episode()
    return fresh


class Probe(NamedTuple):
    """Measurements of representations, ``z`` (``global``) and each ``z^i`` (``agent_0``, ...).

    Attributes:
        figures: by level those of `describe` and `explained`, and ``mi/*`` [nats] where the
            algorithm has them.
        z: ``[K * CONTEXTS, D]`` representations in training tasks, sorted by task, by level.
        episodes: that these are of.
        by_task: fraction of each training task's contexts that their neighbours predict, ``[K]``,
            by level.
    """

    figures: dict[str, Any]
    z: dict[str, np.ndarray]
    episodes: ContextReplay
    by_task: dict[str, np.ndarray]


@torch.no_grad()
def probe(
    learner: Learner,
    episodes_per_context: int,
    on_episode: Callable[[], object] = lambda: None,
) -> Probe:
    """Explore the tasks again, and measure what representations say about them.

    Regressions and classifiers are fitted on training tasks, to one half of the episodes.

    Args:
        learner: a trained run.
        episodes_per_context: fresh episodes that a context is drawn from.
        on_episode: called after each fresh episode of a task.
    """
    inference, tasks = learner.inference, learner.env.tasks

    def encode(ids: Sequence[int]) -> tuple[dict[str, np.ndarray], ContextReplay, Context, Tensor]:
        count = fresh_count(learner.tasks) // 2
        episodes = fresh_episodes(learner, ids, count, on_episode)
        rows = torch.arange(len(ids)).repeat_interleave(CONTEXTS)
        context = episodes.sample(
            rows, inference.context_length, episodes_per_context, learner.draws, run=inference.run
        )
        encoding = inference.infer(context)
        z = {"global": encoding.task.mean.cpu().numpy()}
        for agent in range(encoding.local.mean.shape[1]):
            z[f"agent_{agent}"] = encoding.local.mean[:, agent].cpu().numpy()
        return z, episodes, context, rows

    fit, *_ = encode(range(learner.tasks))
    z, episodes, context, rows = encode(range(learner.tasks))
    others = {part: ids.tolist() for part, ids in tasks.parts.items() if part != "train"}
    held_out = {part: encode(ids)[0] for part, ids in others.items()}
    own, by_task = rows.numpy(), {}
    figures: dict[str, Any] = {}
    for level, x in fit.items():
        parts = {"train": (z[level], tasks.features[own])}
        for part, ids in others.items():
            parts[part] = (held_out[part][level], tasks.features[np.repeat(ids, CONTEXTS)])
        figures[level] = describe(x, own, z[level], own) | explained(x, tasks.features[own], parts)
        by_task[level] = recognised(x, own, z[level], own)
    figures |= inference.information(context, rows)
    return Probe(figures, z, episodes, by_task)


@torch.no_grad()
def priorities(inference: TaskInference, episodes: ContextReplay) -> np.ndarray:
    """Weight of each step of an episode in an agent's inference, 1 where all are equal.

    Args:
        inference: one that has priorities.
        episodes: whole episodes of every task.

    Returns:
        ``[K, A, T]``, mean over the episodes of each task.
    """
    rows = [
        inference.priorities(held[: int(size)]).mean(0)
        for held, size in zip(episodes.data, episodes.sizes, strict=True)
    ]
    weights: np.ndarray = (torch.stack(rows) * rows[0].shape[-1]).cpu().numpy()
    return weights


def planes(z: dict[str, np.ndarray], tasks: int, by: Sequence[Map]) -> dict[str, Any]:
    """Two-dimensional maps ``[K, contexts, 2]`` by level and method, at most `POINTS` in all."""
    shown = max(2, min(CONTEXTS, POINTS // tasks))
    found: dict[str, Any] = {}
    for name, rows in z.items():
        kept = rows.reshape(tasks, -1, rows.shape[-1])[:, :shown]
        flat = kept.reshape(-1, rows.shape[-1])
        found[name] = {way: plane(flat, way).reshape(tasks, -1, 2) for way in by}
    return found


def draw(path: Path, levels: dict[str, Any], names: Sequence[str]) -> None:
    """Write a picture of the representations, coloured by task, a panel per level and map.

    Args:
        path: path of the picture; its ending says the format.
        levels: what `planes` returns.
        names: ``[K]`` of the tasks.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib import pyplot

    ways = list(next(iter(levels.values())))
    size = (4 * len(levels), 4 * len(ways))
    figure, axes = pyplot.subplots(len(ways), len(levels), figsize=size, squeeze=False)
    for column, (name, level) in enumerate(levels.items()):
        for row, way in enumerate(ways):
            for task, points in zip(names, level[way], strict=True):
                axes[row, column].scatter(*points.T, s=8, label=task)
            axes[row, column].set_title(f"{name}, {way}")
    if len(names) <= 12:
        axes[0, 0].legend()
    figure.tight_layout()
    plots.write(figure, path)
