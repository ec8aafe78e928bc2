"""Everything that is measured of a trained run: every way of acting, on every part of the tasks."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mg2l.core.files import replacing
from mg2l.core.schema import ConfigError
from mg2l.evaluation import statistics
from mg2l.evaluation.meta_test import MetaTest, Sampling
from mg2l.training.learner import Learner

SPLITS = ("test", "train", "ood")
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


Way = tuple[str, int, str]
"""Mode, shots and sampling, as of `Played`."""

Report = Callable[[int, int, str], object]
"""Called with the ways of acting played, how many there are, and the name of the latest."""


def ways(test: MetaTest, shots: Sequence[int]) -> list[Way]:
    """Every way of acting that the algorithm knows."""
    found: list[Way] = []
    for count in shots:
        found.append(("shots", count, "uniform"))
        if count and test.prioritises:
            found.append(("shots", count, "priority"))
    if test.infers:
        found.append(("online", 0, "uniform"))
    return [*found, ("random", 0, "none")]


def label(row: Played | dict[str, Any]) -> str:
    """A way of acting in a few words."""
    held = row if isinstance(row, dict) else vars(row)
    if held["mode"] != "shots":
        return str(held["mode"])
    return f"{held['shots']} shots, {held['sampling']}"


def play(test: MetaTest, split: str, way: Way) -> Played:
    """Play one way of acting on the tasks of a split, which the test is made for."""
    mode, shots, sampling = way
    returns: Any
    lengths: Any
    if mode == "random":
        returns, lengths = test.play_random()
    else:
        online = mode == "online"
        scored = test.play_online() if online else test.play(shots, cast("Sampling", sampling))
        returns, lengths = scored.returns.cpu().numpy(), scored.lengths.cpu().numpy()
    names = test.learner.env.tasks.names
    ids = test.learner.env.tasks.parts[split]
    shape = (len(ids), test.episodes)
    by_task = (returns.reshape(*shape, -1), lengths.reshape(shape))
    return Played(split, mode, shots, sampling, [names[i] for i in ids], *by_task)


def mismatch(learner: Learner, split: str, shots: int, episodes: int, seed: int) -> dict[str, Any]:
    """Context of one task, acting in another: mean returns, rows are the contexts' tasks."""
    tasks = learner.env.tasks
    ids = tasks.parts[split][:MISMATCHED].tolist()
    test = MetaTest(learner, ids, episodes, seed)
    try:
        returns = test.play_mismatched(shots)
    finally:
        test.close()
    return {"shots": shots, "tasks": [tasks.names[i] for i in ids], "returns": returns.tolist()}


def summary(played: Played, scale: tuple[float, float] | None) -> dict[str, Any]:
    """Means and intervals of one way of acting; ``scale`` is what counts as 0 and as 1."""
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
    if scale is not None and scale[1] != scale[0]:
        found["normalised"] = (found["return"] - scale[0]) / (scale[1] - scale[0])
    return found


def evaluate(
    learner: Learner,
    oracle: Learner | None = None,
    shots: Sequence[int] = (0, 1, 2, 5),
    episodes: int = 32,
    seed: int = 0,
    deterministic: bool = False,
    report: Report = lambda done, total, name: None,
) -> tuple[dict[str, Any], list[Played]]:
    """Meta-test a trained run in every way of acting, on every part of its tasks.

    Args:
        learner: of the run.
        oracle: learner of a run of the oracle in the same environment, to normalise by.
        shots: episodes of exploration before acting.
        episodes: per task.
        seed: random seed; all ways of acting meet the same episodes.
        deterministic: act on the most likely action instead of a sample.
        report: see `Report`.

    Returns:
        What ``evaluation.json`` holds, but for the iteration, and the episodes behind it.

    Raises:
        ConfigError: ``oracle`` is of another algorithm or environment.
    """
    if oracle is not None and not oracle.inference.knows_task:
        raise ConfigError(f"--oracle must be a run of oracle, got one of {oracle.config.algo_name}")
    if oracle is not None and oracle.config.env != learner.config.env:
        raise ConfigError("--oracle must be a run in the same environment, got one in another")
    played: list[Played] = []
    results: list[dict[str, Any]] = []
    scales: dict[str, Any] = {}
    parts = learner.env.tasks.parts
    splits = [split for split in SPLITS if split in parts]
    for split in splits:
        with closing(MetaTest(learner, parts[split].tolist(), episodes, seed, deterministic)) as t:
            plan = ways(t, shots)
            rows = []
            for way in plan:
                rows.append(play(t, split, way))
                total = len(plan) * len(splits)
                report(len(played) + len(rows), total, f"{split}: {label(rows[-1])}")
        scale = None
        if oracle is not None:
            ids = parts[split].tolist()
            with closing(MetaTest(oracle, ids, episodes, seed, deterministic)) as t:
                best = play(t, split, ("shots", 0, "uniform"))
            scale = (float(rows[-1].returns.mean()), float(best.returns.mean()))
            scales[split] = {"random": scale[0], "oracle": scale[1]}
        results += [summary(row, scale) for row in rows]
        played += rows
    found: dict[str, Any] = {
        "algorithm": learner.config.algo_name,
        "training_seed": learner.config.seed,
        "seed": seed,
        "episodes_per_task": episodes,
        "deterministic": deterministic,
        "results": results,
        "scale": scales,
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
