"""How well a trained representation identifies the tasks, on contexts that it was never trained on.

``python -m mg2l.probe RUN`` explores every task again under the prior, draws contexts from those
episodes, and measures how well half of the representations predict the training tasks of the other
half, ``z`` of joint experience and each ``z^i`` of one agent's own; and how much of the features of
training, held-out and further tasks a linear regression reads from them that was fitted on training
tasks. Also the bounds on information that training logs, on these fresh contexts; the
two-dimensional maps of representations; and the priorities of an episode's transitions. Writes
``probe.json`` into the run's folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mg2l import cli
from mg2l.core.files import write_json
from mg2l.core.packages import require
from mg2l.evaluation import plots, trained
from mg2l.evaluation.probe import (
    Probe,
    draw,
    episodes_to_explore,
    load,
    planes,
    priorities,
    probe,
)
from mg2l.evaluation.representation import maps
from mg2l.training import checkpoint
from mg2l.training.progress import Bar


def show(found: Probe, tasks: Sequence[str]) -> None:
    """Print what was measured: a line per representation, and one per training task."""
    for level in found.z:
        print(f"  {level:8}  {_pairs(found.figures[level])}")
    if more := _pairs({name: x for name, x in found.figures.items() if name not in found.z}):
        print(f"  {more}")
    for task, name in enumerate(tasks):
        fractions = {level: found.by_task[level][task] for level in found.z}
        print(f"  nearest, task {name}:  {_pairs(fractions)}")


def _pairs(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in values.items())


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
        help="picture of the maps, for the last of --episodes",
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
    for episodes in arguments.episodes:
        with Bar("exploring again", episodes_to_explore(learner), "episodes") as bar:
            found = probe(learner, episodes, bar.advance)
        contexts[str(episodes)] = found.figures
        print(f"contexts of {episodes:2} fresh episodes")
        show(found, names)
    levels = planes(found.z, learner.tasks, arguments.by)
    written: dict[str, Any] = {
        "iteration": trained.iteration_of(arguments.run),
        "tasks": names,
        "contexts": contexts,
        "maps": {
            level: {way: points.round(3).tolist() for way, points in ways.items()}
            for level, ways in levels.items()
        },
    }
    if learner.inference.has_priorities:
        weights = priorities(learner.inference, found.episodes)
        written["priorities"] = weights.round(3).tolist()
    write_json(checkpoint.locate(arguments.run)[0] / "probe.json", written)
    if arguments.map is not None:
        draw(arguments.map, levels, names)


if __name__ == "__main__":
    main()
