"""Logged results of runs, as tables and for marl-eval: ``mg2l.results``."""

from __future__ import annotations

import csv
import importlib.util
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mg2l.core.schema import ConfigError
from mg2l.evaluation.adaptation import RANDOM, adaptation, bounds, tested
from mg2l.evaluation.groups import grouped
from mg2l.evaluation.results import Run, find

MEASURED = re.compile(r"eval/(?P<part>\w+)_(?P<shots>\d+)_shots")
TRAINING = "training"
"""Task that the returns of training are reported as, of runs without meta-tests."""


@dataclass(frozen=True)
class Results:
    """Runs as tables.

    Attributes:
        metrics: a row per run and iteration: ``env``, ``algo``, ``seed``, ``run`` and every number
            of ``metrics.jsonl``, nested ones as ``outer/inner``. A pandas frame where pandas is
            installed, else a list of dicts.
        evaluations: a row per run, part of the tasks, way of acting and task of
            ``evaluation.json``: the same first columns, ``split``, ``mode``, ``shots``,
            ``sampling``, ``task`` and ``return``. A frame or a list likewise.
        scores: a row per run, part, way of acting and task that has an adaptation score (0 mappo, 1
            the oracle): ``env``, ``algo`` with the keys of its configuration that differ, ``seed``,
            ``split``, ``shots`` (a number or ``online``), ``task``, ``return`` and ``score``. Empty
            where ``mappo`` or the ``oracle`` was not evaluated. A frame or a list likewise.
        runs: the runs in the tables.
        skipped: a line for each run or file that could not be read.
    """

    metrics: Any
    evaluations: Any
    scores: Any
    runs: list[Run]
    skipped: list[str] = field(default_factory=list)

    def marl_eval(self) -> dict[str, Any]:
        """The runs as the JSON that marl-eval reads (Gorsane et al., 2022, arXiv:2209.10485).

        Environment, task, algorithm, run, step. A task is a way of meta-testing, such as
        ``test_1_shots``; where no run of an environment has meta-tests during training it is
        ``training``, with its returns, and else runs without any, such as those that have just
        begun, are left out: marl-eval wants every algorithm in every task. Each step has
        ``step_count`` [environment steps] and the list ``return``; ``absolute_metrics`` has
        a value per task and episode of ``evaluation.csv`` where the run was evaluated, else the
        last return. There is no ``elapsed_time``, with which marl-eval's
        ``DiagnoseData`` finds the metrics of steps and of ``absolute_metrics`` to differ.

        >>> import json, mg2l
        >>> text = json.dumps(mg2l.results("runs").marl_eval())
        """
        found: dict[str, Any] = {}
        tested = {run.env for run in self.runs if _is_tested(run)}
        for run in self.runs:
            if run.env in tested and not _is_tested(run):
                continue
            for task, steps in _steps(run).items():
                absolute = _episodes(run).get(task) or steps[max(steps, key=_number)]["return"]
                algorithms = found.setdefault(run.env, {}).setdefault(task, {})
                seeds = algorithms.setdefault(run.algo, {})
                name = f"seed_{run.seed}"
                if name in seeds:
                    name = f"{name}_{run.folder.name}"
                seeds[name] = {**steps, "absolute_metrics": {"return": absolute}}
        return found


def _number(step: str) -> int:
    return int(step.removeprefix("step_"))


def _is_tested(run: Run) -> bool:
    return any(MEASURED.fullmatch(name) for row in run.numbers for name in row)


def _steps(run: Run) -> dict[str, dict[str, dict[str, Any]]]:
    """Entries ``step_<n>`` of a run, by task."""
    tasks: dict[str, dict[str, dict[str, Any]]] = {}
    tested = _is_tested(run)
    for row in run.numbers:
        values = {
            name.removeprefix("eval/"): value
            for name, value in row.items()
            if MEASURED.fullmatch(name)
        }
        if not tested and "return" in row:
            values = {TRAINING: row["return"]}
        for task, value in values.items():
            steps = tasks.setdefault(task, {})
            steps[f"step_{len(steps)}"] = {
                "step_count": int(row["env_steps"]),
                "return": [value],
            }
    return tasks


def _episodes(run: Run) -> dict[str, list[float]]:
    """Team return of each episode of ``evaluation.csv``, by ``<part>_<K>_shots``."""
    path = run.folder / "evaluation.csv"
    if run.evaluation is None or path.is_symlink() or not path.is_file():
        return {}
    sums: dict[tuple[str, str, str], list[float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            try:
                value = float(row["return"])
                key = (f"{row['split']}_{row['shots']}_shots", row["task"], row["episode"])
                uniform = (row["mode"], row["sampling"]) == ("shots", "uniform")
            except (KeyError, TypeError, ValueError):
                return {}
            if uniform and math.isfinite(value):
                sums.setdefault(key, []).append(value)
    found: dict[str, list[float]] = {}
    for (task, _, _), agents in sums.items():
        found.setdefault(task, []).append(sum(agents) / len(agents))
    return found


def results(*folders: Path | str) -> Results:
    """Read every run in or below folders.

    >>> import mg2l
    >>> results = mg2l.results("runs")
    >>> metrics, evaluations = results.metrics, results.evaluations

    Args:
        *folders: where runs lie, at any depth; what is damaged is left out, see
            `Results.skipped`.

    Raises:
        ConfigError: a folder does not exist.
    """
    paths = [Path(folder) for folder in folders]
    for path in paths:
        if not path.is_dir():
            raise ConfigError(f"{path}: there is no such folder")
    runs, skipped = find(paths, measured=True)
    metrics, evaluations = [], []
    for run in runs:
        about = {"env": run.env, "algo": run.algo, "seed": run.seed, "run": str(run.folder)}
        metrics += [{**about, **row} for row in run.numbers]
        evaluations += [
            {
                **about,
                **{name: row[name] for name in ("split", "mode", "shots", "sampling")},
                "task": task,
                "return": value["return"],
            }
            for row in (run.evaluation or {}).get("results", [])
            for task, value in row["by_task"].items()
        ]
    return Results(_frame(metrics), _frame(evaluations), _frame(_scores(runs)), runs, skipped)


def _scores(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Rows of `Results.scores`."""
    groups, _ = grouped(runs)
    rows = tested(groups)
    scales = {
        (part.env, part.part): part.scale for part in adaptation(rows, bounds(groups)) if part.scale
    }
    found = []
    for row in rows:
        scale = scales.get((row.env, row.part))
        if scale is None or row.task not in scale.tasks or row.shots == RANDOM:
            continue
        score = scale.score(row.task, row.value)
        found.append(
            {
                **{name: getattr(row, name) for name in ("env", "algo", "seed")},
                "split": row.part,
                "shots": row.shots,
                "task": row.task,
                "return": row.value,
                "score": score,
            }
        )
    return found


def _frame(rows: Iterable[dict[str, Any]]) -> Any:
    """A pandas frame where pandas is installed, else the rows."""
    if importlib.util.find_spec("pandas") is None:
        return list(rows)
    return importlib.import_module("pandas").DataFrame(list(rows))
