"""Older names of keys, and keys of the original code that are gone."""

from __future__ import annotations

from typing import Any

RETIRED = {
    "env_file": "an env file names its family instead, as in 'family: mpe-spread'",
    "env_class": "an env file names its family instead, as in 'family: mpe-spread'",
    "scenario_name": "an env file names its family instead, as in 'family: mpe-spread'",
    "task_info_dim": "the environment itself knows the size of its task description",
    "save_name": "a run's folder is named after --env and --algo, below main_save_path",
    "use_obs_instead_of_state": (
        "there is no separate state: the critic sees the observations of all agents, or with "
        "use_centralized_V=false its own agent's only"
    ),
    "use_stacked_frames": "observations are not stacked; use_recurrent_policy=true gives memory",
    "stacked_frames": "observations are not stacked; use_recurrent_policy=true gives memory",
    "load_buffer_path": "a checkpoint holds the context replay, and --resume restores it",
}
"""Obsolete keys of the original code, and their replacements."""

ALIASES: dict[str, tuple[str, dict[Any, Any] | None]] = {
    "use_feature_normalization": (
        "policy.observation_normalization",
        {True: "layer", False: "none"},
    ),
    "told_actors": ("algo.actor_latent", None),
    "told_critics": ("algo.critic_latent", None),
    "encoder.obs": ("policy.obs", None),
}
"""Older keys, by their leaf name or path: the current name of each, and its values where they have
changed."""

GROUP_ALIASES = {"encoder": "algo", "belief": "algo"}
"""Older groups: the current name of each."""


def current(name: str) -> tuple[str, dict[Any, Any] | None]:
    """Current name of an older key, and its values where they have changed."""
    group, _, leaf = name.rpartition(".")
    path, meanings = ALIASES.get(name) or ALIASES.get(leaf, ("", None))
    if path and (name in ALIASES or group in ("", path.rpartition(".")[0], *GROUP_ALIASES)):
        return path, meanings
    group = GROUP_ALIASES.get(group, group)
    return (f"{group}.{leaf}" if group else leaf), None
