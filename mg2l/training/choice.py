"""What is to be trained: a new run by names and overrides, or an earlier one that is resumed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mg2l.config.files import (
    DEFAULTS,
    KINDS,
    RESUMABLE,
    about,
    config_from_yaml,
    load_config,
    with_values,
)
from mg2l.config.options import Options
from mg2l.config.sections import Config
from mg2l.core.files import read_json
from mg2l.core.packages import require
from mg2l.core.schema import ConfigError
from mg2l.training import checkpoint

LAST = "last"
"""What ``--resume`` says for the newest run."""


def choose(
    names: Mapping[str, str],
    overrides: Iterable[str] | Mapping[str, Any] = (),
    resume: Path | str | None = None,
    resume_previous: bool = False,
    trust: bool = False,
) -> tuple[Config, Options]:
    """The config of a run, and which run it is.

    Args:
        names: of files, by ``expt``, ``algo`` and ``env``; those left out are the defaults, or with
            ``resume`` the run's own.
        overrides: values that win over all files.
        resume: an earlier run's folder, one of its checkpoints, or `LAST` for the newest run in
            ``main_save_path``; only keys in ``RESUMABLE`` may be overridden then.
        resume_previous: where the last checkpoint is damaged, use the newest that is intact.
        trust: import the code that ``resume`` names.

    Raises:
        ConfigError: a name, key or value that cannot be.
    """
    overrides = overrides if isinstance(overrides, Mapping) else list(overrides)
    if resume is not None:
        config, options = _resume(names, overrides, resume, resume_previous, trust)
    elif resume_previous or trust:
        given = "--resume-previous" if resume_previous else "--trust"
        raise ConfigError(f"{given} needs --resume=RUN")
    else:
        chosen = {kind: names.get(kind, DEFAULTS[kind]) for kind in KINDS}
        config = load_config(**chosen, overrides=overrides)
        if config.load_model and not Path(config.load_model_path).is_dir():
            raise ConfigError(f"load_model_path={config.load_model_path}: there is no such folder")
        expt, algo, env = (stem(chosen[kind]) for kind in ("expt", "algo", "env"))
        options = Options(expt, algo, env)
    if config.log_wandb:
        require("log_wandb=true", "wandb", extra="wandb")
    return config, options


def stem(name: str) -> str:
    """Name of a file without folder and ending."""
    return Path(name).stem if name.endswith((".yaml", ".yml")) else Path(name).name


def _resume(
    names: Mapping[str, str],
    overrides: Iterable[str] | Mapping[str, Any],
    resume: Path | str,
    resume_previous: bool,
    trust: bool,
) -> tuple[Config, Options]:
    folder, name = checkpoint.locate(newest(overrides, names) if str(resume) == LAST else resume)
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"--resume={resume}: no run lies there (it has no config.yaml)")
    if name and resume_previous:
        raise ConfigError(f"--resume-previous needs --resume=RUN, got the checkpoint {name}")
    shape = {"names": dict.fromkeys(KINDS, str)}
    own = read_json(folder / "environment.json", shape, inside=folder)["names"]
    for kind, given in names.items():
        if stem(given) != own[kind]:
            raise ConfigError(
                f"--{kind}={given} conflicts with --resume={folder}, a run of "
                f"--{kind}={own[kind]}; leave --{kind} out"
            )
    config = config_from_yaml(folder / "config.yaml", trust)
    changed = with_values(config, overrides)
    now, then = about(changed), about(config)
    for path, value in now.items():
        if value != then[path]:
            raise ConfigError(
                f"{path}={value} conflicts with --resume={folder}, where it is {then[path]}; "
                f"only these may change: {', '.join(sorted(RESUMABLE))}"
            )
    of_run = (own["expt"], own["algo"], own["env"])
    return changed, Options(*of_run, folder, resume_previous, trust, name)


def newest(overrides: Iterable[str] | Mapping[str, Any], names: Mapping[str, str]) -> Path:
    """The run that was begun last in ``main_save_path``, of those of the environment and algorithm.

    Raises:
        ConfigError: there is none.
    """
    pairs = (
        overrides.items()
        if isinstance(overrides, Mapping)
        else (word.partition("=")[::2] for word in overrides)
    )
    root = Path({str(key): value for key, value in pairs}.get("main_save_path", "runs"))
    env, algo = (stem(names[kind]) if kind in names else "*" for kind in ("env", "algo"))
    found = [path.parent for path in root.glob(f"{env}/{algo}/*/config.yaml")]
    found = [path for path in found if not path.name.startswith(".")]
    if not found:
        raise ConfigError(f"--resume={LAST}: no run lies in {root}/{env}/{algo}")
    return max(found, key=lambda path: (path.name[:15], (path / "config.yaml").stat().st_mtime_ns))
