"""From YAML files and overrides to a ``Config``, and back.

Values are merged in the order schema defaults, env file, algo file, expt file, overrides; the
last one wins. Every value is judged where it is written, so that a message can name the file.
Within a file ``${n_landmarks}`` stands for the value of another key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mg2l.config.sections import Config
from mg2l.core.files import FileError, parse_yaml, read_yaml
from mg2l.core.schema import ConfigError, Key, check_value, groups, keys, nearest
from mg2l.envs import EnvConfig, registry

CONFIGS = Path(__file__).parents[1] / "configs"
KINDS = ("expt", "algo", "env")
DEFAULTS = {"expt": "default", "algo": "mg2l", "env": "mpe-spread"}

RESUMABLE = frozenset([
    "gpu_id", "n_training_threads", "n_iters", "log_interval", "save_interval", "save_model",
    "keep_checkpoints", "main_save_path", "log_wandb", "log_tensorboard",
    "eval_interval", "eval_episodes", "eval_shots",
])  # fmt: skip
"""Keys that may change when a run is resumed: none of them changes what it has done so far."""

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
    "load_buffer_path": "a checkpoint holds the context replay, and --resume goes on with it",
}
"""Keys of the original code that have no meaning any more, and what there is instead."""

ALIASES: dict[str, tuple[str, dict[Any, Any]]] = {
    "use_feature_normalization": (
        "policy.observation_normalization",
        {True: "layer", False: "none"},
    ),
}
"""Older keys: what each is called now, and what its values mean there."""


_INTERPOLATION = re.compile(r"\$\{([\w.]+)\}")
MAX_EXPANDED = 100_000
"""Characters and values of a file at most, once interpolations are in their places."""


def interpolate(mapping: dict[str, Any]) -> dict[str, Any]:
    """Put values in the place of interpolations such as ``${n_agents}``, within one file.

    OmegaConf does it, but of its syntax only the names of other keys are let through: no resolvers,
    which read the environment or call functions.

    Raises:
        ConfigError: a key is missing or leads back to itself, what stands in ``${...}`` is no key,
            or it all becomes too large.
    """
    _expanded(mapping, mapping, {}, ())
    try:
        found = OmegaConf.to_container(OmegaConf.create(mapping), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from None
    return cast("dict[str, Any]", found)


def _expanded(
    value: Any, mapping: dict[str, Any], known: dict[str, int], chain: tuple[str, ...]
) -> int:
    """Size of a value with its interpolations in their places; judges them on the way."""
    if isinstance(value, (dict, list)):
        inner = value.values() if isinstance(value, dict) else value
        size = 1 + sum(_expanded(item, mapping, known, chain) for item in inner)
    elif not isinstance(value, str):
        return 1
    else:
        if "${" in _INTERPOLATION.sub("", value):
            raise ConfigError(f"{value!r}: only the name of a key may stand in ${{...}}")
        size = len(value)
        for name in _INTERPOLATION.findall(value):
            if name in chain:
                raise ConfigError(f"${{{name}}} leads back to itself")
            if name not in known:
                meant: Any = mapping
                for word in name.split("."):
                    meant = meant.get(word) if isinstance(meant, dict) else None
                known[name] = _expanded(meant, mapping, known, (*chain, name))
            size += known[name]
    if size > MAX_EXPANDED:
        raise ConfigError(f"interpolations make more than {MAX_EXPANDED} characters and values")
    return size


def _read(path: Path) -> dict[str, Any]:
    """The values of a file of one's own or one that is shipped."""
    mapping = read_yaml(path)
    try:
        return interpolate(mapping)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def available(kind: str) -> list[str]:
    """Names of the shipped files of a kind (``expt``, ``algo`` or ``env``)."""
    return sorted(path.stem for path in (CONFIGS / kind).glob("*.yaml"))


