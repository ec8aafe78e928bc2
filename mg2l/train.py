"""Meta-train a team: ``python -m mg2l.train --algo=mg2l --env=mpe-spread n_iters=400 seed=1``.

An iteration, as in the paper's algorithm: draw a task per environment; roll out, each agent acting
on what it infers; PPO of all agents; encoder updates; from time to time, exploration.
"""

from __future__ import annotations

import contextlib
import sys
from types import ModuleType

from mg2l import cli
from mg2l.api.callbacks import BestCheckpoint, Callback, Progress
from mg2l.api.training import Training, train
from mg2l.config.options import Options
from mg2l.config.sections import Config
from mg2l.training.stop import GracefulStop, broken_output, status_of


def run(config: Config, options: Options) -> int:
    """Run to the end, or to where it is asked to stop; returns the exit status."""
    callbacks: list[Callback] = [Progress()]
    if config.eval_interval and config.save_model:
        callbacks.append(BestCheckpoint())
    with Training(config, options, callbacks) as training:
        resume = f"resume with --resume={training.path}"
        try:
            training.prepare()
        except KeyboardInterrupt as interrupt:
            print(f"\nstopped before training; {resume}", flush=True)
            return status_of(interrupt)
        with GracefulStop() as stop:
            for _ in training:
                if stop.requested:
                    training.stop()
        if stop.requested:
            how = f"; {resume}" if config.save_model else ""
            line = f"stopped after iteration {training.iteration}{how}"
            print(line, flush=True)
            if broken_output():
                with contextlib.suppress(OSError):
                    print(line, file=sys.stderr)
        return stop.exit_code


@cli.command
def main() -> int:
    """Entry point of ``python -m mg2l.train``; returns the exit status."""
    return run(*cli.parse())


class _Callable(ModuleType):
    """Whoever imports this module hides ``mg2l.train``, the function: so it is called like it."""

    __call__ = staticmethod(train)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    sys.exit(main())
