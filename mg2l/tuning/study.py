"""Proposals and early stopping by Optuna, and the journal from which a search is taken up again."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from mg2l.core.files import FileError, parse_json, read_bytes
from mg2l.core.schema import ConfigError
from mg2l.tuning.space import Dimension

JOURNAL = "trials.jsonl"
MAX_JOURNAL = 2**28


class Journal:
    """Decisions of a search, one JSON object a line, each on disk before it takes effect.

    Args:
        folder: of the search.
        settings: what it is; a search that is taken up again must be the same.

    Attributes:
        events: of earlier processes.

    Raises:
        ConfigError: the folder holds another search; names the first setting that differs.
        FileError: a line is damaged.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.path = folder / JOURNAL
        self.events: list[dict[str, Any]] = []
        if self.path.exists():
            self._read(settings)
        else:
            self.append({"search": settings})

    def _read(self, settings: dict[str, Any]) -> None:
        data = read_bytes(self.path, inside=self.path.parent, most=MAX_JOURNAL)
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):  # of a process that was killed
            os.truncate(self.path, len(whole))
        lines = [parse_json(line, self.path) for line in whole.splitlines()]
        if not all(isinstance(line, dict) for line in lines):
            raise FileError(f"{self.path}: is damaged: a line is no object")
        if not lines:
            self.append({"search": settings})
            return
        held = lines[0].get("search", {})
        for name, value in json.loads(json.dumps(settings)).items():
            if held.get(name) != value:
                raise ConfigError(
                    f"--folder={self.path.parent} holds another search: its {name} is "
                    f"{held.get(name)}, not {value}; choose another folder"
                )
        self.events = lines[1:]

    def append(self, event: dict[str, Any]) -> None:
        """Write an event."""
        with self.path.open("ab") as file:
            file.write(json.dumps(event).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


class Study:
    """An Optuna study in memory: it depends on the seed and on what was reported.

    Args:
        space: what is searched.
        sampler: ``tpe`` (Bergstra et al., 2011) or ``random``.
        seed: of proposals.
        mode: ``max`` or ``min``.
        pruner: says which trials are stopped.
    """

    def __init__(
        self,
        space: Sequence[Dimension],
        sampler: str,
        seed: int,
        mode: str,
        pruner: optuna.pruners.BasePruner,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.space, self.sampler, self.seed = space, sampler, seed
        directions = optuna.study.StudyDirection
        direction = directions.MAXIMIZE if mode == "max" else directions.MINIMIZE
        self._study = optuna.create_study(direction=direction, pruner=pruner)
        self._trials: dict[int, optuna.trial.Trial] = {}

    def ask(self, number: int, held: dict[str, Any] | None = None) -> dict[str, Any]:
        """Values of a new trial by ``Key.path``; those that it was given earlier, if it was."""
        if held is not None:
            proposed = {d.name: d.proposed(held[d.name]) for d in self.space}
            self._study.enqueue_trial(proposed)
        # A stream of its own for every trial: a search that is taken up again proposes the same.
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        self._study.sampler = (
            optuna.samplers.TPESampler(seed=seed)
            if self.sampler == "tpe"
            else optuna.samplers.RandomSampler(seed=seed)
        )
        trial = self._trials[number] = self._study.ask()
        return {dimension.name: dimension.suggest(trial) for dimension in self.space}

    def report(self, number: int, iteration: int, value: float) -> bool:
        """Report the objective of a trial; returns whether to stop it."""
        trial = self._trials[number]
        trial.report(value, iteration)
        return bool(trial.should_prune())

    def end(self, number: int, value: float | None, stopped: bool = False) -> None:
        """A trial has come to its end, was stopped, or failed (``value`` None)."""
        trial = self._trials.pop(number, None)
        if trial is None:
            return
        state = optuna.trial.TrialState.FAIL
        if value is not None:
            state = optuna.trial.TrialState.PRUNED if stopped else optuna.trial.TrialState.COMPLETE
        self._study.tell(trial, None if state != optuna.trial.TrialState.COMPLETE else value, state)


def importances(
    space: Sequence[Dimension], rows: Sequence[tuple[dict[str, Any], float]]
) -> dict[str, float]:
    """Fraction of the objective's variance that each key explains, by fANOVA (Hutter et al., 2014).

    Args:
        space: what was searched.
        rows: values by ``Key.path`` and the objective, of each trial.

    Returns:
        Fractions by ``Key.path`` that sum to 1, the largest first; empty where there are fewer than
        four trials, or all have the same objective.
    """
    if len(rows) < 4 or len({value for _, value in rows}) < 2:
        return {}
    study = optuna.create_study()
    for number, (params, value) in enumerate(rows):
        study.enqueue_trial({d.name: d.proposed(params[d.name]) for d in space})
        trial = study.ask()
        for dimension in space:
            dimension.suggest(trial)
        study.tell(trial, value)
        assert trial.number == number
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(part) for name, part in found.items()}
