"""Figures of meta-tests: few shots, profiles, improvement, mismatched contexts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mg2l.evaluation import statistics
from mg2l.evaluation.adaptation import PARTS
from mg2l.evaluation.groups import end, student
from mg2l.evaluation.results import Run
from mg2l.report.panels import Panel, Section, Style, figure, forest
from mg2l.report.training import Algorithms, lines

Matrix = NDArray[np.float64]

LEAST_GAIN = 1e-9
"""Return by which an oracle must be better than random behaviour for scores in units of that."""


def row(run: Run, split: str, mode: str, shots: int = 0) -> dict[str, Any] | None:
    """The row of ``evaluation.json`` for one way of acting, None where there is none."""
    wanted = {"split": split, "mode": mode, "shots": shots}
    for found in (run.evaluation or {}).get("results", []):
        ways = {key: found[key] for key in wanted}
        if ways == wanted and found["sampling"] != "priority":
            return dict(found)
    return None


def shots_of(runs: Sequence[Run], split: str) -> list[int]:
    """Numbers of shots that every run of these was tested with, if it was."""
    sets = [
        {r["shots"] for r in run.evaluation["results"] if row(run, split, "shots", r["shots"])}
        for run in runs
        if run.evaluation
    ]
    tested = [of_run for of_run in sets if of_run]
    return sorted(set.intersection(*tested)) if tested else []


@dataclass
class Scores:
    """Scores of every algorithm on the same tasks.

    Attributes:
        by_algo: ``[R, K]`` each.
        what: what they are, in words.
        normalised: 0 is random behaviour and 1 the oracle.
    """

    by_algo: dict[str, Matrix]
    what: str
    normalised: bool = False

    @property
    def axis(self) -> str:
        """Title of an axis of scores, which fits a phone."""
        return "normalised return" if self.normalised else "return"


def scores(algos: Algorithms, last: int, cut: int | None) -> Scores:
    """Scores of meta-tests where every algorithm has one, else of the end of training.

    Meta-tests count on held-out tasks, where there are any, after as many shots as all were given;
    normalised by task between random behaviour and the mean of the oracle's runs, where these have
    been tested and are better everywhere.
    """
    for split in PARTS:
        runs = [run for held in algos.values() for run in held if run.evaluation]
        shots = shots_of(runs, split)
        if not shots or not all(any(run.evaluation for run in held) for held in algos.values()):
            continue
        rows = {
            algo: [_by_task(row(run, split, "shots", shots[-1])) for run in held]
            for algo, held in algos.items()
        }
        by_chance = [_by_task(row(run, split, "random")) for run in runs]
        found = _matrices(rows | {"": by_chance})
        random = found.pop("", None)
        if not found:
            continue
        what = f"return on {PARTS[split]}, {shots[-1]} shots"
        bounds = [name for name in found if all(run.knows_task for run in algos[name])]
        if len(bounds) == 1 and random is not None:
            floor, gain = random.mean(0), found[bounds[0]].mean(0) - random.mean(0)
            if (gain > LEAST_GAIN).all():
                normalised = {algo: (of_algo - floor) / gain for algo, of_algo in found.items()}
                return Scores(normalised, f"normalised {what}", True)
        return Scores(found, what)
    ends = {algo: end(runs, last, cut) for algo, runs in algos.items()}
    found = _matrices(
        {
            algo: [run.mean_by_task(at.after, at.env_steps) for run in at.runs]
            for algo, at in ends.items()
            if at is not None
        }
    )
    return Scores(found, "return at the end of training")


def _by_task(found: dict[str, Any] | None) -> dict[str, float]:
    if found is None:
        return {}
    return {task: held["return"] for task, held in found["by_task"].items()}


def _matrices(table: dict[str, list[dict[str, float]]]) -> dict[str, Matrix]:
    """Rows of the runs that have any, columns of the tasks that all of these have."""
    held = {name: [row for row in rows if row] for name, rows in table.items() if any(rows)}
    tasks = [set(row) for rows in held.values() for row in rows]
    common = sorted(set.intersection(*tasks)) if tasks else []
    return {
        name: np.asarray([[row[task] for task in common] for row in rows], float)
        for name, rows in held.items()
        if common
    }


def few_shots(style: Style, algos: Algorithms) -> Section:
    """Return over episodes of exploration."""
    section = Section(
        "Few shots",
        "After K episodes of exploration under the prior, each agent infers the task from its own "
        "transitions alone. Intervals: 95 %, Student's t over seeds.",
    )
    for split, where in PARTS.items():
        found, means = figure("episodes of exploration", "return"), []
        for algo, runs in algos.items():
            shots = shots_of(runs, split)
            points = [
                student(r["return"] for run in runs if (r := row(run, split, "shots", count)))
                for count in shots
            ]
            if not points:
                continue
            mean, low, high = np.asarray(points).T
            if np.isfinite(low).all():
                found.add_trace(style.band(algo, shots, low, high, len(algos)))
            fixed = all(run.ignores_task or run.knows_task for run in runs)
            if fixed and len(shots) == 1:  # the same after any number of episodes
                means.append(_level(style, algo, _most(algos, split), float(mean[0])))
            else:
                means.append(style.line(algo, shots, mean, mode="lines+markers"))
        found.add_traces(means)
        if means:
            random = [r["return"] for runs in algos.values() for run in runs
                      if (r := row(run, split, "random"))]  # fmt: skip
            if random:
                found.add_hline(
                    float(np.mean(random)),
                    line={"color": "#8a8a8a", "dash": "dot", "width": 1},
                    annotation={"text": "random", "font": {"color": "#8a8a8a"}},
                )
            caption = "Measured after training, by mg2l.evaluate. Dotted: an untrained team."
            section.panels.append(Panel(f"On {where}", caption, found))
        for count in _logged_shots(algos, split):
            curve = lines(style, algos, f"eval/{split}_{count}_shots", "return", 1)
            title = f"{count} shots on {where}, while training"
            section.panels.append(Panel(title, "Small tests, of eval_interval.", curve))
    return section


def _most(algos: Algorithms, split: str) -> int:
    """The most episodes of exploration of any algorithm, at least 1."""
    return max([1, *(max(shots_of(runs, split), default=0) for runs in algos.values())])


def _level(style: Style, algo: str, most: int, value: float) -> Any:
    """A line at one height."""
    return style.line(algo, [0, most], [value, value], mode="lines")


def _logged_shots(algos: Algorithms, split: str) -> list[int]:
    """The fewest and the most shots of the meta-tests during training."""
    logged = re.compile(rf"eval/{split}_(0|[1-9][0-9]{{0,8}})_shots")
    counts = {
        int(found[1])
        for runs in algos.values()
        for run in runs
        for row in run.numbers
        for name in row
        if (found := logged.fullmatch(name))
    }
    return sorted({min(counts), max(counts)}) if counts else []


def profiles(style: Style, found: Scores) -> Section:
    """Aggregates of scores over runs and tasks (Agarwal et al., 2021)."""
    section = Section(
        "Aggregates over runs and tasks",
        f"Scores: {found.what}. Intervals: 95 % bootstrap, runs resampled within each task; with "
        "few seeds they are too narrow. Agarwal et al., NeurIPS 2021.",
    )
    if not found.by_algo:
        return section
    middle = {
        algo: statistics.bootstrap(held, statistics.interquartile_mean)
        for algo, held in found.by_algo.items()
    }
    section.panels.append(
        Panel(
            "Interquartile mean",
            "Of the middle half of all scores.",
            forest(style, middle, found.axis, 1.0 if found.normalised else None),
        )
    )
    reference = next(iter(found.by_algo))
    rivals = {
        algo: statistics.improvement(found.by_algo[reference], held)
        for algo, held in found.by_algo.items()
        if algo != reference
    }
    if rivals:
        section.panels.append(
            Panel(
                f"Probability that {reference} improves on the other",
                "That a run of it beats one of the other's, mean over tasks.",
                forest(style, rivals, "probability", 0.5),
            )
        )
    everything = np.concatenate([held.ravel() for held in found.by_algo.values()])
    thresholds = np.linspace(everything.min(), everything.max(), 101)
    drawn = figure(
        f"threshold of the {found.axis}", "fraction scoring above", yaxis_range=[-0.02, 1.02]
    )
    for algo, held in found.by_algo.items():
        share = statistics.profile(held, thresholds)
        drawn.add_trace(style.line(algo, thresholds, share, line_shape="hv"))
    section.panels.append(
        Panel("Performance profiles", "A curve above another is better.", drawn, wide=True)
    )
    return section


def mismatches(algos: Algorithms) -> Section:
    """The cost of a context of the wrong task."""
    section = Section(
        "The wrong context",
        "Return of acting in one task (columns) on what another task has shown (rows), mean over "
        "seeds.",
    )
    for algo, runs in algos.items():
        for split, where in PARTS.items():
            held = [
                run.evaluation["mismatch"][split]
                for run in runs
                if run.evaluation and split in run.evaluation.get("mismatch", {})
            ]
            if not held or len(held[0]["tasks"]) < 2:
                continue
            names = held[0]["tasks"]
            of_runs = [table["returns"] for table in held if table["tasks"] == names]
            mean = np.asarray(of_runs, float).mean(0)
            drawn = figure("acts in task", "has seen task", yaxis_autorange="reversed")
            drawn.add_heatmap(
                z=mean,
                x=[escape(name) for name in names],
                y=[escape(name) for name in names],
                colorscale="Viridis",
                texttemplate="%{z:.0f}" if len(names) <= 6 else None,
                colorbar={"thickness": 10},
            )
            caption = f"After {held[0]['shots']} shots."
            section.panels.append(Panel(f"{algo}, {where}", caption, drawn))
    return section
