"""Meta-training from Python: ``mg2l.train`` and, iteration by iteration, ``mg2l.iterations``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from mg2l.api.callbacks import Callback
from mg2l.config.files import about, flat
from mg2l.config.options import Options
from mg2l.config.sections import Config
from mg2l.evaluation import results
from mg2l.evaluation.meta_test import PeriodicTest
from mg2l.training import checkpoint, loop, spaces
from mg2l.training.choice import choose
from mg2l.training.device import select_device
from mg2l.training.folder import RunFolder
from mg2l.training.metrics import MetricsLogger


class Training:
    """One run: an iterable over the metrics of its iterations.

    Each iteration of a ``for`` loop trains one iteration, writes its metrics and, where one is due,
    a checkpoint. Leaving the loop early writes a checkpoint too; `stop` does the same and lets
    errors of writing be raised. Where an iteration fails, its exception is raised. Then the run's
    folder is free for ``resume``. The process's signals are left alone.

    Args:
        config: every value of the run.
        options: names of its files, and whether it is resumed.
        callbacks: called in the course of it, in this order.

    Attributes:
        config: as given.
        options: as given.
        path: folder of the run.
        device: where its networks live.
        learner: environments, policies and task inference.
        iteration: iterations that are complete.
        n_iters: iterations of the whole run; known when `prepare` has returned.

    Raises:
        ConfigError: values with which nothing can be built, or a folder that is in use.
        CheckpointError: what is to be resumed is damaged, or of another run.
        WriteError: the folder cannot be written.
    """

    def __init__(
        self, config: Config, options: Options, callbacks: Sequence[Callback] = ()
    ) -> None:
        self.config, self.options, self.callbacks = config, options, list(callbacks)
        if config.n_training_threads:
            torch.set_num_threads(config.n_training_threads)
        self.device = select_device(config.gpu_id)
        self.learner = loop.build(config, self.device)
        self._folder: RunFolder | None = None
        self._log: MetricsLogger | None = None
        self._evaluator = PeriodicTest(self.learner)
        self._open, self._stopping = True, False
        self._saved = 0
        try:
            self._folder = RunFolder.open(config, options)
            self.path = self._folder.path
            if not self._folder.spaces_path.exists():
                spaces.write(self._folder.spaces_path, self.learner.env)
            self.iteration = self._restore()
        except BaseException:
            self.close()
            raise
        self.n_iters = config.n_iters

    def _restore(self) -> int:
        start = 0
        if self.options.resume:
            start = loop.restore(self.learner, self.folder, self.options, self.note)
            checkpoint.remove_best_after(self.folder.checkpoints, start)
        if start == 0 and self.config.load_model:
            template = self.learner.networks()
            path = self.config.load_model_path
            self.learner.load_networks(checkpoint.load_networks(path, template))
        self._saved = start
        return start

    @property
    def folder(self) -> RunFolder:
        """The run's folder, which this process owns until `close`."""
        assert self._folder is not None
        return self._folder

    def prepare(self) -> None:
        """Before iteration 1: explore every task, and train the encoder on that.

        The first iteration does so where it has not been done.
        """
        if self._log is not None:
            return
        if self.iteration == 0:
            self._explore()
        self.n_iters = loop.plan_iterations(self.learner, self.iteration)
        self.learner.n_iters = self.n_iters
        config = self.config
        with loop.write_error_context(self.folder):
            self._log = MetricsLogger(
                self.path,
                start=self.iteration,
                tensorboard=config.log_tensorboard,
                wandb=config.log_wandb,
                config=flat(config),
            )
        for callback in self.callbacks:
            callback.on_start(self)
        self._note_lost_metrics(self._log)

    def _explore(self) -> None:
        rollouts, done = self.config.rollout.n_init_rollouts, 0
        steps = loop.exploration_steps(self.learner)

        def tell() -> None:
            for callback in self.callbacks:
                callback.on_exploration(self, done * steps, max(rollouts, done) * steps)

        def count() -> None:
            nonlocal done
            done += 1
            tell()

        if steps:
            tell()
        with loop.error_context(0, self.folder):
            self.learner.prepare(count if steps else lambda: None)

    def _note_lost_metrics(self, log: MetricsLogger) -> None:
        """Where ``metrics.jsonl`` and the checkpoint that is resumed are not of the same age."""
        if log.kept < self.iteration:
            self.note(
                f"{log.path} has {log.kept} of the {self.iteration} iterations that the checkpoint "
                "has; the others are lost"
            )
        elif self.iteration == 0 and log.dropped:
            self.note(f"there is no checkpoint: starts again, without the lines of {log.path}")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Train: the metrics of each iteration, as ``metrics.jsonl`` holds them.

        Raises:
            NonFiniteError: a loss is NaN or infinite; the batch is in the run's folder.
            EnvError: the environment cannot continue.
            WriteError: the disk is full, or the folder was removed.
            RuntimeError: the run was closed.
        """
        if not self._open:
            raise RuntimeError(f"{self.path}: is closed; continue it by resume={str(self.path)!r}")
        consistent = False
        try:
            self.prepare()
            consistent = True
            while self.iteration < self.n_iters and not self._stopping:
                consistent = False
                metrics = self._iterate()
                consistent = True
                if self.config.save_model and self._due():
                    self.save()
                yield metrics
            if self.config.save_model:
                self.save()
        finally:
            try:
                if consistent and self.config.save_model:
                    self.save()
            finally:
                self.close()

    def _iterate(self) -> dict[str, Any]:
        assert self._log is not None
        with loop.error_context(self.iteration + 1, self.folder):
            metrics = loop.iterate(self.learner, self.iteration, self._evaluator)
        with loop.write_error_context(self.folder):
            self._log.log(metrics)
        self.iteration += 1
        tested = {name: value for name, value in metrics.items() if name.startswith("eval/")}
        for callback in self.callbacks:
            if tested:
                callback.on_evaluation(self, tested)
            callback.on_iteration(self, metrics)
        return metrics

    def _due(self) -> bool:
        return self.iteration % self.config.save_interval == 0 or self.iteration == self.n_iters

    def stop(self) -> None:
        """End after this iteration, with a checkpoint."""
        self._stopping = True

    def save(self) -> Path:
        """Write the checkpoint of the iterations that are complete, unless it is there already.

        Returns:
            Its folder, below ``checkpoints/``.

        Raises:
            WriteError: it cannot be written; earlier ones are still there.
        """
        place = checkpoint.path_of(self.folder.checkpoints, self.iteration)
        if self._saved != self.iteration and self._log is not None:
            with loop.write_error_context(self.folder):
                self._log.flush()
                loop.save(self.learner, self.folder, self.iteration)
            self._saved = self.iteration
            for callback in self.callbacks:
                callback.on_checkpoint(self, place)
        return place

    def save_best(self, best: dict[str, Any]) -> Path:
        """Write the checkpoint ``checkpoints/best``, which pruning leaves alone.

        Args:
            best: ``metric`` and ``value`` that make it the best.

        Returns:
            Its folder.
        """
        state = loop.snapshot(self.learner) | {"best": best}
        with loop.write_error_context(self.folder):
            place = checkpoint.save_best(
                self.folder.checkpoints, self.iteration, state, about=about(self.config)
            )
        for callback in self.callbacks:
            callback.on_checkpoint(self, place)
        return place

    def note(self, text: str) -> None:
        """Tell the callbacks a line that is for the user."""
        for callback in self.callbacks:
            callback.on_note(self, text)

    def close(self) -> None:
        """Free environments, files and the run's folder, without a checkpoint; can be repeated."""
        if not self._open:
            return
        self._open = False
        try:
            for callback in self.callbacks:
                callback.on_end(self)
        finally:
            if self._log is not None:
                self._log.close()
            self._evaluator.close()
            self.learner.close()
            if self._folder is not None:
                self._folder.close()

    def __enter__(self) -> Training:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def iterations(
    algo: str | None = None,
    env: str | None = None,
    *,
    expt: str | None = None,
    callbacks: Sequence[Callback] = (),
    resume: Path | str | None = None,
    resume_previous: bool = False,
    trust: bool = False,
    **overrides: Any,
) -> Training:
    """Meta-train iteration by iteration, as a tuner or a notebook does.

    >>> training = iterations(algo="mappo", n_iters=100)     # doctest: +SKIP
    >>> for metrics in training:                             # doctest: +SKIP
    ...     if metrics["return"] > -20:
    ...         training.stop()  # after a checkpoint

    Args:
        algo: shipped algorithm, or path of a YAML file; by default ``mg2l``.
        env: shipped environment, family, or path of a YAML file; by default ``mpe-spread``.
        expt: shipped experiment, or path of a YAML file; by default ``default``.
        callbacks: see `Callback`.
        resume: folder of a run, one of its checkpoints, or ``"last"`` for the newest run in
            ``main_save_path``; only keys that change nothing of the past may be overridden.
        resume_previous: where the last checkpoint is damaged, use the newest that is intact.
        trust: import the code that ``resume`` names, where it is what the run was trained with.
        **overrides: values by key, as ``python -m mg2l.train --help`` lists them; a key with its
            group is written ``ppo={"clip_param": 0.3}`` or ``**{"ppo.clip_param": 0.3}``.

    Returns:
        An iterable over metrics, which is the run under way.

    Raises:
        ConfigError: a name, key or value that cannot be.
        CheckpointError: what is to be resumed is damaged, or of another run.
        WriteError: the run's folder cannot be written.
    """
    names = {"expt": expt, "algo": algo, "env": env}
    given = {kind: str(name) for kind, name in names.items() if name is not None}
    values = {
        key: str(value) if isinstance(value, Path) else value for key, value in overrides.items()
    }
    config, options = choose(given, values, resume, resume_previous, trust)
    return Training(config, options, callbacks)