def find(kind: str, name: str) -> Path:
    """File that ``--<kind>=name`` means: a shipped one by name, or a path to one's own.

    Raises:
        ConfigError: there is no such file.
    """
    if name.endswith((".yaml", ".yml")) or "/" in name:
        if not Path(name).is_file():
            raise ConfigError(f"--{kind}={name}: there is no such file")
        return Path(name)
    known = available(kind)
    if name not in known:
        if kind == "env":
            known = sorted({*known, *registry.names()})
        raise ConfigError(
            f"unknown {kind} {name!r}; choose one of {', '.join(known)}, or give the path of a "
            f"YAML file{nearest(name, known)}"
        )
    return CONFIGS / kind / f"{name}.yaml"


class Schema:
    """Every key of a run whose environment belongs to ``family``."""

    def __init__(self, family: str) -> None:
        try:
            self.env_class = registry.config_class(family)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        self.family = family
        self.groups = {**groups(Config), "env": self.env_class}
        found = [*keys(Config)]
        for group, section in self.groups.items():
            found += keys(section, group)
        self.by_path = {key.path: key for key in found}
        self.by_name = {key.name: key for key in found}

    def find(self, name: str) -> Key:
        """The key that a leaf name or ``group.name`` means.

        Raises:
            ConfigError: there is none; the message names the nearest key, or what became of it.
        """
        group, _, leaf = name.rpartition(".")
        key = self.by_path.get(name) or (None if group else self.by_name.get(name))
        if key is not None:
            return key
        if leaf in RETIRED:
            reason = RETIRED[leaf]
            raise ConfigError(f"key {leaf!r} of the original code has no meaning here: {reason}")
        if leaf == "family":
            raise ConfigError("the env family is chosen by --env, whose file names it")
        if leaf in self.by_name and (group in self.groups or not group):
            right = self.by_name[leaf].path
            raise ConfigError(f"key {leaf!r} does not belong to {group!r}; did you mean {right!r}?")
        others = [
            family for family in registry.names()
            if leaf in {key.name for key in keys(registry.config_class(family))}
        ]  # fmt: skip
        if others:
            listed = ", ".join(others)
            raise ConfigError(f"{leaf!r} is a key of env family {listed}, not of {self.family}")
        near = nearest(name, [*self.by_path]) if group else nearest(name, [*self.by_name])
        raise ConfigError(f"unknown key {name!r}{near or '; --help lists all keys'}")

    def translate(self, name: str, value: Any) -> tuple[str, Any]:
        """Name and value as they are called now, of what may be an older key."""
        group, _, leaf = name.rpartition(".")
        path, meanings = ALIASES.get(leaf, ("", {}))
        if not path or group not in ("", path.rpartition(".")[0]):
            return name, value
        return path, meanings[check_value(leaf, bool, value)]

    def flatten(self, mapping: Mapping[Any, Any], group: str = "") -> dict[str, Any]:
        """Values by ``Key.path``, from leaf names, dotted names or nested groups; all checked.

        Raises:
            ConfigError: unknown key, value that its key refuses, or two values for one key.
        """
        flat: dict[str, Any] = {}

        def put(path: str, value: Any) -> None:
            if flat.setdefault(path, value) != value:
                raise ConfigError(f"{path} is given twice: {flat[path]} and {value}")

        for name, value in mapping.items():
            if not group and name in self.groups:
                if not isinstance(value, Mapping):
                    raise ConfigError(f"{name} is a group of keys, got {value!r}")
                for path, inner in self.flatten(value, name).items():
                    put(path, inner)
                continue
            name, value = self.translate(f"{group}.{name}" if group else str(name), value)
            key = self.find(name)
            put(key.path, key.check(value))
        return flat

    def overrides(self, items: Iterable[str] | Mapping[str, Any]) -> dict[str, Any]:
        """Like ``flatten``, from ``key=value`` texts whose values are YAML, or from a mapping."""
        if isinstance(items, Mapping):
            return self.flatten(items)
        flat: dict[str, Any] = {}
        for item in items:
            name, equals, text = item.partition("=")
            if not equals or not name:
                raise ConfigError(f"expected key=value, got {item!r}{nearest(item, self.by_name)}")
            if name in self.groups:
                raise ConfigError(f"{name} is a group of keys; write {name}.KEY=value")
            try:
                value = parse_yaml(text)
            except ConfigError:
                value = text
            name, value = self.translate(name, value)
            key = self.find(name)
            if key.hint is str and not isinstance(value, str):
                value = text
            value = key.check(value)
            if flat.setdefault(key.path, value) != value:
                raise ConfigError(f"{key.path} is given twice: {flat[key.path]} and {value}")
        return flat

    def build(self, values: Mapping[str, Any]) -> Config:
        """The config with these values (by ``Key.path``) over the defaults.

        Raises:
            ConfigError: values that exclude each other.
        """
        tree: dict[str, dict[str, Any]] = {group: {} for group in ["", *self.groups]}
        for path, value in values.items():
            group, _, name = path.rpartition(".")
            tree[group][name] = value
        try:
            made = {name: section(**tree[name]) for name, section in self.groups.items()}
            return Config(**tree[""], **made)  # type: ignore[arg-type]
        except ValueError as error:
            raise ConfigError(" ".join(str(error).split())) from None


