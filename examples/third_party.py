"""Agents of the unmodified package ``mpe2`` that infer how much of the reward is the team's.

``python -m mg2l.train --env=examples/third_party.yaml`` trains on it (extra ``third-party``).
"""

from typing import Any

from mg2l.envs import adapters


def make(params: dict[str, Any]) -> Any:
    """Three agents that spread over landmarks; part of the reward is each agent's own."""
    from mpe2 import simple_spread_v3

    return simple_spread_v3.parallel_env(
        N=3,
        local_ratio=params["local_ratio"],
        max_cycles=25,
        continuous_actions=True,
        render_mode="rgb_array",
    )


adapters.register(
    "mpe2-spread",
    make,
    train=[{"local_ratio": ratio} for ratio in (0.0, 0.5, 1.0)],
    test=[{"local_ratio": ratio} for ratio in (0.25, 0.75)],
)
