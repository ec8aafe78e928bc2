"""Run to train: a new one by names and overrides, or an earlier one, resumed or forked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mg2l.config.files import DEFAULTS, KINDS, load_config
from mg2l.config.options import Options
from mg2l.config.saved import RESUMABLE, about, config_from_yaml, with_values
from mg2l.config.sections import Config
from mg2l.core.distributed import world
from mg2l.core.files import read_json
from mg2l.core.schema import ConfigError
from mg2l.training import trackers

LAST = "last"
"""Value of ``--resume`` for the newest run."""


def choose(
    names: Mapping[str, str],
    overrides: Iterable[str] | Mapping[str, Any] = (),
    resume: Path | str | None = None,
    resume_previous: bool = False,
    trust: bool = False,
    fork: Path | str | None = None,
    until: int = 0,
    folder: Path | str | None = None,
) -> tuple[Config, Options]:
    """The config of a run, and which run it is.

    Args:
        names: of files, by ``expt``, ``algo`` and ``env``; those left out are the defaults, or with
            ``resume`` and ``fork`` the run's own.
        overrides: values that win over all files.
        resume: an earlier run's folder, one of its checkpoints, or `LAST` for the newest run in
            ``main_save_path``; only keys in ``RESUMABLE`` may be overridden then.
        resume_previous: where the last checkpoint is damaged, use the newest that is intact.
        trust: import the code that ``resume`` or ``fork`` names.
        fork: an earlier run, as ``resume`` names it, whose whole state a new run takes over; its
            random streams are new, and any key may be overridden that leaves the networks' sizes.
        until: iteration after which this process stops with a checkpoint; 0 is the end of the run.
        folder: of the run, which is resumed where it exists, and otherwise made there.

    Raises:
        ConfigError: an invalid name, key or value.
    """
    world.connect()
    place = None if folder is None else Path(folder)
    if place is not None:
        if resume is not None:
            raise ConfigError(f"--folder={folder} and --resume={resume} exclude each other")
        if world.from_main(lambda: (place / "config.yaml").is_file()):
            resume, fork = place, None
    overrides = overrides if isinstance(overrides, Mapping) else list(overrides)
    if resume is not None and fork is not None:
        raise ConfigError(f"--resume={resume} and --from={fork} exclude each other")
    if resume_previous and resume is None:
        raise ConfigError("--resume-previous needs --resume=RUN")
    if resume is not None:
        config, options = _resume(names, overrides, resume, resume_previous, trust)
    elif fork is not None:
        config, options = _fork(names, overrides, fork, trust)
    elif trust and folder is None:
        raise ConfigError("--trust needs --resume=RUN or --from=RUN")
    else:
        chosen = {kind: names.get(kind, DEFAULTS[kind]) for kind in KINDS}
        config = load_config(**chosen, overrides=overrides)
        if config.load_model and not Path(config.load_model_path).is_dir():
            raise ConfigError(f"load_model_path={config.load_model_path}: there is no such folder")
        expt, algo, env = (stem(chosen[kind]) for kind in ("expt", "algo", "env"))
        options = Options(expt, algo, env)
    if until and not config.save_model:
        raise ConfigError(f"--until={until} needs save_model=true: the rest starts from there")
    trackers.chosen(config)
    return config, replace(options, until=until, folder=place)


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
    folder, name, own, config = _earlier("--resume", names, overrides, resume, trust)
    if name and resume_previous:
        raise ConfigError(f"--resume-previous needs --resume=RUN, got the checkpoint {name}")
    changed = with_values(config, overrides)
    now, then = about(changed), about(config)
    for path, value in now.items():
        if value != then[path]:
            raise ConfigError(
                f"{path}={value} conflicts with --resume={folder}, where it is {then[path]}; "
                f"only these may change: {', '.join(sorted(RESUMABLE))}"
            )
    return changed, Options(*own, folder, resume_previous, trust, checkpoint=name)


def _fork(
    names: Mapping[str, str],
    overrides: Iterable[str] | Mapping[str, Any],
    fork: Path | str,
    trust: bool,
) -> tuple[Config, Options]:
    folder, name, own, config = _earlier("--from", names, overrides, fork, trust)
    changed = with_values(config, overrides)
    return changed, Options(*own, trust=trust, checkpoint=name, fork=folder)


def _earlier(
    option: str,
    names: Mapping[str, str],
    overrides: Iterable[str] | Mapping[str, Any],
    run: Path | str,
    trust: bool,
) -> tuple[Path, str, tuple[str, str, str], Config]:
    """An earlier run: folder, name of a checkpoint or '', its expt, algo and env, and its config.

    Raises:
        ConfigError: it is none, or ``names`` are of another; names the ``option``.
    """
    from mg2l.training import checkpoint  # imports torch, which new runs are chosen without

    path = newest(overrides, names, option) if str(run) == LAST else run
    folder, name = checkpoint.locate(path)
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{option}={run}: no run lies there (it has no config.yaml)")
    shape = {"names": dict.fromkeys(KINDS, str)}
    own = read_json(folder / "environment.json", shape, inside=folder)["names"]
    for kind, given in names.items():
        if stem(given) != own[kind]:
            raise ConfigError(
                f"--{kind}={given} conflicts with {option}={folder}, a run of "
                f"--{kind}={own[kind]}; leave --{kind} out"
            )
    config = config_from_yaml(folder / "config.yaml", trust)
    return folder, name, (own["expt"], own["algo"], own["env"]), config


def newest(
    overrides: Iterable[str] | Mapping[str, Any],
    names: Mapping[str, str],
    option: str = "--resume",
) -> Path:
    """The newest run in ``main_save_path`` of the environment and algorithm.

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
    runs = [path.parent for path in root.glob(f"{env}/{algo}/*/config.yaml")]
    runs = [path for path in runs if not path.name.startswith(".")]
    if not runs:
        raise ConfigError(f"{option}={LAST}: no run lies in {root}/{env}/{algo}")
    return max(runs, key=lambda path: (path.name[:15], (path / "config.yaml").stat().st_mtime_ns))
