"""The training loop: one iteration, and how a run is built, restored and saved."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch

from mg2l.config.options import Options
from mg2l.config.saved import about
from mg2l.config.sections import Config
from mg2l.core.distributed import world
from mg2l.core.errors import out_of_memory
from mg2l.core.files import WriteError
from mg2l.core.schema import ConfigError
from mg2l.envs.base import EnvError
from mg2l.experience.finite import NonFiniteLossError
from mg2l.experience.rollout import Rollout
from mg2l.training import checkpoint, env_actors
from mg2l.training.checkpoint import Checkpoint, CheckpointError
from mg2l.training.finite import save_batch
from mg2l.training.folder import RunFolder
from mg2l.training.learner import Learner
from mg2l.training.random_state import (
    gather_random_state,
    own_random_state,
    random_state,
    set_random_state,
)

_NEW = ("random", "env", "explore_env")
"""Parts of a run's state that are new in a fork."""

_MISFITS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What loading a state raises that is not of this run."""


class Evaluator(Protocol):
    """Meta-tests during training, such as `mg2l.evaluation.meta_test.PeriodicTest`."""

    def measure(self) -> dict[str, float]:
        """Metrics of the learner as it is; measuring them does not affect training.

        All processes of a run call it.
        """


def iterate(learner: Learner, iteration: int, evaluator: Evaluator | None = None) -> dict[str, Any]:
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
    metrics |= returns_of(rollout, tasks, learner.tasks)
    metrics |= learner.take_times()
    seconds = time.perf_counter() - start
    metrics["time/iteration"] = seconds
    if world.size > 1:
        metrics |= world.take_counts()
    metrics["env_steps"] = learner.env_steps
    metrics["env_steps_per_s"] = (learner.env_steps - steps_before) / seconds
    if evaluator and config.eval_interval and (iteration + 1) % config.eval_interval == 0:
        metrics |= evaluator.measure()
    return metrics


def returns_of(rollout: Rollout, tasks: np.ndarray, n_tasks: int) -> dict[str, Any]:
    """Mean return and length of the rollout's complete episodes, and the return on each task.

    Also the fraction of its steps in episodes that it cut off, which are counted nowhere.
    """
    episodes = rollout.episodes()
    returns, own = episodes.returns.mean(1).numpy(), tasks[episodes.envs.numpy()]
    steps, ended = rollout.episode_start[:-1].numel(), int(episodes.lengths.sum())
    # Sum and number of returns, of all episodes and of those on each task, in all processes.
    chosen = [slice(None), *(own == task for task in range(n_tasks))]
    sums = [[returns[which].sum(), len(returns[which])] for which in chosen]
    totals = world.sum(torch.tensor([*sums, [ended, steps]], dtype=torch.float64)).tolist()
    (total, count), *by_task, (whole_steps, all_steps) = totals
    return {
        "return": total / count,
        "return_by_task": {str(k): x / n for k, (x, n) in enumerate(by_task) if n},
        "episode_length": whole_steps / count,
        "unfinished": 1 - whole_steps / all_steps,
    }


def exploration_steps(learner: Learner) -> int:
    """Environment steps of one exploration rollout."""
    if learner.explorer is None:
        return 0
    return learner.config.rollout.n_ae_rollout_threads * learner.config.env.max_ep_len


def plan_iterations(learner: Learner, done: int) -> int:
    """Iterations of the whole run: ``n_iters``, or the least that take ``n_env_steps``.

    Args:
        learner: at the end of iteration ``done``, or of the exploration before the first.
        done: iterations.
    """
    config = learner.config
    if not config.n_env_steps:
        return config.n_iters
    every, explored = config.rollout.sample_ae_interval, exploration_steps(learner)
    rollout = config.rollout_envs * config.rollout_steps
    cycle = every * rollout + explored
    whole = max(config.n_env_steps - learner.env_steps, 0) // cycle
    planned, steps = done + whole * every, learner.env_steps + whole * cycle
    while steps < config.n_env_steps:
        planned += 1
        steps += rollout + (explored if planned % every == 0 else 0)
    return planned


def build(config: Config, device: torch.device) -> Learner:
    """Build the learner of a run, before its folder, so that errors of the environment come first.

    Raises:
        ConfigError: values with which nothing can be built, or more than memory holds.
    """
    try:
        hosted = config.rollout.env_actors > 0
        learner = env_actors.build(config, device) if hosted else Learner(config, device)
    except (MemoryError, RuntimeError) as error:
        reason = out_of_memory(error)
        if reason is None:
            raise
        raise ConfigError(f"this run does not fit into memory: {reason}") from error
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error
    least = config.rollout_envs * config.rollout_steps
    least += config.rollout.n_init_rollouts * exploration_steps(learner)
    if 0 < config.n_env_steps < least:
        learner.close()
        raise ConfigError(
            f"n_env_steps={config.n_env_steps} must be at least {least}, what one iteration and "
            "the exploration before it take"
        )
    return learner


def exempt_from_gc() -> None:
    """Exempt all that is built from garbage collection, until ``gc.unfreeze``.

    Going through it, again and again, takes a tenth of a short iteration.
    """
    gc.collect()
    gc.freeze()


def fork(learner: Learner, options: Options) -> Checkpoint | None:
    """Bring a learner to a checkpoint of another run, with new streams of random numbers.

    Args:
        learner: freshly built.
        options: say which run, and which of its checkpoints.

    Returns:
        The checkpoint that the new run begins with; None where ``options`` name no run.

    Raises:
        CheckpointError: there is none, it is damaged, or its networks are of other sizes.
        ConfigError: the new run is to end before it.
    """
    if options.fork is None:
        return None
    template = {k: v for k, v in learner.state_dict().items() if k not in _NEW}
    folder = options.fork / "checkpoints"
    while True:
        saved = checkpoint.last_iteration(folder)
        name = options.checkpoint or checkpoint.path_of(folder, saved).name
        try:
            parent = checkpoint.load(folder / name, template=template)
            break
        except CheckpointError:  # the run may be at work, and have replaced its last one
            if options.checkpoint or checkpoint.last_iteration(folder) == saved:
                raise
    config = learner.config
    if not config.n_env_steps and config.n_iters <= parent.iteration:
        raise ConfigError(
            f"n_iters={config.n_iters} must be more than {parent.iteration}, the iteration of the "
            f"checkpoint of --from={options.fork}"
        )
    try:
        learner.load_learnt(parent.state)
    except _MISFITS as error:
        raise _misfit(parent, error) from None
    learner.reseed(parent.iteration)
    return replace(parent, state=snapshot(learner))


def restore(
    learner: Learner, folder: RunFolder, options: Options, note: Callable[[str], object] = print
) -> int:
    """Bring a learner to a checkpoint of its run; returns the iterations done.

    Args:
        learner: freshly built.
        folder: folder of the run.
        options: choose the checkpoint: a named one, or the last, or the newest that is intact.
        note: called with a message about state that could not be restored.

    Raises:
        CheckpointError: it is damaged, or of another run.
    """
    is_of, template = about(learner.config), learner.state_dict()
    read: Checkpoint | None = None

    def choose() -> str | None:
        nonlocal read
        if options.checkpoint:
            path = folder.checkpoints / options.checkpoint
            read = checkpoint.load(path, about=is_of, template=template)
            checkpoint.roll_back(folder.checkpoints, read)
        else:
            read = checkpoint.load_last(
                folder.checkpoints, previous=options.resume_previous, about=is_of, template=template
            )
        checkpoint.remove_best_after(folder.checkpoints, 0 if read is None else read.iteration)
        return None if read is None else str(read.path)

    chosen = world.from_main(choose)
    if chosen is None:
        return 0
    if read is None:
        read = checkpoint.load(chosen, about=is_of, template=template)
    seed = learner.config.seed
    try:
        learner.load_state_dict(read.state)
        renewed = set_random_state(
            own_random_state(read.state["random"]),
            learner.generators,
            learner.device,
            fresh=(seed, read.iteration),
        )
    except _MISFITS as error:
        raise _misfit(read, error) from None
    if renewed:
        note(
            f"continuing on {learner.device}, not where the checkpoint was written: fresh random "
            f"streams from seed {seed} and iteration {read.iteration} ({', '.join(renewed)})"
        )
    return read.iteration


def _misfit(read: Checkpoint, error: Exception) -> CheckpointError:
    reason = f"{type(error).__name__}: {error}"
    return CheckpointError(f"checkpoint {read.path} does not fit this run: {reason}")


def snapshot(learner: Learner) -> dict[str, Any]:
    """State that a checkpoint holds: the learner's, and that of every random stream.

    All processes of a run must call it.
    """
    random = gather_random_state(random_state(learner.generators, learner.device))
    return learner.state_dict() | {"random": random}


def save(learner: Learner, folder: RunFolder, iteration: int) -> None:
    """Write the checkpoint of an iteration."""
    state = snapshot(learner)
    if world.is_main:
        checkpoint.save(
            folder.checkpoints,
            iteration,
            state,
            keep=learner.config.keep_checkpoints,
            about=about(learner.config),
        )


@contextmanager
def error_context(iteration: int, folder: RunFolder) -> Iterator[None]:
    """Add the iteration to errors of a block, and save the batch of a loss that is not finite.

    Iteration 0 is the exploration before the first.

    Raises:
        NonFiniteError: there was one; the message says which, when, and where the batch is.
        EnvError: the environment cannot continue; the message says when, too.
    """
    try:
        yield
    except EnvError as error:
        raise EnvError(f"iteration {iteration}: {error}") from None
    except NonFiniteLossError as error:
        raise save_batch(error, iteration, folder.path) from error


@contextmanager
def write_error_context(folder: RunFolder) -> Iterator[None]:
    """Name the checkpoint to resume from in errors of writing.

    Raises:
        WriteError: it did, or another process has taken over the run.
    """
    folder.require_seat()
    try:
        yield
    except OSError as error:
        saved = checkpoint.iterations(folder.checkpoints)
        kept = "nothing is saved yet"
        if saved:
            kept = f"iteration {saved[-1]} is saved: resume with --resume={folder.path}"
        raise WriteError(
            f"{error.filename or folder.path}: cannot be written: {error.strerror or error}; {kept}"
        ) from error
