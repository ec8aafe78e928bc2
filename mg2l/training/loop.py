"""The training loop: what happens in an iteration, and how a run is built, restored and saved."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch

from mg2l.config.files import about
from mg2l.config.options import Options
from mg2l.config.sections import Config
from mg2l.core.files import WriteError
from mg2l.core.schema import ConfigError
from mg2l.envs.base import EnvError
from mg2l.experience.finite import NonFiniteLossError
from mg2l.experience.rollout import Rollout
from mg2l.training import checkpoint
from mg2l.training.checkpoint import Checkpoint, CheckpointError
from mg2l.training.device import out_of_memory
from mg2l.training.finite import check_finite
from mg2l.training.folder import RunFolder
from mg2l.training.learner import Learner
from mg2l.training.random_state import random_state, set_random_state


class Evaluator(Protocol):
    """Meta-tests in the course of training, such as `mg2l.evaluation.meta_test.PeriodicTest`."""

    def measure(self) -> dict[str, float]:
        """Metrics of the learner as it is; they change nothing of its training."""


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
    metrics |= returns_of(rollout, tasks)
    metrics |= learner.take_times()
    seconds = time.perf_counter() - start
    metrics["time/iteration"] = seconds
    metrics["env_steps"] = learner.env_steps
    metrics["env_steps_per_s"] = (learner.env_steps - steps_before) / seconds
    if evaluator and config.eval_interval and (iteration + 1) % config.eval_interval == 0:
        metrics |= evaluator.measure()
    return metrics


def returns_of(rollout: Rollout, tasks: np.ndarray) -> dict[str, Any]:
    """Mean return and length of the rollout's complete episodes, and the return on each task.

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


def exploration_steps(learner: Learner) -> int:
    """Environment steps of one exploration rollout."""
    if learner.explorer is None:
        return 0
    return learner.explorer.env.num_envs * learner.config.env.max_ep_len


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
    """The learner of a run, before there is a folder: what the environment refuses is said first.

    Raises:
        ConfigError: values with which nothing can be built, or more than memory holds.
    """
    try:
        learner = Learner(config, device)
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


def restore(
    learner: Learner, folder: RunFolder, options: Options, note: Callable[[str], object] = print
) -> int:
    """Bring a learner to a checkpoint of its run; returns the iterations done.

    Args:
        learner: freshly built.
        folder: of the run.
        options: say which checkpoint: a named one, or the last, or the newest that is intact.
        note: called with a line on what is not as it was.

    Raises:
        CheckpointError: it is damaged, or of another run.
    """
    is_of, template = about(learner.config), learner.state_dict()
    found: Checkpoint | None
    if options.checkpoint:
        path = folder.checkpoints / options.checkpoint
        found = checkpoint.load(path, about=is_of, template=template)
        checkpoint.roll_back(folder.checkpoints, found)
    else:
        found = checkpoint.load_last(
            folder.checkpoints, previous=options.resume_previous, about=is_of, template=template
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
        reason = f"{type(e).__name__}: {e}"
        raise CheckpointError(f"checkpoint {found.path} does not fit this run: {reason}") from None
    if renewed:
        note(
            f"continuing on {learner.device}, not where the checkpoint was written: fresh random "
            f"streams from seed {seed} and iteration {found.iteration} ({', '.join(renewed)})"
        )
    return found.iteration


def snapshot(learner: Learner) -> dict[str, Any]:
    """State that a checkpoint holds: the learner's, and that of every random stream."""
    return learner.state_dict() | {"random": random_state(learner.generators)}


def save(learner: Learner, folder: RunFolder, iteration: int) -> None:
    """Write the checkpoint of an iteration."""
    checkpoint.save(
        folder.checkpoints,
        iteration,
        snapshot(learner),
        keep=learner.config.keep_checkpoints,
        about=about(learner.config),
    )


@contextmanager
def error_context(iteration: int, folder: RunFolder) -> Iterator[None]:
    """Add the iteration to errors of a block, and save the batch of a loss that is not finite.

    Iteration 0 is what comes before the first.

    Raises:
        NonFiniteError: there was one; the message says which, when, and where the batch is.
        EnvError: the environment cannot continue; the message says when, too.
    """
    try:
        yield
    except EnvError as error:
        raise EnvError(f"iteration {iteration}: {error}") from None
    except NonFiniteLossError as error:
        check_finite({error.term: error.value}, iteration, error.batch, folder.path)
        raise


@contextmanager
def write_error_context(folder: RunFolder) -> Iterator[None]:
    """Say what a run can be resumed from where the disk refuses.

    Raises:
        WriteError: it did.
    """
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
