"""How well a trained representation tells the tasks, on contexts that it was never trained on.

``python -m mg2l.probe RUN`` explores every training task again under the prior, draws contexts
from those episodes, and measures how well half of the representations tell the tasks of the other
half: ``z`` of joint experience, and each ``z^i`` of one agent's own. Also the bounds on information
that training logs, on these fresh contexts; the representations laid out in a plane; and the
priorities of an episode's transitions. Writes ``probe.json`` into the run's folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mg2l import cli
from mg2l.algorithms.base import TaskInference
from mg2l.core.files import write_json
from mg2l.core.packages import require
from mg2l.core.schema import ConfigError
from mg2l.evaluation import plots, trained
from mg2l.evaluation.representation import Map, describe, maps, plane, recognised
from mg2l.experience.replay import ContextReplay
from mg2l.training import checkpoint
from mg2l.training.checkpoint import CheckpointError
from mg2l.training.learner import Learner
from mg2l.training.progress import Bar

EPISODES = 600
"""Fresh episodes per task, half of them for fitting.

Many times what a context is drawn from: else all contexts of a half would be nearly the same one.
"""

CONTEXTS = 128
"""Contexts per task, for fitting and for testing each."""

POINTS = 1500
"""Contexts in a map at most."""


def fresh_episodes(
    learner: Learner, episodes: int, on_episode: Callable[[], object] = lambda: None
) -> ContextReplay:
    """Transitions of ``episodes`` new exploration episodes of every task.

    ``on_episode`` is called after each of them.
    """
    assert learner.explorer is not None
    env, steps = learner.explorer.env, learner.config.env.max_ep_len
    inference = learner.inference
    width = inference.transitions.width
    fresh = ContextReplay(
        learner.tasks, episodes * steps, steps, env.num_agents, width, learner.device
    )
    while int(fresh.added.min()) < episodes:
        ids = np.resize(learner.rng.permutation(learner.tasks), env.num_envs)
        rollout = learner.explorer.collect(
            steps, ids, inference.exploration_latent(env.num_envs, steps)
        )
        transitions = inference.transitions(rollout, episodes=1)
        for column, task in enumerate(ids):
            if fresh.added[task] < episodes:
                fresh.add(int(task), transitions[:, column])
                on_episode()
    return fresh


@torch.no_grad()
def probe(
    learner: Learner,
    episodes_per_context: int,
    on_episode: Callable[[], object] = lambda: None,
) -> tuple[dict[str, Any], dict[str, np.ndarray], ContextReplay, dict[str, np.ndarray]]:
    """What `describe` says of ``z`` (``global``) and of each ``z^i`` (``agent_0``, ...).

    Args:
        learner: a trained run.
        episodes_per_context: fresh episodes that a context's transitions come from.
        on_episode: called after each fresh episode of a task.

    Returns:
        The figures, and ``mi/*`` [nats] where the algorithm has them; the representations that
        were measured, ``[K * CONTEXTS, D]`` each, sorted by task; the episodes that these are of;
        and by level the fraction of each task's contexts that the nearest others tell, ``[K]``.
    """
    ids = torch.arange(learner.tasks).repeat_interleave(CONTEXTS)
    inference = learner.inference
    halves: list[dict[str, np.ndarray]] = []
    for _ in range(2):
        episodes = fresh_episodes(learner, EPISODES // 2, on_episode)
        context = episodes.sample(
            ids, inference.context_length, episodes_per_context, learner.draws
        )
        encoding = inference.infer(context)
        half = {"global": encoding.task.mean.cpu().numpy()}
        for agent in range(encoding.local.mean.shape[1]):
            half[f"agent_{agent}"] = encoding.local.mean[:, agent].cpu().numpy()
        halves.append(half)
    tasks, features = ids.numpy(), learner.env.tasks.features[: learner.tasks]
    figures: dict[str, Any] = {
        name: describe(x, tasks, halves[1][name], tasks, features) for name, x in halves[0].items()
    }
    figures |= inference.information(context, ids)
    by_task = {name: recognised(x, tasks, halves[1][name], tasks) for name, x in halves[0].items()}
    return figures, halves[1], episodes, by_task


@torch.no_grad()
def priorities(inference: TaskInference, episodes: ContextReplay) -> np.ndarray:
    """Weight of each step of an episode in what an agent infers from it, 1 where all are alike.

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
    """For each level and way of mapping, ``[K, contexts, 2]`` of at most `POINTS` in all."""
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
        path: of the picture; its ending says the format.
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


@cli.command
def main() -> None:
    """Entry point of ``python -m mg2l.probe``."""
    parser = cli.Parser(prog="python -m mg2l.probe", description=__doc__)
    parser.add_argument("run", type=Path, help="run folder, or one of its checkpoints")
    parser.add_argument(
        "--episodes",
        type=cli.at_least(1),
        nargs="+",
        default=[1, 5, 10],
        help="fresh episodes that a context is drawn from (default: 1 5 10)",
    )
    parser.add_argument(
        "--map",
        type=Path,
        help="picture of the maps, of contexts of the last of --episodes",
    )
    parser.add_argument(
        "--by",
        nargs="+",
        choices=("pca", "umap"),
        default=maps(),
        help="maps to lay out (default: those installed, %(default)s)",
    )
    parser.add_argument("--trust", action="store_true", help=cli.TRUST)
    arguments = parser.parse_args()
    require("a probe", "sklearn", extra="analysis")
    if arguments.map is not None:
        plots.check("--map", arguments.map)
    if "umap" in arguments.by:
        require("--by umap", "umap", extra="umap")
    learner = load(arguments.run, arguments.trust)
    names = learner.env.tasks.names[: learner.tasks]
    contexts: dict[str, Any] = {}
    iteration = trained.iteration_of(arguments.run)
    found: dict[str, Any] = {"iteration": iteration, "tasks": names, "contexts": contexts}
    for episodes in arguments.episodes:
        with Bar("exploring again", EPISODES * learner.tasks, "episodes") as bar:
            figures, z, fresh, by_task = probe(learner, episodes, bar.advance)
        contexts[str(episodes)] = figures
        print(f"contexts of {episodes:2} fresh episodes")
        for name in z:
            shown = "  ".join(f"{what} {value:.3f}" for what, value in figures[name].items())
            print(f"  {name:8}  {shown}")
        shown = "  ".join(f"{name} {x:.3f}" for name, x in figures.items() if name not in z)
        if shown:
            print(f"  {shown}")
        for task, name in enumerate(names):
            shown = "  ".join(f"{level} {by_task[level][task]:.3f}" for level in z)
            print(f"  nearest, task {name}:  {shown}")
    if learner.inference.has_priorities:
        found["priorities"] = priorities(learner.inference, fresh).round(3).tolist()
    levels = planes(z, learner.tasks, arguments.by)
    found["maps"] = {
        level: {way: points.round(3).tolist() for way, points in ways.items()}
        for level, ways in levels.items()
    }
    write_json(checkpoint.locate(arguments.run)[0] / "probe.json", found)
    if arguments.map is not None:
        draw(arguments.map, levels, names)


if __name__ == "__main__":
    main()
