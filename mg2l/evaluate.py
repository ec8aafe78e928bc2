"""Meta-test a run: ``python -m mg2l.evaluate RUN --oracle ORACLE_RUN``.

On the held-out tasks, those of training and those beyond their distribution, after 0, 1, 2 and 5
episodes of exploration under the prior, each agent infers the task from its own transitions and
acts; also with transitions drawn by their priority, and online, the context growing within the
episode. All of them meet the same episodes. Writes ``evaluation.json`` and ``evaluation.csv`` (a
row per episode and agent) into the run's folder, and with ``--video`` a film of each held-out task
into its folder ``videos``.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mg2l import cli
from mg2l.core.files import replacing, write_json
from mg2l.core.schema import ConfigError
from mg2l.envs import video
from mg2l.evaluation import statistics
from mg2l.evaluation.meta_test import MetaTest, Scored
from mg2l.evaluation.video import write_videos
from mg2l.training import checkpoint
from mg2l.training.device import select_device
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


def play_all(
    learner: Learner, split: str, shots: list[int], episodes: int, seed: int, deterministic: bool
) -> Iterator[Played]:
    """Every way of acting that the algorithm knows, on the tasks of a split."""
    tasks = learner.env.tasks
    ids = tasks.parts[split]
    names = [tasks.names[i] for i in ids]
    test = MetaTest(learner, ids.tolist(), episodes, seed, deterministic)

    def played(mode: str, count: int, sampling: str, returns: Any, lengths: Any) -> Played:
        shape = (len(ids), episodes)
        by_task = (returns.reshape(*shape, -1), lengths.reshape(shape))
        return Played(split, mode, count, sampling, names, *by_task)

    def scored(mode: str, count: int, sampling: str, episode: Scored) -> Played:
        numbers = (episode.returns.cpu().numpy(), episode.lengths.cpu().numpy())
        return played(mode, count, sampling, *numbers)

    try:
        for count in shots:
            yield scored("shots", count, "uniform", test.play(count))
            if count and test.prioritises:
                yield scored("shots", count, "priority", test.play(count, "priority"))
        if test.infers:
            yield scored("online", 0, "uniform", test.play_online())
        yield played("random", 0, "none", *test.play_random())
    finally:
        test.close()


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


def load(path: Path, device: torch.device | None = None, trust: bool = False) -> Learner:
    """The learner of a run, at its last checkpoint.

    Args:
        path: folder of the run.
        device: where it is to live; None is where it was trained.
        trust: import the code that the run names, see `mg2l.config.files.config_from_yaml`.

    Raises:
        ConfigError: no run lies at ``path``.
        CheckpointError: it has no whole checkpoint.
    """
    if not (path / "config.yaml").is_file():
        raise ConfigError(f"{path}: no run lies there (it has no config.yaml)")
    config = cli.config_from_yaml(path / "config.yaml", trust)
    learner = Learner(config, device or select_device(config.gpu_id))
    learner.load_networks(checkpoint.load_networks(path, learner.networks()))
    return learner


def evaluate(
    run: Path,
    oracle: Path | None,
    shots: list[int],
    episodes: int,
    seed: int,
    deterministic: bool,
    trust: bool = False,
) -> tuple[dict[str, Any], list[Played]]:
    """Everything that ``evaluation.json`` holds, and the episodes behind it.

    ``trust`` is for `load`.

    Raises:
        ConfigError: the oracle's environment is another one.
    """
    learner = load(run, trust=trust)
    told = None if oracle is None else load(oracle, trust=trust)
    if told is not None and not told.inference.knows_task:
        raise ConfigError(f"--oracle must be a run of oracle, got one of {told.config.algo_name}")
    if told is not None and told.config.env != learner.config.env:
        raise ConfigError(f"--oracle must be a run in the same environment, got {oracle}")
    episodes_played: list[Played] = []
    results, scales = [], {}
    for split in SPLITS:
        if split not in learner.env.tasks.parts:
            continue
        rows = list(play_all(learner, split, shots, episodes, seed, deterministic))
        random = rows[-1].returns.mean()
        scale = None
        if told is not None:
            best = next(play_all(told, split, [0], episodes, seed, deterministic))
            scale = (float(random), float(best.returns.mean()))
            scales[split] = {"random": scale[0], "oracle": scale[1]}
        results += [summary(row, scale) for row in rows]
        episodes_played += rows
    found: dict[str, Any] = {
        "algorithm": learner.config.algo_name,
        "training_seed": learner.config.seed,
        "iteration": checkpoint.last_iteration(run / "checkpoints"),
        "seed": seed,
        "episodes_per_task": episodes,
        "deterministic": deterministic,
        "results": results,
        "scale": scales,
    }
    if learner.inference.infers_from_contexts and max(shots) > 0:
        found["mismatch"] = {
            split: mismatch(learner, split, max(shots), episodes, seed)
            for split in dict.fromkeys(played.split for played in episodes_played)
        }
    learner.close()
    if told is not None:
        told.close()
    return found, episodes_played


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


def show(found: dict[str, Any]) -> None:
    """Print a line per way of acting."""
    for row in found["results"]:
        low, high = row["interval"]
        how = f"{row['shots']} shots, {row['sampling']}" if row["mode"] == "shots" else row["mode"]
        share = f"   normalised {row['normalised']:.2f}" if "normalised" in row else ""
        print(
            f"{row['split']:5}  {how:19}  return {row['return']:8.1f}  "
            f"[{low:.1f}, {high:.1f}]{share}"
        )


def films(run: Path, kind: str, seed: int, deterministic: bool, trust: bool) -> None:
    """Write the films of a run into its folder ``videos``, and say where."""
    if (run / "videos").is_symlink():
        raise ConfigError(f"{run / 'videos'}: must be a folder of the run, and no link")
    learner = load(run, trust=trust)
    try:
        for path in write_videos(learner, run / "videos", kind, seed, deterministic):
            print(path)
    finally:
        learner.close()


@cli.command
def main() -> None:
    """Entry point of ``python -m mg2l.evaluate``."""
    parser = cli.Parser(prog="python -m mg2l.evaluate", description=__doc__)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--oracle", type=Path, help="run of the oracle, to normalise by")
    parser.add_argument(
        "--shots",
        type=cli.at_least(0),
        nargs="+",
        default=[0, 1, 2, 5],
        help="episodes of exploration before acting (default: 0 1 2 5)",
    )
    parser.add_argument(
        "--episodes",
        type=cli.at_least(1),
        default=32,
        help="episodes per task (default: %(default)s)",
    )
    parser.add_argument("--seed", type=cli.at_least(0), default=0, help="random seed (default: 0)")
    parser.add_argument(
        "--deterministic", action="store_true", help="act on the most likely action"
    )
    parser.add_argument(
        "--video",
        nargs="?",
        const="gif",
        choices=["gif", "mp4"],
        help="film each held-out task, or where there are none those of training (default kind: "
        "%(const)s)",
    )
    parser.add_argument("--trust", action="store_true", help=cli.TRUST)
    arguments = parser.parse_args()
    if arguments.video is not None:
        video.check(Path(f"film.{arguments.video}"))
    found, played = evaluate(
        arguments.run,
        arguments.oracle,
        sorted(set(arguments.shots)),
        arguments.episodes,
        arguments.seed,
        arguments.deterministic,
        arguments.trust,
    )
    show(found)  # first, so that it is not lost where it cannot be written
    write_json(arguments.run / "evaluation.json", found)
    write_csv(arguments.run / "evaluation.csv", found["training_seed"], played)
    if arguments.video is not None:
        films(
            arguments.run,
            arguments.video,
            arguments.seed,
            arguments.deterministic,
            arguments.trust,
        )


if __name__ == "__main__":
    main()
