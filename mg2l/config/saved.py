"""Configs as values and as YAML, including those of older runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mg2l.config.algorithms import algorithms
from mg2l.config.code import take_algorithm, take_family
from mg2l.config.files import DEFAULTS
from mg2l.config.keys import Schema, dotted
from mg2l.config.sections import Config
from mg2l.core.files import read_yaml
from mg2l.core.schema import ConfigError
from mg2l.envs import EnvConfig
from mg2l.envs.registry import families

RESUMABLE = frozenset([
    "gpu_id", "n_training_threads", "n_iters", "n_env_steps", "log_interval", "save_interval",
    "save_model", "keep_checkpoints", "main_save_path", "log_wandb", "log_tensorboard",
    "log_csv", "log_mlflow",
    "eval_interval", "eval_episodes", "eval_shots", "rollout.env_actors",
])  # fmt: skip
"""Keys that may change when a run is resumed: none of them changes what it has done so far."""


def family_of(config: EnvConfig) -> str:
    """Name of the family that an env config belongs to.

    Raises:
        ConfigError: it belongs to none.
    """
    names = families.names()
    for name in names:
        if type(config) is families.get(name).config_class:
            return name
    kind = type(config).__name__
    raise ConfigError(f"{kind} is the config of no env; choose one of {', '.join(names)}")


def flat(config: Config) -> dict[str, Any]:
    """Every value by its ``group.name`` path, the env's family among them as ``env.family``."""
    return {"env.family": family_of(config.env), **dotted(asdict(config))}


def about(config: Config) -> dict[str, Any]:
    """Values that identify a run: its checkpoints are loaded only where these are equal."""
    return {path: value for path, value in flat(config).items() if path not in RESUMABLE}


def upgrade(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert values of an older run, by their paths then, to the paths of today.

    Keys that have been added since have their defaults, with which everything is as it was. Left
    out are keys of other algorithms, which were written down for every run. Nothing changes where
    the family or the algorithm is not known here.
    """
    family, name = values.get("env.family"), str(values.get("algo_name"))
    if not isinstance(family, str) or not families.knows(family) or not algorithms.knows(name):
        return dict(values)
    schema = Schema(family, name)
    found = {path: key.default for path, key in schema.by_path.items()}
    for path, value in values.items():
        now, value = schema.translate(path, value)
        if schema.unused(now, foreign=True) is None:
            found[now] = value
    return found


def config_to_yaml(config: Config) -> str:
    """The whole config as YAML that ``config_from_yaml`` reads back to an equal one."""
    tree = asdict(config)
    family = family_of(config.env)
    tree["env"] = {"family": family, **_origin(families.origin(family)), **tree["env"]}
    tree["algo"] = {**_origin(algorithms.origin(config.algo_name)), **tree["algo"]}
    groups_last = sorted(tree, key=lambda name: isinstance(tree[name], dict))
    return OmegaConf.to_yaml(OmegaConf.create({name: tree[name] for name in groups_last}))


def _origin(code: tuple[str, str] | None) -> dict[str, str]:
    return {} if code is None else {"module": code[0], "module_sha256": code[1]}


def config_from_yaml(path: Path | str, trust: bool = False) -> Config:
    """Read what ``config_to_yaml`` wrote into a file, now or in an older version.

    Args:
        path: path of the file, which may come from anywhere.
        trust: import the code that it names, if that is what it was trained with.

    Raises:
        ConfigError: the file is missing or unreadable, is invalid, or names
            code that is not imported.
    """
    path = Path(path)
    mapping = read_yaml(path, inside=path.parent)
    env, algo = mapping.get("env"), mapping.get("algo", {})
    if not isinstance(env, dict) or not isinstance(algo, dict):
        raise ConfigError(f"{path}: has no group 'env', so it is not the resolved config of a run")
    try:
        family = take_family(env, path, run=True, trust=trust)
        name = mapping.get("algo_name", DEFAULTS["algo"])
        schema = Schema(family, take_algorithm(name, algo, path, run=True, trust=trust))
        values = schema.flatten(mapping, foreign="algo" not in mapping)
        for value in values.values():
            if isinstance(value, str) and "${" in value:
                raise ConfigError(f"{value!r}: the config of a run interpolates nothing")
        return schema.build(values)
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith(str(path)) else f"{path}: {text}") from None


def with_values(config: Config, overrides: Iterable[str] | Mapping[str, Any]) -> Config:
    """A copy of ``config`` with overrides.

    Raises:
        ConfigError: an invalid key or value.
    """
    values = flat(config)
    schema = Schema(values.pop("env.family"), config.algo_name)
    return schema.build({**values, **schema.overrides(overrides)})
