"""Callbacks of a training run: progress, early stopping, the best checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from mg2l.core.schema import ConfigError
from mg2l.training import checkpoint
from mg2l.training.progress import Bar, RunProgress

if TYPE_CHECKING:
    from mg2l.api.training import Training

Metrics = Mapping[str, Any]


class Callback:
    """Base of callbacks, whose methods do nothing; override those that you need.

    Callbacks are called in the order in which they are given. An exception raised by one ends the
    training.

    >>> class Returns(Callback):
    ...     def on_iteration(self, training, metrics):
    ...         print(metrics["iteration"], metrics["return"])
    """

    def on_exploration(self, training: Training, steps: int, total: int) -> None:
        """Before iteration 1, after each exploration rollout.

        Args:
            training: the run.
            steps: environment steps so far.
            total: environment steps that are planned.
        """

    def on_start(self, training: Training) -> None:
        """Before the first iteration of this process."""

    def on_iteration(self, training: Training, metrics: Metrics) -> None:
        """After each iteration; ``metrics`` is its line of ``metrics.jsonl``."""

    def on_evaluation(self, training: Training, metrics: Metrics) -> None:
        """After each meta-test, every ``eval_interval`` iterations, before `on_iteration`.

        ``metrics`` holds only ``eval/*``.
        """

    def on_checkpoint(self, training: Training, path: Path) -> None:
        """After each checkpoint that was written; ``path`` is its folder."""

    def on_note(self, training: Training, text: str) -> None:
        """A message for the user, such as about lost metrics."""

    def on_end(self, training: Training) -> None:
        """At the end of the run, also after an error."""


def default_metric(training: Training) -> str:
    """Return after most shots on validation tasks, else on held-out, else on training tasks."""
    parts = training.learner.env.tasks.parts
    part = next(name for name in ("validation", "test", "train") if name in parts)
    return f"eval/{part}_{max(training.config.eval_shots)}_shots"


class _Watch(Callback):
    """Keeps the best value of an ``eval/*`` metric.

    Args:
        metric: one of ``eval/<part>_<K>_shots``; None is `default_metric`.
        mode: whether the largest (``max``) or the smallest value (``min``) is best.

    Raises:
        ValueError: ``mode`` is neither of these.
    """

    def __init__(self, metric: str | None = None, mode: str = "max") -> None:
        if mode not in ("max", "min"):
            raise ValueError(f"mode must be 'max' or 'min', got {mode!r}")
        self.metric, self.sign = metric, 1 if mode == "max" else -1
        self.best = -math.inf * self.sign

    def on_start(self, training: Training) -> None:
        name = type(self).__name__
        if not training.config.eval_interval:
            raise ConfigError(f"{name} needs meta-tests: set eval_interval, got 0")
        parts = training.learner.env.tasks.parts
        known = [f"eval/{p}_{k}_shots" for p in parts for k in training.config.eval_shots]
        self.metric = self.metric or default_metric(training)
        if self.metric not in known:
            raise ConfigError(f"{name}: metric must be one of {known}, got {self.metric!r}")

    def improved(self, metrics: Metrics, by: float = 0.0) -> bool:
        """Whether the metric beats the best so far by more than ``by``; if so, keep it."""
        value = float(metrics[str(self.metric)])
        if self.sign * (value - self.best) > by:
            self.best = value
            return True
        return False


class EarlyStopping(_Watch):
    """Stops training when a metric of the meta-tests stops improving.

    >>> callbacks = [EarlyStopping("eval/test_2_shots", patience=5)]

    Args:
        metric: one of ``eval/<part>_<K>_shots``; None is the return after the most shots of
            ``eval_shots`` on validation tasks, or where there are none on held-out tasks.
        patience: meta-tests in a row without an improvement after which it stops.
        min_delta: by how much more than the best an improvement must be.
        mode: whether the largest (``max``) or the smallest value (``min``) is best.

    Raises:
        ValueError: a number is out of range, or ``mode`` is neither of these.
    """

    def __init__(
        self,
        metric: str | None = None,
        patience: int = 10,
        min_delta: float = 0.0,
        mode: str = "max",
    ) -> None:
        super().__init__(metric, mode)
        if patience < 1 or not min_delta >= 0:
            raise ValueError(
                f"need patience >= 1 and min_delta >= 0, got {patience} and {min_delta}"
            )
        self.patience, self.min_delta, self.waited = patience, min_delta, 0

    def on_evaluation(self, training: Training, metrics: Metrics) -> None:
        self.waited = 0 if self.improved(metrics, self.min_delta) else self.waited + 1
        if self.waited >= self.patience:
            training.note(
                f"stopping early: {self.metric} has not improved on {self.best:g} in "
                f"{self.waited} meta-tests"
            )
            training.stop()


class BestCheckpoint(_Watch):
    """Keeps the checkpoint with the best value of a metric as ``checkpoints/best``.

    It stays however many iterations follow, and a resumed run continues to compare with it. It is
    loaded like any other: ``mg2l.load(RUN / "checkpoints" / "best")``.

    Args:
        metric: one of ``eval/<part>_<K>_shots``; None is the return after the most shots of
            ``eval_shots`` on validation tasks, or where there are none on held-out tasks.
        mode: whether the largest (``max``) or the smallest value (``min``) is best.

    Raises:
        ValueError: ``mode`` is neither of these.
    """

    def on_start(self, training: Training) -> None:
        super().on_start(training)
        path = training.path / "checkpoints" / checkpoint.BEST
        if path.is_dir():
            held = checkpoint.load(path).state.get("best", {})
            if held.get("metric") == self.metric:
                self.best = held["value"]

    def on_evaluation(self, training: Training, metrics: Metrics) -> None:
        if self.improved(metrics):
            training.save_best({"metric": self.metric, "value": self.best})


class Progress(Callback):
    """Shows the progress of a run: a live bar on a terminal, plain lines elsewhere.

    Args:
        console: where to write; by default standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._exploring: Bar | None = None
        self._run: RunProgress | None = None

    def on_exploration(self, training: Training, steps: int, total: int) -> None:
        if self._exploring is None:
            self._exploring = Bar("exploring before iteration 1", total, "steps", self.console)
            self._exploring.start()
        self._exploring.update(steps, total=total)

    def on_start(self, training: Training) -> None:
        if self._exploring is not None:
            self._exploring.close(complete=True)
        config = training.config
        self._run = RunProgress(
            training.n_iters, training.iteration, config.log_interval, self.console
        )
        self._run.start()
        options = training.options
        self._run.note(f"{options.algo} on {options.env}, {training.device}: {training.path}")

    def on_iteration(self, training: Training, metrics: Metrics) -> None:
        assert self._run is not None
        self._run.show(training.iteration, metrics)

    def on_note(self, training: Training, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def on_end(self, training: Training) -> None:
        if self._exploring is not None:
            self._exploring.close()
        if self._run is not None:
            self._run.close()