@dataclass(frozen=True)
class Sources:
    """What each file of a choice of expt, algo and env says, checked but not merged."""

    schema: Schema
    values: list[tuple[str, dict[str, Any]]]
    """``(file, values by Key.path)``, the weakest first."""

    def merged(self) -> dict[str, Any]:
        """Values by ``Key.path``; later files win."""
        return {path: value for _, values in self.values for path, value in values.items()}


def _family(mapping: dict[str, Any], path: Path, run: bool = False, trust: bool = True) -> str:
    """Take the family out of an env file, and import the module that registers it.

    Nothing is imported for a family that is known. The ``config.yaml`` of a ``run`` may have come
    from anywhere: what it names is imported where whoever reads it says that he trusts it, and it
    is still what the run was trained with.
    """
    family = mapping.pop("family", None)
    module, recorded = mapping.pop("module", None), mapping.pop("module_sha256", None)
    if module is not None and (not isinstance(module, str) or not module):
        raise ConfigError(f"{path}: module must be a Python file or module, got {module!r}")
    if not isinstance(family, str):
        raise ConfigError(f"{path}: must begin with 'family: NAME'; the families are {_families()}")
    if module is None or registry.knows(family):
        return family
    if module.endswith(".py"):
        module = str(path.parent / module)  # an absolute one stays what it is
    if run and not trust:
        raise ConfigError(
            f"{path}: family {family!r} is registered by {module}; code that a run names is "
            "imported only with --trust"
        )
    if run and recorded is None:
        raise ConfigError(
            f"{path}: has no module_sha256 for {module}, so it is not known what code the run was "
            "trained with"
        )
    try:
        registry.load(module, recorded)
    except ConfigError as error:
        raise ConfigError(f"{path}: module {module} cannot be imported: {error}") from None
    except (Exception, SystemExit) as error:
        told = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{path}: module {module} cannot be imported: {told}") from error
    return family


def names_own_code(path: Path) -> bool:
    """Whether a run's ``config.yaml`` names code that was imported here for a file of one's own.

    A file that is damaged names none.
    """
    try:
        env = read_yaml(path, inside=path.parent).get("env")
    except FileError:
        return False
    if not isinstance(env, dict) or not isinstance(env.get("family"), str):
        return False
    return "module" in env and registry.origin(env["family"]) == env["module"]


def _families() -> str:
    return ", ".join(registry.names())


def _source(kind: str, name: str) -> tuple[Path, dict[str, Any]]:
    """File that ``--<kind>=name`` means and what it says; of a family without a file its defaults.

    Raises:
        ConfigError: there is no such file or family, or it is unreadable.
    """
    if kind == "env" and name not in available(kind) and registry.offers(name):
        return Path(f"--env={name}"), {"family": name}
    path = find(kind, name)
    return path, _read(path)