def train(
    algo: str | None = None,
    env: str | None = None,
    *,
    expt: str | None = None,
    callbacks: Sequence[Callback] = (),
    resume: Path | str | None = None,
    resume_previous: bool = False,
    trust: bool = False,
    **overrides: Any,
) -> results.Run:
    """Meta-train a team, as ``python -m mg2l.train`` does: same run folder, same checkpoints.

    >>> import mg2l
    >>> run = mg2l.train(
    ...     algo="mappo", env="mpe-spread", n_iters=2, max_ep_len=5, n_rollout_threads=2
    ... )
    >>> [row["iteration"] for row in run.rows]
    [1, 2]
    >>> team = mg2l.load(run)

    Args:
        algo: see `iterations`, as all others.
        env: "
        expt: "
        callbacks: "
        resume: "
        resume_previous: "
        trust: "
        **overrides: "

    Returns:
        The run as it lies on disk: its ``folder``, ``rows`` of metrics and ``config``.

    Raises:
        ConfigError: a name, key or value that cannot be.
        CheckpointError: what is to be resumed is damaged, or of another run.
        NonFiniteError: a loss is NaN or infinite; the batch is in the run's folder.
        EnvError: the environment cannot continue.
        WriteError: the disk is full, or the folder cannot be written.
    """
    training = iterations(
        algo,
        env,
        expt=expt,
        callbacks=callbacks,
        resume=resume,
        resume_previous=resume_previous,
        trust=trust,
        **overrides,
    )
    for _ in training:
        pass
    return results.read(training.path, measured=True)[0]
