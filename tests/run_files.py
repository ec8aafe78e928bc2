"""Folders of runs that no training wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

GIF = b"GIF89a" + bytes(40)
"""What begins like a video."""

Returns = Callable[[float], float | None] | float | None


def linear(slope: float, shift: float = 0.0) -> Returns:
    """A return that grows with the environment steps."""
    return lambda env_steps: slope * env_steps + shift


def write_run(
    root: Path,
    algo: str = "mappo",
    seed: int = 0,
    returns: Returns = 0.0,
    *,
    env: str = "mpe-spread",
    iterations: int = 30,
    pace: int = 3200,
    stamp: str = "20260101-000000",
    config: dict[str, Any] | None = None,
) -> Path:
    """A run of ``pace`` environment steps an iteration, whose return may be a function of these."""
    folder = root / env / algo / f"{stamp}-sd{seed}"
    folder.mkdir(parents=True)
    rows = [
        {
            "iteration": k,
            "env_steps": k * pace,
            "return": returns(k * pace) if callable(returns) else returns,
        }
        for k in range(1, iterations + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump({"seed": seed, **config}))
    return folder
