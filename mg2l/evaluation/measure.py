"""Evaluation of a trained run: every way of acting, on every part of the tasks."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mg2l.algorithms.base import TaskInference
from mg2l.core.files import replacing
from mg2l.core.schema import ConfigError
from mg2l.envs import gate, registry
from mg2l.envs.base import EnvConfig
from mg2l.evaluation import statistics
from mg2l.evaluation.adaptation import PARTS, Scale
from mg2l.evaluation.meta_test import MetaTest, Sampling, Scored
from mg2l.training.learner import Learner

SCRIPTED_EPISODES = 4
"""Episodes per task of hand-written teams."""

MISMATCHED = 12
"""Tasks of the mismatch matrix at most: it plays the square of their number."""

CSV_COLUMNS = (
    *("training_seed", "split", "task"),
    *("mode", "shots", "sampling"),
    *("episode", "length", "agent", "return"),
)


@dataclass(frozen=True)
class Played:
    """Episodes of one way of acting."""

    split: str
    mode: str
    """``shots``, ``online`` or ``random``."""

    shots: int
    sampling: str
    names: list[str]
    """``[K]`` of the tasks."""

    returns: NDArray[np.float64]
    """``[K, episodes, A]`` sum of each agent's rewards."""

    lengths: NDArray[np.int64]
    """``[K, episodes]`` steps."""


def bounds(returns: NDArray[np.float64]) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of ``[K, episodes]``, stratified by task."""
    _, low, high = statistics.bootstrap(returns.T)
    return low, high


Report = Callable[[int, int, str], object]
"""Called with the ways of acting played, how many there are, and the name of the latest."""


def label(row: Played | dict[str, Any]) -> str:
    """A way of acting in a few words."""
    held = row if isinstance(row, dict) else vars(row)
    if held["mode"] != "shots":
        return str(held["mode"])
    return f"{held['shots']} shots, {held['sampling']}"


def play(
    test: MetaTest,
    split: str,
    shots: Sequence[int],
    report: Callable[[Played], object] = lambda played: None,
) -> list[Played]:
    """Every way of acting that the algorithm knows, on the tasks of a part.

    Args:
        test: made for these tasks.
        split: the part.
        shots: episodes of exploration before acting.
        report: called with each way that has been played.
    """
    names = [test.learner.env.tasks.names[i] for i in test.learner.env.tasks.parts[split]]
    found: list[Played] = []

    def add(mode: str, count: int, sampling: str, returns: Any, lengths: Any) -> None:
        shape = (len(names), test.episodes)
        by_task = (np.reshape(returns, (*shape, -1)), np.reshape(lengths, shape))
        found.append(Played(split, mode, count, sampling, names, *by_task))
        report(found[-1])

    def add_scored(mode: str, count: int, sampling: str, scored: Scored) -> None:
        add(mode, count, sampling, scored.returns.cpu().numpy(), scored.lengths.cpu().numpy())

    samplings: list[Sampling] = ["uniform", "priority"] if test.prioritises else ["uniform"]
    test.play_each(shots, samplings, lambda *way: add_scored("shots", *way))
    add_scored("online", 0, "uniform", test.play_online())
    add("random", 0, "none", *test.play_random())
    return found


def ways(inference: TaskInference, shots: Sequence[int]) -> int:
    """How many ways of acting `play` plays."""
    prioritises = inference.has_priorities and inference.decentralised
    again = sum(count > 0 for count in shots) if prioritises else 0
    return len(shots) + again + 2


def mismatch(learner: Learner, split: str, shots: int, episodes: int, seed: int) -> dict[str, Any]:
    """Mean returns of acting in a task on the context of another; rows are the contexts' tasks."""
    tasks = learner.env.tasks
    ids = tasks.parts[split][:MISMATCHED].tolist()
    test = MetaTest(learner, ids, episodes, seed)
    try:
        returns = test.play_mismatched(shots)
    finally:
        test.close()
    return {"shots": shots, "tasks": [tasks.names[i] for i in ids], "returns": returns.tolist()}


def summary(
    played: Played,
    normalise: tuple[float, float] | None = None,
    scale: Scale | None = None,
) -> dict[str, Any]:
    """Means and intervals of one way of acting.

    Args:
        played: its episodes.
        normalise: mean returns that count as 0 and as 1.
        scale: of adaptation scores, which are task by task.
    """
    team = played.returns.mean(2)
    found: dict[str, Any] = {
        "split": played.split,
        "mode": played.mode,
        "shots": played.shots,
        "sampling": played.sampling,
        "return": float(team.mean()),
        "interval": bounds(team),
        "episode_length": float(played.lengths.mean()),
        "by_agent": [
            {"return": float(own.mean()), "interval": bounds(own)}
            for own in np.moveaxis(played.returns, 2, 0)
        ],
        "by_task": {
            name: {"return": float(row.mean()), "interval": bounds(row[None])}
            for name, row in zip(played.names, team, strict=True)
        },
    }
    if normalise is not None and normalise[1] != normalise[0]:
        low, high = normalise
        found["normalised"] = (found["return"] - low) / (high - low)
    if scale is not None and scale.tasks:
        scores = [scale.score(task, found["by_task"][task]["return"]) for task in scale.tasks]
        value, low, high = statistics.nested_bootstrap([[scores]])
        for task, score in zip(scale.tasks, scores, strict=True):
            found["by_task"][task]["score"] = score
        found["adaptation"] = {"score": value, "interval": (low, high)}
    return found