def read_sources(expt: str, algo: str, env: str) -> Sources:
    """Read the three files of a choice.

    Raises:
        ConfigError: a file is missing or unreadable, or says something that cannot be.
    """
    found = [_source("env", env), _source("algo", algo), _source("expt", expt)]
    values = []
    try:
        path, mapping = found[0]
        schema = Schema(_family(mapping, path))
        for path, mapping in found:
            values.append((str(path), schema.flatten(mapping)))
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
        algo: shipped algorithm, or path of a YAML file; wins over ``env``.
        env: shipped environment, family of an installed package, or path of a YAML file that begins
            with ``family: NAME``; with ``module: FILE.py`` (beside it) or ``module: NAME``, that is
            imported first.
        overrides: ``["clip_param=0.3", ...]`` or ``{"clip_param": 0.3, ...}``; win over all.

    Raises:
        ConfigError: a name, key or value that cannot be, or values that exclude each other.
    """
    sources = read_sources(expt, algo, env)
    values = sources.merged()
    given = sources.schema.overrides(overrides)
    name = given.get("algo_name")
    if name is not None and name != values.get("algo_name", name):
        raise ConfigError(
            f"algo_name={name} conflicts with --algo={algo}, which says "
            f"algo_name={values['algo_name']}; choose the algorithm by --algo"
        )
    return sources.schema.build({**values, **given})


def family_of(config: EnvConfig) -> str:
    """Name of the family that an env config belongs to.

    Raises:
        ConfigError: to none.
    """
    for name in registry.names():
        if type(config) is registry.config_class(name):
            return name
    name = type(config).__name__
    raise ConfigError(f"{name} is the config of no env; choose one of {_families()}")


def flat(config: Config) -> dict[str, Any]:
    """Every value by its ``group.name`` path, the env's family among them as ``env.family``."""
    found: dict[str, Any] = {"env.family": family_of(config.env)}
    for name, value in asdict(config).items():
        if isinstance(value, dict):
            found.update({f"{name}.{leaf}": inner for leaf, inner in value.items()})
        else:
            found[name] = value
    return found


def about(config: Config) -> dict[str, Any]:
    """What a run is: every value that must be the same where its checkpoints are loaded."""
    return {path: value for path, value in flat(config).items() if path not in RESUMABLE}


def config_to_yaml(config: Config) -> str:
    """The whole config as YAML that ``config_from_yaml`` reads back to an equal one."""
    tree = asdict(config)
    family = family_of(config.env)
    module = registry.origin(family)
    named = {"family": family}
    if module is not None:
        named |= {"module": module, "module_sha256": str(registry.digest(family))}
    tree["env"] = {**named, **tree["env"]}
    groups_last = sorted(tree, key=lambda name: isinstance(tree[name], dict))
    ordered = {name: tree[name] for name in groups_last}
    return yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True)


def config_from_yaml(path: Path | str, trust: bool = False) -> Config:
    """Read what ``config_to_yaml`` wrote into a file.

    Args:
        path: of the file, which may come from anywhere.
        trust: import the code that it names, if that is what it was trained with.

    Raises:
        ConfigError: the file is missing or unreadable, says something that cannot be, or names
            code that is not imported.
    """
    path = Path(path)
    mapping = read_yaml(path, inside=path.parent)
    env = mapping.get("env")
    if not isinstance(env, dict):
        raise ConfigError(f"{path}: has no group 'env', so it is not the resolved config of a run")
    try:
        schema = Schema(_family(env, path, run=True, trust=trust))
        return schema.build(schema.flatten(mapping))
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith(str(path)) else f"{path}: {text}") from None


def with_values(config: Config, overrides: Iterable[str] | Mapping[str, Any]) -> Config:
    """A copy of ``config`` with overrides.

    Raises:
        ConfigError: a key or value that cannot be.
    """
    values = flat(config)
    schema = Schema(values.pop("env.family"))
    return schema.build({**values, **schema.overrides(overrides)})
