"""Meta-train a team: ``python -m mg2l.train --algo=mg2l --env=mpe-spread n_iters=400 seed=1``.

An iteration, as in the paper's algorithm: draw a task per environment; roll out, each agent acting
on what it infers; PPO of all agents; encoder updates; from time to time, exploration.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from mg2l import cli
from mg2l.config.files import about, flat
from mg2l.config.sections import Config
from mg2l.core.files import WriteError
from mg2l.core.schema import ConfigError
from mg2l.envs.base import EnvError
from mg2l.evaluation.meta_test import PeriodicTest
from mg2l.experience.finite import NonFiniteLossError
from mg2l.experience.rollout import Rollout
from mg2l.training import checkpoint
from mg2l.training.checkpoint import CheckpointError
from mg2l.training.device import out_of_memory, select_device
from mg2l.training.finite import check_finite
from mg2l.training.folder import RunFolder
from mg2l.training.learner import Learner
from mg2l.training.metrics import MetricsLogger
from mg2l.training.progress import RunProgress
from mg2l.training.random_state import random_state, set_random_state
from mg2l.training.stop import GracefulStop, broken_output, status_of


def iterate(
    learner: Learner, iteration: int, periodic: PeriodicTest | None = None
) -> dict[str, Any]:
    """One iteration of meta-training, and a meta-test where one is due; returns its metrics."""
    start = time.perf_counter()
    steps_before = learner.env_steps
    config = learner.config
    metrics: dict[str, Any] = {"iteration": iteration + 1}
    metrics |= learner.decay_learning_rates(iteration)
    tasks = learner.draw_tasks()
    rollout = learner.collect(tasks)
    metrics |= learner.update_policy(rollout, tasks)
    if (iteration + 1) % learner.inference.update_interval == 0:
        metrics |= learner.update_inference()
    if (iteration + 1) % config.rollout.sample_ae_interval == 0:
        metrics |= learner.explore()
    metrics |= returns_of(rollout, tasks)
    metrics |= learner.take_times()
    seconds = time.perf_counter() - start
    metrics["time/iteration"] = seconds
    metrics["env_steps"] = learner.env_steps
    metrics["env_steps_per_s"] = (learner.env_steps - steps_before) / seconds
    if periodic and config.eval_interval and (iteration + 1) % config.eval_interval == 0:
        metrics |= periodic.measure()
    return metrics


def returns_of(rollout: Rollout, tasks: np.ndarray) -> dict[str, Any]:
    """Mean return and length of the rollout's whole episodes, and the return of each task's.

    Also the fraction of its steps that lie in episodes which it cut off, and count nowhere.
    """
    episodes = rollout.episodes()
    returns, own = episodes.returns.mean(1).cpu().numpy(), tasks[episodes.envs.cpu().numpy()]
    steps = rollout.episode_start[:-1].numel()
    return {
        "return": float(returns.mean()),
        "return_by_task": {str(k): float(returns[own == k].mean()) for k in np.unique(own)},
        "episode_length": float(episodes.lengths.double().mean()),
        "unfinished": 1 - int(episodes.lengths.sum()) / steps,
    }


def restore(learner: Learner, folder: RunFolder, previous: bool) -> int:
    """Bring a learner to the last checkpoint of its run; returns the iterations done.

    Raises:
        CheckpointError: it is damaged, or of another run.
    """
    found = checkpoint.load_last(
        folder.checkpoints,
        previous=previous,
        about=about(learner.config),
        template=learner.state_dict(),
    )
    if found is None:
        return 0
    seed = learner.config.seed
    try:
        learner.load_state_dict(found.state)
        renewed = set_random_state(
            found.state["random"], learner.generators, fresh=(seed, found.iteration)
        )
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        told = f"{type(e).__name__}: {e}"
        raise CheckpointError(f"checkpoint {found.path} does not fit this run: {told}") from None
    if renewed:
        print(
            f"continuing on {learner.device}, not where the checkpoint was written: fresh random "
            f"streams from seed {seed} and iteration {found.iteration} ({', '.join(renewed)})",
            flush=True,
        )
    return found.iteration


def save(learner: Learner, folder: RunFolder, iteration: int) -> None:
    """Write the checkpoint of an iteration."""
    state = learner.state_dict() | {"random": random_state(learner.generators)}
    checkpoint.save(
        folder.checkpoints,
        iteration,
        state,
        keep=learner.config.keep_checkpoints,
        about=about(learner.config),
    )


@contextmanager
def naming_the_iteration(iteration: int, folder: RunFolder) -> Iterator[None]:
    """Say when something broke, and save the batch of a loss that is not finite.

    Iteration 0 is what comes before the first.

    Raises:
        NonFiniteError: there was one; the message says which, when, and where the batch is.
        EnvError: the environment cannot go on; the message says when, too.
    """
    try:
        yield
    except EnvError as error:
        raise EnvError(f"iteration {iteration}: {error}") from None
    except NonFiniteLossError as error:
        check_finite({error.term: error.value}, iteration, error.batch, folder.path)
        raise


def build(config: Config, device: torch.device) -> Learner:
    """The learner of a run, before there is a folder: what the environment refuses is said first.

    Raises:
        ConfigError: values with which nothing can be built, or more than memory holds.
    """
    try:
        return Learner(config, device)
    except (MemoryError, RuntimeError) as error:
        reason = out_of_memory(error)
        if reason is None:
            raise
        raise ConfigError(f"this run does not fit into memory: {reason}") from error
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


@contextmanager
def naming_what_is_kept(folder: RunFolder) -> Iterator[None]:
    """Say what there is to go on with where the disk refuses.

    Raises:
        WriteError: it did.
    """
    try:
        yield
    except OSError as error:
        saved = checkpoint.iterations(folder.checkpoints)
        kept = "nothing is saved yet"
        if saved:
            kept = f"iteration {saved[-1]} is saved: go on with --resume={folder.path}"
        raise WriteError(
            f"{error.filename or folder.path}: cannot be written: {error.strerror or error}; {kept}"
        ) from error


def say_what_is_lost(log: MetricsLogger, start: int, progress: RunProgress) -> None:
    """Where ``metrics.jsonl`` and the checkpoint that a run goes on from are not of one age."""
    if log.kept < start:
        progress.note(
            f"{log.path} has {log.kept} of the {start} iterations that the checkpoint has; "
            "the others are lost"
        )
    elif start == 0 and log.dropped:
        progress.note(f"there is no checkpoint: begins anew, without the lines of {log.path}")


def begin(learner: Learner, options: cli.Options, folder: RunFolder) -> int:
    """Make a learner ready for its next iteration; returns how many are done."""
    config = learner.config
    start = restore(learner, folder, options.resume_previous) if options.resume else 0
    if start == 0:
        if config.load_model:
            template = learner.networks()
            learner.load_networks(checkpoint.load_networks(config.load_model_path, template))
        if learner.inference.explores:
            print("exploring, and first encoder updates, before iteration 1", flush=True)
        with naming_the_iteration(0, folder):
            learner.prepare()
    return start


def train(config: Config, options: cli.Options) -> int:
    """Run to the end, or to where it is asked to stop; returns the exit status."""
    if config.n_training_threads:
        torch.set_num_threads(config.n_training_threads)
    device = select_device(config.gpu_id)
    if config.gpu_id >= 0 and device.type == "cpu":
        print(f"gpu_id={config.gpu_id}: torch finds no GPU here, training on the CPU", flush=True)
    learner = build(config, device)
    with RunFolder.open(config, options) as folder:
        try:
            start = begin(learner, options, folder)
        except KeyboardInterrupt as interrupt:
            print(f"\nstopped before training; go on with --resume={folder.path}", flush=True)
            return status_of(interrupt)
        with naming_what_is_kept(folder):
            log = MetricsLogger(
                folder.path,
                start=start,
                tensorboard=config.log_tensorboard,
                wandb=config.log_wandb,
                config=flat(config),
            )
        periodic = PeriodicTest(learner)
        progress = RunProgress(config.n_iters, start, config.log_interval)
        with log, progress, GracefulStop() as stop:
            progress.note(f"{options.algo} on {options.env}, {device}: {folder.path}")
            say_what_is_lost(log, start, progress)
            for iteration in range(start, config.n_iters):
                with naming_the_iteration(iteration + 1, folder):
                    metrics = iterate(learner, iteration, periodic)
                with naming_what_is_kept(folder):
                    log.log(metrics)
                progress.update(iteration + 1, metrics)
                done = iteration + 1
                due = done % config.save_interval == 0 or done == config.n_iters or stop.requested
                if config.save_model and due:
                    with naming_what_is_kept(folder):
                        log.flush()
                        save(learner, folder, done)
                if stop.requested:
                    how = f"; go on with --resume={folder.path}" if config.save_model else ""
                    progress.note(f"stopped after iteration {done}{how}")
                    if broken_output():
                        with contextlib.suppress(OSError):
                            print(f"stopped after iteration {done}{how}", file=sys.stderr)
                    break
        periodic.close()
        learner.close()
        return stop.exit_code


@cli.command
def main() -> int:
    """Entry point of ``python -m mg2l.train``; returns the exit status."""
    return train(*cli.parse())


if __name__ == "__main__":
    sys.exit(main())