def scripted(config: EnvConfig, seed: int) -> dict[str, dict[str, float]]:
    """Mean returns of random actions and of hand-written teams by part of the tasks.

    Nothing where the family has no such teams.
    """
    if not registry.has_scripted(config):
        return {}
    found = gate.measure("", config, SCRIPTED_EPISODES, seed)
    return {
        part: {"random": found.random[part], "blind": found.blind[part], "informed": informed}
        for part, informed in found.informed.items()
    }


def _check_reference(option: str, of: str, fits: bool, learner: Learner, other: Learner) -> None:
    if not fits:
        raise ConfigError(f"{option} must be a run of {of}, got one of {other.config.algo_name}")
    if other.config.env != learner.config.env:
        raise ConfigError(f"{option} must be a run in the same environment, got one in another")


def evaluate(
    learner: Learner,
    oracle: Learner | None = None,
    shots: Sequence[int] = (0, 1, 2, 5),
    episodes: int = 32,
    seed: int = 0,
    deterministic: bool = False,
    report: Report = lambda done, total, name: None,
    mappo: Learner | None = None,
) -> tuple[dict[str, Any], list[Played]]:
    """Meta-test a trained run in every way of acting, on every part of its tasks.

    Args:
        learner: learner of the run.
        oracle: learner of a run of the oracle in the same environment, to normalise by.
        shots: episodes of exploration before acting.
        episodes: per task.
        seed: random seed; all ways of acting meet the same episodes.
        deterministic: act on the most likely action instead of a sample, except while exploring.
        report: see `Report`.
        mappo: learner of a run that ignores the task, with ``oracle`` for adaptation scores.

    Returns:
        Content of ``evaluation.json`` except the iteration, and the episodes behind it.

    Raises:
        ConfigError: ``oracle`` or ``mappo`` is of another algorithm or environment, or there is
            ``mappo`` alone.
    """
    if oracle is not None:
        _check_reference("--oracle", "oracle", oracle.inference.knows_task, learner, oracle)
    if mappo is not None:
        ignores = mappo.inference.latent_source == "nothing"
        ignores = ignores and not mappo.actor.body.remembers_episodes
        _check_reference("--mappo", "mappo", ignores, learner, mappo)
        if oracle is None:
            raise ConfigError("--mappo needs --oracle, the other end of the scale")
    played: list[Played] = []
    results: list[dict[str, Any]] = []
    scales: dict[str, Any] = {}
    parts = learner.env.tasks.parts
    splits = [split for split in PARTS if split in parts]
    teams = scripted(learner.config.env, seed)

    def reference(of: Learner, split: str) -> dict[str, float]:
        with closing(MetaTest(of, parts[split].tolist(), episodes, seed, deterministic)) as test:
            by_task = test.play(0).returns.mean(1).view(-1, episodes).mean(1)
        names = [learner.env.tasks.names[i] for i in parts[split]]
        return dict(zip(names, by_task.tolist(), strict=True))

    total, done = ways(learner.inference, shots) * len(splits), itertools.count(1)

    def on_way(row: Played) -> None:
        report(next(done), total, f"{row.split}: {label(row)}")

    for split in splits:
        with closing(MetaTest(learner, parts[split].tolist(), episodes, seed, deterministic)) as t:
            rows = play(t, split, shots, on_way)
        normalise, scale = None, None
        if oracle is not None:
            one = reference(oracle, split)
            random, best = float(rows[-1].returns.mean()), float(np.mean(list(one.values())))
            normalise, scales[split] = (random, best), {"random": random, "oracle": best}
        if oracle is not None and mappo is not None:
            reach = best - random
            if split in teams:
                reach = teams[split]["informed"] - teams[split]["blind"]
            scale = Scale(reference(mappo, split), one, reach)
            scales[split] |= {
                "mappo": float(np.mean(list(scale.zero.values()))),
                "reach": reach,
                "scored": len(scale.tasks),
                "unscored": scale.unscored,
            }
        results += [summary(row, normalise, scale) for row in rows]
        played += rows
    found: dict[str, Any] = {
        "algorithm": learner.config.algo_name,
        "training_seed": learner.config.seed,
        "seed": seed,
        "episodes_per_task": episodes,
        "deterministic": deterministic,
        "results": results,
        "scale": scales,
        "scripted": teams,
    }
    if learner.inference.infers_from_contexts and max(shots) > 0:
        found["mismatch"] = {
            split: mismatch(learner, split, max(shots), episodes, seed) for split in splits
        }
    return found, played


def write_csv(path: Path, training_seed: int, played: list[Played]) -> None:
    """A row per task, episode and agent. Raises WriteError."""
    with replacing(path) as partial, partial.open("x", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_COLUMNS)
        for rows in played:
            for (task, episode, agent), value in np.ndenumerate(rows.returns):
                writer.writerow(
                    [
                        *(training_seed, rows.split, rows.names[task]),
                        *(rows.mode, rows.shots, rows.sampling),
                        *(episode, rows.lengths[task, episode], agent, f"{value:.6g}"),
                    ]
                )
