"""Meta-training from Python: ``mg2l.train`` and, iteration by iteration, ``mg2l.iterations``."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from mg2l.api.callbacks import Callback
from mg2l.config.options import Options
from mg2l.config.saved import about, flat
from mg2l.config.sections import Config
from mg2l.core.distributed import world
from mg2l.evaluation import results
from mg2l.evaluation.meta_test import PeriodicTest
from mg2l.training import checkpoint, loop, spaces, trackers
from mg2l.training.choice import choose
from mg2l.training.device import select_device
from mg2l.training.folder import RunFolder
from mg2l.training.metrics import MetricsLogger


class Training:
    """One run: an iterable over the metrics of its iterations.

    Each iteration of a ``for`` loop trains one iteration, writes its metrics and, where one is due,
    a checkpoint. Leaving the loop early writes a checkpoint too; `stop` does the same and lets
    errors of writing be raised. Where an iteration fails, its exception is raised. Then the run's
    folder is free for ``resume``. The process's signal handlers are not changed.

    Args:
        config: every value of the run.
        options: names of its files, and whether it is resumed.
        callbacks: called during the run, in this order, by each of torchrun's processes.

    Attributes:
        config: as given.
        options: as given.
        path: folder of the run.
        device: device of its networks.
        learner: environments, policies and task inference.
        iteration: iterations that are complete.
        n_iters: iterations of the whole run; known when `prepare` has returned.

    Raises:
        ConfigError: values with which nothing can be built, or a folder that is in use.
        CheckpointError: the checkpoint to resume is damaged, or of another run.
        WriteError: the folder cannot be written.
    """

    def __init__(
        self, config: Config, options: Options, callbacks: Sequence[Callback] = ()
    ) -> None:
        self.config, self.options, self.callbacks = config, options, list(callbacks)
        if config.n_training_threads:
            torch.set_num_threads(config.n_training_threads)
        self.device = select_device(config.gpu_id)
        world.join(self.device)
        self.learner = loop.build(config, self.device)
        self._folder: RunFolder | None = None
        self._log: MetricsLogger | None = None
        self._evaluator = PeriodicTest(self.learner)
        self._open, self._stopping, self._prepared = True, False, False
        self._saved = 0
        self._until = config.n_iters
        try:
            origin = loop.fork(self.learner, options)
            self._folder = RunFolder.open(config, options, origin)
            self.path = self._folder.path
            if world.is_main and not self._folder.spaces_path.exists():
                spaces.write(self._folder.spaces_path, self.learner.env)
            self.iteration = self._restore() if origin is None else origin.iteration
            self._saved = self.iteration
        except BaseException:
            self.close()
            raise
        self.n_iters = config.n_iters

    def _restore(self) -> int:
        start = 0
        if self.options.resume:
            start = loop.restore(self.learner, self.folder, self.options, self.note)
        if start == 0 and self.config.load_model:
            template = self.learner.networks()
            path = self.config.load_model_path
            self.learner.load_networks(checkpoint.load_networks(path, template))
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
        if self._prepared:
            return
        if self.iteration == 0:
            self._explore()
        self.n_iters = loop.plan_iterations(self.learner, self.iteration)
        self.learner.n_iters = self.n_iters
        self._until = min(self.n_iters, self.options.until or self.n_iters)
        config = self.config
        if world.is_main:
            with loop.write_error_context(self.folder):
                names = trackers.chosen(config)
                started = trackers.start(names, self.path, self.iteration, flat(config))
                self._log = MetricsLogger(self.path, start=self.iteration, trackers=started)
        self._prepared = True
        for callback in self.callbacks:
            callback.on_start(self)
        if self._log is not None:
            self._note_lost_metrics(self._log)
        loop.exempt_from_gc()

    def _explore(self) -> None:
        rollouts, done = self.config.rollout.n_init_rollouts, 0
        steps = loop.exploration_steps(self.learner)

        def notify() -> None:
            for callback in self.callbacks:
                callback.on_exploration(self, done * steps, max(rollouts, done) * steps)

        def count() -> None:
            nonlocal done
            done += 1
            notify()

        if steps:
            notify()
        with loop.error_context(0, self.folder):
            self.learner.prepare(count if steps else lambda: None)

    def _note_lost_metrics(self, log: MetricsLogger) -> None:
        """Warn if ``metrics.jsonl`` and the resumed checkpoint are at different iterations."""
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
            while self.iteration < self._until and not self._agree_to_stop():
                consistent = False
                metrics = self._iterate()
                consistent = True
                if self.config.save_model and self._due():
                    self.save()
                yield metrics
            if self.config.save_model:
                self.save()
        except Exception:
            # The other processes take no part in a checkpoint after an error of this one.
            consistent = consistent and world.size == 1
            raise
        finally:
            try:
                if consistent and self.config.save_model:
                    self.save()
            finally:
                self.close()

    def _iterate(self) -> dict[str, Any]:
        with loop.error_context(self.iteration + 1, self.folder):
            metrics = loop.iterate(self.learner, self.iteration, self._evaluator)
        if self._log is not None:
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
        return self.iteration % self.config.save_interval == 0 or self.iteration == self._until

    def stop(self) -> None:
        """End after this iteration, with a checkpoint; so do the run's other processes."""
        self._stopping = True

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping

    def _agree_to_stop(self) -> bool:
        self._stopping = world.any(self._stopping)
        return self._stopping

    def save(self) -> Path:
        """Write the checkpoint of the iterations that are complete, unless it is there already.

        Returns:
            Its folder, below ``checkpoints/``.

        Raises:
            WriteError: it cannot be written; earlier ones are still there.
        """
        place = checkpoint.path_of(self.folder.checkpoints, self.iteration)
        if self._saved != self.iteration and self._prepared:
            with loop.write_error_context(self.folder):
                if self._log is not None:
                    self._log.flush()
                loop.save(self.learner, self.folder, self.iteration)
            self._saved = self.iteration
            for callback in self.callbacks:
                callback.on_checkpoint(self, place)
        return place

    def save_best(self, best: dict[str, Any]) -> Path:
        """Write the checkpoint ``checkpoints/best``, which is never pruned.

        Args:
            best: ``metric`` and ``value`` that make it the best.

        Returns:
            Its folder.
        """
        state = loop.snapshot(self.learner) | {"best": best}
        if world.is_main:
            with loop.write_error_context(self.folder):
                checkpoint.save_best(
                    self.folder.checkpoints, self.iteration, state, about=about(self.config)
                )
        place = self.folder.checkpoints / checkpoint.BEST
        for callback in self.callbacks:
            callback.on_checkpoint(self, place)
        return place

    def note(self, text: str) -> None:
        """Pass a message for the user to the callbacks."""
        for callback in self.callbacks:
            callback.on_note(self, text)

    def close(self) -> None:
        """Free environments, files and the run's folder, without a checkpoint; repeatable."""
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
            gc.unfreeze()
            if self._folder is not None:
                self._folder.close()
            world.leave()

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
    fork: Path | str | None = None,
    folder: Path | str | None = None,
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
            ``main_save_path``; only keys that do not change the past may be overridden.
        resume_previous: where the last checkpoint is damaged, use the newest that is intact.
        trust: import the code that ``resume`` or ``fork`` names, where it is what the run was
            trained with.
        fork: an earlier run, named as in ``resume``, whose whole state a new run takes over; random
            streams are new, and every key may be overridden that leaves the networks' sizes.
        folder: of the run, which is resumed where it exists, and otherwise made there.
        **overrides: values by key, as ``python -m mg2l.train --help`` lists them; a key with its
            group is written ``ppo={"clip_param": 0.3}`` or ``**{"ppo.clip_param": 0.3}``.

    Returns:
        An iterable over metrics, which is the run under way.

    Raises:
        ConfigError: an invalid name, key or value.
        CheckpointError: the checkpoint to resume is damaged, or of another run.
        WriteError: the run's folder cannot be written.
    """
    names = {"expt": expt, "algo": algo, "env": env}
    given = {kind: str(name) for kind, name in names.items() if name is not None}
    values = {
        key: str(value) if isinstance(value, Path) else value for key, value in overrides.items()
    }
    config, options = choose(given, values, resume, resume_previous, trust, fork, folder=folder)
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
    fork: Path | str | None = None,
    folder: Path | str | None = None,
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
        fork: "
        folder: "
        **overrides: "

    Returns:
        The run as it lies on disk: its ``folder``, ``rows`` of metrics and ``config``.

    Raises:
        ConfigError: an invalid name, key or value.
        CheckpointError: the checkpoint to resume is damaged, or of another run.
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
        fork=fork,
        folder=folder,
        **overrides,
    )
    for _ in training:
        pass
    return results.read(training.path, measured=True)[0]
