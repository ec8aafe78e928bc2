"""Meta-test a run: ``python -m mg2l.evaluate RUN --oracle ORACLE_RUN``.

On the held-out tasks, those of training and those beyond their distribution, after 0, 1, 2 and 5
episodes of exploration under the prior, each agent infers the task from its own transitions and
acts; also with transitions drawn by their priority, and online, the context growing within the
episode. All of them meet the same episodes. Prints a line per task and one per way of acting,
writes ``evaluation.json`` and ``evaluation.csv`` (a row per episode and agent) into the run's
folder, and with ``--video`` a video of each held-out task into its folder ``videos``.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from mg2l import cli
from mg2l.core.files import write_json
from mg2l.core.schema import ConfigError
from mg2l.envs import video
from mg2l.evaluation import measure
from mg2l.evaluation.adaptation import LEAST
from mg2l.evaluation.trained import iteration_of, load
from mg2l.evaluation.video import write_videos
from mg2l.training import checkpoint
from mg2l.training.learner import Learner
from mg2l.training.progress import Bar


def show_tasks(evaluation: dict[str, Any]) -> None:
    """Print a line per task: its return in every way of acting."""
    for split in dict.fromkeys(row["split"] for row in evaluation["results"]):
        rows = [row for row in evaluation["results"] if row["split"] == split]
        for task in rows[0]["by_task"]:
            cells = [f"{measure.label(row)} {row['by_task'][task]['return']:.1f}" for row in rows]
            print(f"{split:5}  {task}:  {'  '.join(cells)}")


def show(evaluation: dict[str, Any]) -> None:
    """Print a line per way of acting, and what hand-written teams earn."""
    for row in evaluation["results"]:
        low, high = row["interval"]
        more = f"   normalised {row['normalised']:.2f}" if "normalised" in row else ""
        if "adaptation" in row:
            (least, most), score = row["adaptation"]["interval"], row["adaptation"]["score"]
            more += f"   adaptation {score:.2f} [{least:.2f}, {most:.2f}]"
        print(
            f"{row['split']:5}  {measure.label(row):19}  return {row['return']:8.1f}  "
            f"[{low:.1f}, {high:.1f}]{more}"
        )
    for split, scale in evaluation["scale"].items():
        if "unscored" in scale:
            print(
                f"{split:5}  {scale['scored']} tasks have an adaptation score, {scale['unscored']} "
                f"none: oracle and mappo differ by less than {LEAST:g} of {scale['reach']:.1f}"
            )
    for split, teams in evaluation["scripted"].items():
        shown = "  ".join(f"{name} {value:.1f}" for name, value in teams.items())
        print(f"{split:5}  scripted teams: {shown}")


def videos(run: Path, kind: str, seed: int, deterministic: bool, trust: bool) -> None:
    """Write the videos of a run into its folder ``videos``, and say where."""
    folder = checkpoint.locate(run)[0] / "videos"
    if folder.is_symlink():
        raise ConfigError(f"{folder}: must be a folder of the run, and no link")
    with closing(load(run, trust=trust)) as learner:
        for path in write_videos(learner, folder, kind, seed, deterministic):
            print(path)


@cli.command
def main() -> None:
    """Entry point of ``python -m mg2l.evaluate``."""
    parser = cli.Parser(prog="python -m mg2l.evaluate", description=__doc__)
    parser.add_argument("run", type=Path, help="run folder, or one of its checkpoints")
    parser.add_argument("--oracle", type=Path, help="run of the oracle, to normalise by")
    parser.add_argument(
        "--mappo",
        type=Path,
        help="run of mappo, for adaptation scores: 0 mappo, 1 --oracle",
    )
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
        "--deterministic",
        action="store_true",
        help="act on the most likely action, except while exploring",
    )
    parser.add_argument(
        "--video",
        nargs="?",
        const="mp4",
        choices=[ending[1:] for ending in video.PACKAGES],
        help="record each held-out task, or where there are none those of training (default kind: "
        "%(const)s)",
    )
    parser.add_argument("--trust", action="store_true", help=cli.TRUST)
    arguments = parser.parse_args()
    if arguments.video is not None:
        video.check(Path(f"video.{arguments.video}"))
    run = checkpoint.locate(arguments.run)[0]
    with ExitStack() as stack:
        learner = stack.enter_context(closing(load(arguments.run, trust=arguments.trust)))

        def reference(path: Path | None) -> Learner | None:
            if path is None:
                return None
            return stack.enter_context(closing(load(path, trust=arguments.trust)))

        oracle, mappo = reference(arguments.oracle), reference(arguments.mappo)
        bar = stack.enter_context(Bar("meta-test", 0, "ways of acting"))
        evaluation, played = measure.evaluate(
            learner,
            oracle,
            sorted(set(arguments.shots)),
            arguments.episodes,
            arguments.seed,
            arguments.deterministic,
            lambda done, total, name: bar.update(done, name, total),
            mappo,
        )
    evaluation["iteration"] = iteration_of(arguments.run)
    show_tasks(evaluation)  # before it is written, which can fail
    show(evaluation)
    write_json(run / "evaluation.json", evaluation)
    measure.write_csv(run / "evaluation.csv", evaluation["training_seed"], played)
    if arguments.video is not None:
        given = (arguments.video, arguments.seed, arguments.deterministic, arguments.trust)
        videos(arguments.run, *given)


if __name__ == "__main__":
    main()
