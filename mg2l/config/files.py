"""The config of a run, from a choice of YAML files and overrides.

They are merged in the order schema defaults, env, algo and expt file, overrides; the last one wins.
Every value is validated where it is written, so that a message can name the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mg2l.config.algorithms import algorithms
from mg2l.config.code import take_algorithm, take_family
from mg2l.config.keys import Schema, one_budget
from mg2l.config.sections import Config
from mg2l.core.files import read_yaml
from mg2l.core.schema import ConfigError, nearest
from mg2l.envs.registry import families

CONFIGS = Path(__file__).parents[1] / "configs"
KINDS = ("expt", "algo", "env")
DEFAULTS = {"expt": "default", "algo": "mg2l", "env": "mpe-spread"}


def available(kind: str) -> list[str]:
    """Names of the shipped files of a kind (``expt``, ``algo`` or ``env``)."""
    return sorted(path.stem for path in (CONFIGS / kind).glob("*.yaml"))


def find(kind: str, name: str) -> Path:
    """File that ``--<kind>=name`` refers to: a shipped one by name, or a path to one's own.

    Raises:
        ConfigError: there is no such file.
    """
    if name.endswith((".yaml", ".yml")) or "/" in name:
        if not Path(name).is_file():
            raise ConfigError(f"--{kind}={name}: there is no such file")
        return Path(name)
    known = available(kind)
    if name not in known:
        if kind != "expt":
            registry = families if kind == "env" else algorithms
            known = sorted({*known, *registry.names()})
        raise ConfigError(
            f"unknown {kind} {name!r}; choose one of {', '.join(known)}, or give the path of a "
            f"YAML file{nearest(name, known)}"
        )
    return CONFIGS / kind / f"{name}.yaml"


@dataclass(frozen=True)
class Sources:
    """Content of each file of a choice of expt, algo and env, checked but not merged."""

    schema: Schema
    values: list[tuple[str, dict[str, Any]]]
    """``(file, values by Key.path)``, the weakest first."""

    def merged(self, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Values by ``Key.path``; later files win, and ``given`` values win over all."""
        return self.schema.merge([*self.values, ("the command line", given or {})])


def _source(kind: str, name: str) -> tuple[Path, dict[str, Any]]:
    """File that ``--<kind>=name`` refers to and its content; without a file, a family's defaults.

    Raises:
        ConfigError: there is no such file, family or algorithm, or it is unreadable.
    """
    if name not in available(kind):
        if kind == "env" and families.knows(name):
            return Path(f"--env={name}"), {"family": name}
        if kind == "algo" and algorithms.knows(name):
            return Path(f"--algo={name}"), {"algo_name": name}
    path = find(kind, name)
    return path, read_yaml(path)


def read_sources(expt: str, algo: str, env: str) -> Sources:
    """Read the three files of a choice.

    Raises:
        ConfigError: a file is missing, unreadable or invalid.
    """
    sources = [_source("env", env), _source("algo", algo), _source("expt", expt)]
    values = []
    path, mapping = sources[0]
    try:
        family = take_family(mapping, path)
        (path, mapping), (_, experiment) = sources[1:]
        name = experiment.get("algo_name", mapping.get("algo_name", DEFAULTS["algo"]))
        schema = Schema(family, take_algorithm(name, mapping, path))
        for index, (path, mapping) in enumerate(sources):
            # Files of environments and experiments are shared by all algorithms.
            given = schema.flatten(mapping, foreign=index != 1)
            values.append((str(path), one_budget(given)))
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith(str(path)) else f"{path}: {text}") from None
    return Sources(schema, values)


def load_config(
    expt: str = DEFAULTS["expt"],
    algo: str = DEFAULTS["algo"],
    env: str = DEFAULTS["env"],
    overrides: Iterable[str] | Mapping[str, Any] = (),
) -> Config:
    """The config of a run.

    Args:
        expt: shipped experiment, or path of a YAML file; wins over ``algo`` and ``env``.
        algo: shipped algorithm, algorithm of an installed package, or path of a YAML file, which
            says ``algo_name: NAME``; with ``module: FILE.py`` (beside it) or ``module: NAME``, that
            is imported first. Wins over ``env``.
        env: shipped environment, family of an installed package, or path of a YAML file that begins
            with ``family: NAME``; with ``module`` as above.
        overrides: ``["clip_param=0.3", ...]`` or ``{"clip_param": 0.3, ...}``; win over all.

    Raises:
        ConfigError: an invalid name, key or value, or values that exclude each other.
    """
    sources = read_sources(expt, algo, env)
    given = sources.schema.overrides(overrides)
    name = given.get("algo_name", sources.schema.algorithm)
    if name != sources.schema.algorithm:
        raise ConfigError(
            f"algo_name={name} conflicts with --algo={algo}, which says "
            f"algo_name={sources.schema.algorithm}; choose the algorithm by --algo"
        )
    return sources.schema.build({**sources.merged(given), "algo_name": name})
