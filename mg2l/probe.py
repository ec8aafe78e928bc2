"""What a trained representation says of the task, on contexts that it was never trained on.

``python -m mg2l.probe RUN`` explores every training task anew under the prior, draws contexts from
those episodes, and fits a linear classifier of the task to half of the representations: ``z`` of
everybody's experience, and each ``z^i`` of one agent's own. The accuracy is that on the other half.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mg2l import cli
from mg2l.algo.learner import Learner
from mg2l.algo.mg2l import MG2L
from mg2l.replay import ContextReplay
from mg2l.run import checkpoint
from mg2l.run.checkpoint import CheckpointError
from mg2l.run.device import select_device

EPISODES = 600
"""Fresh episodes per task, half of them for fitting.

Many times what a context is drawn from: else all contexts of a half would be nearly the same one.
"""

CONTEXTS = 128
"""Contexts per task, for fitting and for testing each."""


def linear_probe(
    fit: np.ndarray, fit_tasks: np.ndarray, test: np.ndarray, test_tasks: np.ndarray
) -> float:
    """Accuracy on ``test`` of a logistic regression fitted to ``fit``.

    Args:
        fit: ``[M, D]`` representations.
        fit_tasks: ``[M]`` their tasks.
        test: ``[M', D]``.
        test_tasks: ``[M']``.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed (``pip install "mg2l[analysis]"``).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return float(model.fit(fit, fit_tasks).score(test, test_tasks))


def fresh_episodes(learner: Learner, inference: MG2L, episodes: int) -> ContextReplay:
    """Transitions of ``episodes`` new exploration episodes of every task."""
    assert learner.explorer is not None
    env, steps = learner.explorer.env, learner.config.env.max_ep_len
    data = inference.replay.data
    fresh = ContextReplay(
        learner.tasks, episodes * steps, steps, data.shape[-2], data.shape[-1], data.device
    )
    while int(fresh.added.min()) < episodes:
        ids = np.resize(learner.rng.permutation(learner.tasks), env.num_envs)
        rollout = learner.explorer.collect(steps, ids, inference.explore(env.num_envs))
        transitions = inference.transitions(rollout)
        for column, task in enumerate(ids):
            if fresh.added[task] < episodes:
                fresh.add(int(task), transitions[:, column])
    return fresh


@torch.no_grad()
def probe(learner: Learner, inference: MG2L, episodes_per_context: int) -> dict[str, float]:
    """Linear-probe accuracy of ``z`` (``global``) and of each ``z^i`` (``agent_0``, ...).

    Args:
        learner: a trained run.
        inference: its task inference.
        episodes_per_context: fresh episodes that a context's transitions come from.
    """
    ids = torch.arange(learner.tasks).repeat_interleave(CONTEXTS)
    length = inference.options.ae_batch_size
    halves: list[dict[str, np.ndarray]] = []
    for _ in range(2):
        episodes = fresh_episodes(learner, inference, EPISODES // 2)
        context = episodes.sample(ids, length, episodes_per_context, inference.draws)
        encoding = inference.acting(context)
        half = {"global": encoding.task.mean.cpu().numpy()}
        for agent in range(encoding.local.mean.shape[1]):
            half[f"agent_{agent}"] = encoding.local.mean[:, agent].cpu().numpy()
        halves.append(half)
    tasks = ids.numpy()
    return {name: linear_probe(x, tasks, halves[1][name], tasks) for name, x in halves[0].items()}


def load(path: Path) -> tuple[Learner, MG2L]:
    """The learner of a run, at its last checkpoint.

    Raises:
        ConfigError: no run lies at ``path``.
        CheckpointError: it has no whole checkpoint, or its algorithm infers nothing.
    """
    config = cli.config_from_yaml(path / "config.yaml")
    learner = Learner(config, select_device(config.gpu_id))
    if not isinstance(learner.inference, MG2L):
        raise CheckpointError(
            f"{path}: {config.algo_name} infers no task, there is nothing to probe"
        )
    learner.load_networks(checkpoint.load_networks(path, learner.networks()))
    return learner, learner.inference


def main() -> None:
    """Entry point of ``python -m mg2l.probe``."""
    parser = argparse.ArgumentParser(prog="python -m mg2l.probe", description=__doc__)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument(
        "--episodes",
        type=int,
        nargs="+",
        default=[1, 5, 10],
        help="fresh episodes that a context is drawn from (default: 1 5 10)",
    )
    arguments = parser.parse_args()
    with cli.report_errors():
        learner, inference = load(arguments.run)
        results: dict[str, Any] = {}
        for episodes in arguments.episodes:
            results[str(episodes)] = probe(learner, inference, episodes)
            shown = "  ".join(
                f"{name} {value:.3f}" for name, value in results[str(episodes)].items()
            )
            print(f"contexts of {episodes:2} fresh episodes: {shown}")
        (arguments.run / "probe.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
