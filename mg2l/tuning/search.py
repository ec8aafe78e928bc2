"""A search: trials that are run, compared at their rungs, stopped, or replaced by forks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mg2l.cli.jobs import Job
from mg2l.cli.scheduler import Scheduler, at_work
from mg2l.launch.work import Executor
from mg2l.training import checkpoint
from mg2l.tuning.schedulers import Objective, Rungs, exploit
from mg2l.tuning.space import Dimension
from mg2l.tuning.study import Journal, Study
from mg2l.tuning.trial import Trial, measure


class Search(Scheduler):
    """Runs the trials of a search.

    Args:
        make: a trial of this number and these values that has not begun, and whether it is a fork;
            with the state ``failed`` where the values exclude each other.
        space: what is searched.
        rungs: where trials are compared.
        objective: what for.
        count: trials; of ``pbt`` the population, whose forks are further trials.
        study: proposes values, and says who is stopped.
        journal: of decisions; earlier ones are taken up.
        seed: of PBT's choices.
        folder: of the search.
        executor: where trials run.
    """

    def __init__(
        self,
        make: Callable[[int, dict[str, Any], bool], Trial],
        space: Sequence[Dimension],
        rungs: Rungs,
        objective: Objective,
        count: int,
        study: Study,
        journal: Journal,
        seed: int,
        folder: Path,
        executor: Executor,
    ) -> None:
        super().__init__([], folder, executor)
        self.make, self.space, self.rungs, self.objective = make, space, rungs, objective
        self.count, self.study, self.journal, self.seed = count, study, journal, seed
        self.trials: list[Trial] = []
        self.population: list[Trial] = []
        for event in journal.events:
            self._replay(event)

    # What has happened: each event is written down and then applied, or read and applied.

    def _record(self, event: dict[str, Any]) -> None:
        self.journal.append(event)
        self._apply(event)

    def _replay(self, event: dict[str, Any]) -> None:
        if "proposed" in event:
            self.study.ask(event["proposed"], event["params"])
        self._apply(event)

    def _apply(self, event: dict[str, Any]) -> None:
        if "proposed" in event:
            self._add(event["proposed"], event["params"])
        elif "generation" in event:
            self._replace(event)
        elif "failed" in event:
            trial = self.trials[event["failed"]]
            trial.state, trial.error = "failed", event["error"]
            self.study.end(trial.number, None)
        else:
            self._compare(self.trials[event["trial"]], event["iteration"], event["value"])

    def _add(self, number: int, params: dict[str, Any], fork: bool = False) -> Trial:
        trial = self.make(number, params, fork)
        trial.until = self.rungs.after(0)
        if trial.state == "failed":  # values that exclude each other
            self.study.end(number, None)
        if not fork:
            self.population.append(trial)
        self.trials.append(trial)
        self.jobs = list[Job](self.trials)
        return trial

    def _compare(self, trial: Trial, iteration: int, value: float) -> None:
        """A trial has reached a rung."""
        trial.values[iteration] = value
        trial.attempts, trial.error = 0, ""
        # Forks are none of the sampler's proposals.
        pruned = trial.forked is None and self.study.report(trial.number, iteration, value)
        if iteration == self.rungs.n_iters:
            trial.state = "done"
            self.study.end(trial.number, value)
        elif pruned:
            trial.state = "stopped early"
            self.study.end(trial.number, value, stopped=True)
        else:
            trial.state = "paused" if self.rungs.scheduler == "pbt" else "waiting"
            trial.until = self.rungs.after(iteration)

    # Population-based training.

    def _generation(self) -> None:
        """Every member has reached the rung or failed: the worst are replaced by forks."""
        iteration = max(max(t.values) for t in self.population if t.state == "paused")
        values = {t.number: t.values.get(iteration) for t in self.population}
        params = {t.number: t.params for t in self.population}
        rng = np.random.default_rng([self.seed, iteration])
        found = exploit(values, params, self.space, self.objective.mode, rng)
        forks = [
            {"number": number, "loser": r.loser, "winner": r.winner, "params": r.params}
            for number, r in enumerate(found, len(self.trials))
        ]
        self._record({"generation": iteration, "forks": forks})
        for trial in self.trials[len(self.trials) - len(forks) :]:
            assert trial.forked is not None
            self.note(f"{trial.name}: is forked from trial {trial.forked[0]} at {iteration}")

    def _replace(self, event: dict[str, Any]) -> None:
        """Forks take the places of those that end here; all others continue."""
        iteration = event["generation"]
        for fork in event["forks"]:
            loser, winner = self.trials[fork["loser"]], self.trials[fork["winner"]]
            if loser.state != "failed":
                loser.state = "stopped early"
                self.study.end(loser.number, loser.value, stopped=True)
            run = winner.run()
            assert run is not None
            trial = self._add(fork["number"], fork["params"], fork=True)
            self.population[self.population.index(loser)] = trial
            trial.parent = checkpoint.path_of(run / "checkpoints", iteration)
            trial.forked, trial.until = (winner.number, iteration), self.rungs.after(iteration)
        for trial in self.trials:
            if trial.state == "paused":
                trial.state = "waiting"

    # Hooks of `Scheduler`.

    def next(self) -> Job | None:
        """The trial to start: the one that is furthest, else a new one."""
        while True:
            if self.rungs.scheduler == "pbt" and len(self.population) == self.count:
                states = {trial.state for trial in self.population}
                if "paused" in states and states <= {"paused", "failed"}:
                    self._generation()
            # A parent keeps its checkpoint until every fork has taken it.
            held = {
                trial.forked[0]
                for trial in self.trials
                if trial.forked and trial.state != "failed" and trial.run() is None
            }
            waiting = [trial for trial in self.trials if trial.state == "waiting"]
            waiting = [t for t in waiting if t.number not in held and not at_work(t)]
            waiting.sort(key=lambda trial: (-trial.until, trial.number))
            if reached := [trial for trial in waiting if trial.stage() is None]:
                self.completed(reached[0])  # by a process whose driver was killed
                continue
            if waiting:
                return waiting[0]
            if sum(trial.forked is None for trial in self.trials) >= self.count:
                return None
            number = len(self.trials)
            self._record({"proposed": number, "params": self.study.ask(number)})
            if self.trials[-1].state == "failed":
                self.note(f"{self.trials[-1].name}: failed ({self.trials[-1].error})")

    def completed(self, job: Job) -> None:
        """Record that a trial has reached its rung."""
        assert isinstance(job, Trial)
        run = job.run()
        assert run is not None
        value = measure(run, self.objective.metric, job.until)
        if value is None:
            self.failed(job, f"has no {self.objective.metric} up to iteration {job.until}")
            return
        rung = job.until
        self._record({"trial": job.number, "iteration": rung, "value": value})
        said = {"waiting": "", "paused": ""}.get(job.state, f", {job.state}")
        self.note(f"{job.name}: {self.objective.metric} {value:.5g} at iteration {rung}{said}")

    def failed(self, job: Job, error: str) -> None:
        """Mark a trial as failed."""
        assert isinstance(job, Trial)
        self._record({"failed": job.number, "error": error})
        self.note(f"{job.name}: failed ({error})")
