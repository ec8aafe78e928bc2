"""Meta-train a team: ``python -m mg2l.train --algo=mg2l --env=mpe-spread n_iters=400 seed=1``.

An iteration, as in the paper's algorithm: draw a task per environment; roll out, each agent acting
on its inferred latent; PPO of all agents; encoder updates; exploration every few iterations.
"""

from __future__ import annotations

import contextlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mg2l import cli
from mg2l.config.options import Options
from mg2l.config.sections import Config
from mg2l.core.distributed import world
from mg2l.training.stop import GracefulStop, broken_output, status_of

if TYPE_CHECKING:
    from mg2l.api.callbacks import Callback
    from mg2l.evaluation.results import Run


def run(config: Config, options: Options) -> int:
    """Run to the end, or to where it is asked to stop; returns the exit status."""
    from mg2l.api.callbacks import BestCheckpoint, Progress  # import torch, which the help need not
    from mg2l.api.training import Training

    callbacks: list[Callback] = [Progress()] if world.is_main else []
    if config.eval_interval and config.save_model:
        callbacks.append(BestCheckpoint())
    with Training(config, options, callbacks) as training:
        resume = f"resume with --resume={training.path}"
        try:
            training.prepare()
        except KeyboardInterrupt as interrupt:
            if world.is_main:
                print(f"\nstopped before training; {resume}", flush=True)
            return status_of(interrupt)
        with GracefulStop() as stop:
            for _ in training:
                if stop.requested:
                    training.stop()
        if world.is_main and training.stopped:
            how = f"; {resume}" if config.save_model else ""
            line = f"stopped after iteration {training.iteration}{how}"
            print(line, flush=True)
            if broken_output():
                with contextlib.suppress(OSError):
                    print(line, file=sys.stderr)
        elif training.iteration < training.n_iters and options.until:
            print(f"stopped after iteration {training.iteration} (--until); {resume}", flush=True)
        return stop.exit_code


@cli.command
def main() -> int:
    """Entry point of ``python -m mg2l.train``; returns the exit status."""
    return run(*cli.parse())


class _Callable(ModuleType):
    """Importing this module hides the function ``mg2l.train``, so it is callable itself."""

    def __call__(self, *args: Any, **kwargs: Any) -> Run:
        from mg2l.api.training import train

        return train(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    sys.exit(main())
