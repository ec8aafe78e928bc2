"""Export a run's agents: ``python -m mg2l.export RUN``.

Writes each agent's networks for decentralised execution, as torch.export programs and as ONNX: its
policy and its inference network. The manifest ``export.json`` and the package ``agent``, which runs
an agent by NumPy and onnxruntime, are written beside them. Networks whose outputs differ from those
of the run's own networks are not written.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from mg2l import cli
from mg2l.deploy.export import TOLERANCE, write_team
from mg2l.evaluation import trained
from mg2l.training import checkpoint


def show(agent: dict[str, Any]) -> None:
    """Print how far the networks of an agent deviate, see `write_team`."""
    shown = ", ".join(f"{name} {value:.1e}" for name, value in agent["deviation"].items())
    print(f"agent {agent['index']}: largest deviation from the run's own: {shown}", flush=True)


@cli.command
def main() -> None:
    """Entry point of ``python -m mg2l.export``."""
    parser = cli.Parser(prog="python -m mg2l.export", description=__doc__)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--out", type=Path, help="folder to write (default: RUN/export)")
    parser.add_argument(
        "--agents", type=cli.at_least(0), nargs="+", help="which agents (default: all)"
    )
    parser.add_argument(
        "--tolerance",
        type=cli.at_least(0, float),
        default=TOLERANCE,
        help="largest deviation from the run's own networks (default: %(default)s)",
    )
    parser.add_argument("--trust", action="store_true", help=cli.TRUST)
    arguments = parser.parse_args()
    out = arguments.out or arguments.run / "export"
    with closing(trained.load(arguments.run, torch.device("cpu"), arguments.trust)) as learner:
        last = checkpoint.iterations(arguments.run / "checkpoints")[-1]
        write_team(learner, out, arguments.agents, arguments.tolerance, last, show)
    print(f"written: {out}")


if __name__ == "__main__":
    main()
