"""From YAML files and overrides to a ``Config``, and back.

Values are merged by OmegaConf in the order schema defaults, env file, algo file, expt file,
overrides; the last one wins. Every value is validated where it is written, so that a message can
name the file. ``${n_landmarks}`` stands for the value that another key has in the end.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mg2l.config import algorithms
from mg2l.config.sections import Config
from mg2l.core.files import FileError, parse_yaml, read_yaml
from mg2l.core.schema import ConfigError, Key, check_value, groups, keys, nearest
from mg2l.envs import EnvConfig, registry

CONFIGS = Path(__file__).parents[1] / "configs"
KINDS = ("expt", "algo", "env")
DEFAULTS = {"expt": "default", "algo": "mg2l", "env": "mpe-spread"}

RESUMABLE = frozenset([
    "gpu_id", "n_training_threads", "n_iters", "n_env_steps", "log_interval", "save_interval",
    "save_model", "keep_checkpoints", "main_save_path", "log_wandb", "log_tensorboard",
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

ALIASES: dict[str, tuple[str, dict[Any, Any] | None]] = {
    "use_feature_normalization": (
        "policy.observation_normalization",
        {True: "layer", False: "none"},
    ),
    "told_actors": ("algo.actor_latent", None),
    "told_critics": ("algo.critic_latent", None),
    "encoder.obs": ("policy.obs", None),
}
"""Older keys, by their leaf name or path: what each is called now, and what its values mean there;
None where they mean the same."""

GROUP_ALIASES = {"encoder": "algo", "belief": "algo"}
"""Older groups: what each is called now."""

_INTERPOLATION = re.compile(r"\$\{([\w.]+)\}")
MAX_EXPANDED = 100_000
"""Characters of a value at most, once interpolations are in their places."""


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
        if kind != "expt":
            registered = registry.names() if kind == "env" else algorithms.names()
            known = sorted({*known, *registered})
        raise ConfigError(
            f"unknown {kind} {name!r}; choose one of {', '.join(known)}, or give the path of a "
            f"YAML file{nearest(name, known)}"
        )
    return CONFIGS / kind / f"{name}.yaml"


def one_budget(values: dict[str, Any]) -> dict[str, Any]:
    """Values of one source; an ``n_iters`` in it replaces ``n_env_steps`` of weaker ones.

    Raises:
        ConfigError: it says both.
    """
    if "n_iters" in values and values.setdefault("n_env_steps", 0):
        raise ConfigError(
            f"n_iters={values['n_iters']} and n_env_steps={values['n_env_steps']} are both "
            "budgets of the run; give one of them"
        )
    return values


@functools.cache
def _own_keys(section: type[Any]) -> dict[str, Key]:
    """An algorithm's keys, by their names."""
    return {key.name: key for key in keys(section, "algo")}


def _tree(flat: Mapping[str, Any]) -> Any:
    """Values by ``Key.path`` as an OmegaConf tree."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        group, _, name = path.rpartition(".")
        (tree.setdefault(group, {}) if group else tree)[name] = value
    return OmegaConf.create(tree)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Values of a nested mapping by dotted path."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _check_expansion(
    path: str, values: Mapping[str, Any], known: dict[str, int], chain: tuple[str, ...] = ()
) -> int:
    """Characters of a value once interpolations are in their places; validated on the way.

    Raises:
        ConfigError: it leads back to itself, or becomes too large.
    """
    if path in chain:
        raise ConfigError(f"${{{path}}} leads back to itself")
    if path not in known:
        text = str(values[path])
        names = _INTERPOLATION.findall(text)
        for name in set(names):
            _check_expansion(name, values, known, (*chain, path))
        known[path] = len(text) + sum(known[name] for name in names)
    if known[path] > MAX_EXPANDED:
        raise ConfigError(f"interpolations make more than {MAX_EXPANDED} characters")
    return known[path]


class Schema:
    """Every key of a run.

    Args:
        family: of its environment.
        algorithm: its ``algo_name``.

    Raises:
        ValueError: there is no such family or algorithm, or two of their keys have one name.
    """

    def __init__(self, family: str, algorithm: str = "mg2l") -> None:
        self.family, self.algorithm = family, algorithm
        algo_class = algorithms.load(algorithm).config_class
        own = {"env": registry.config_class(family), "algo": algo_class}
        self.groups = {**groups(Config), **own}
        found = [*keys(Config)]
        for group, section in self.groups.items():
            found += keys(section, group)
        self.by_path = {key.path: key for key in found}
        self.by_name: dict[str, Key] = {}
        for key in found:
            if (other := self.by_name.setdefault(key.name, key)) is not key:
                raise ConfigError(
                    f"env family {family!r} and algorithm {algorithm!r} cannot be combined: "
                    f"{other.path} and {key.path} have one name"
                )

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
        families = [
            family for family in registry.names()
            if leaf in {key.name for key in keys(registry.config_class(family))}
        ]  # fmt: skip
        if families:
            listed = ", ".join(families)
            raise ConfigError(f"{leaf!r} is a key of env family {listed}, not of {self.family}")
        if owners := self._algorithms_with(leaf):
            listed = ", ".join(owners)
            raise ConfigError(f"{leaf!r} is a key of algorithm {listed}, not of {self.algorithm}")
        near = nearest(name, [*self.by_path]) if group else nearest(name, [*self.by_name])
        raise ConfigError(f"unknown key {name!r}{near or '; --help lists all keys'}")

    @staticmethod
    def _algorithms_with(leaf: str) -> list[str]:
        """Algorithms that have a key of this name."""
        own: dict[str, Any] = {
            name: algorithms.load(name).config_class for name in algorithms.names()
        }
        return [name for name, section in own.items() if leaf in _own_keys(section)]

    def unused(self, name: str, foreign: bool = False) -> Key | None:
        """The key of other algorithms that ``name`` means, where this one does without it.

        What several of them inherit, such as ``update_contexts``, may be given to all of them. What
        one of them alone has is a mistake elsewhere, except where ``foreign`` keys are allowed.
        """
        group, _, leaf = name.rpartition(".")
        if leaf in self.by_name or group not in ("", "algo"):
            return None
        for owner in self._algorithms_with(leaf):
            section: Any = algorithms.load(owner).config_class
            key = _own_keys(section)[leaf]
            if foreign or leaf not in vars(section).get("__annotations__", {}):
                return key
        return None

    @staticmethod
    def current(name: str) -> tuple[str, dict[Any, Any] | None]:
        """What an older name of a key is now, and what its values mean there."""
        group, _, leaf = name.rpartition(".")
        path, meanings = ALIASES.get(name) or ALIASES.get(leaf, ("", None))
        if path and (name in ALIASES or group in ("", path.rpartition(".")[0], *GROUP_ALIASES)):
            return path, meanings
        group = GROUP_ALIASES.get(group, group)
        return (f"{group}.{leaf}" if group else leaf), None

    def translate(self, name: str, value: Any) -> tuple[str, Any]:
        """Name and value as they are called now, of what may be an older key."""
        now, meanings = self.current(name)
        if meanings is None:
            return now, value
        return now, meanings[check_value(name.rpartition(".")[2], bool, value)]

    def flatten(
        self, mapping: Mapping[Any, Any], foreign: bool = False, group: str = ""
    ) -> dict[str, Any]:
        """Values by ``Key.path``, from leaf names, dotted names or nested groups; all checked.

        An interpolation stays one, its names being those of ``Key.path``.

        Args:
            mapping: what a file says.
            foreign: pass over the keys of other algorithms, as in files of older runs.
            group: that the mapping is of.

        Raises:
            ConfigError: unknown key, value that its key refuses, or two values for one key.
        """
        flat: dict[str, Any] = {}

        def put(path: str, value: Any) -> None:
            if flat.setdefault(path, value) != value:
                raise ConfigError(f"{path} is given twice: {flat[path]} and {value}")

        for name, value in mapping.items():
            if not group and name in (*self.groups, *GROUP_ALIASES):
                if not isinstance(value, Mapping):
                    raise ConfigError(f"{name} is a group of keys, got {value!r}")
                for path, inner in self.flatten(value, foreign, name).items():
                    put(path, inner)
                continue
            name, value = self.translate(f"{group}.{name}" if group else str(name), value)
            if (other := self.unused(name, foreign)) is not None:
                if not isinstance(value, str):
                    other.check(value)
                continue
            key = self.find(name)
            put(key.path, self._interpolated(key.path, value) or key.check(value))
        return flat

    def _interpolated(self, path: str, value: Any) -> str | None:
        """A text that interpolates, with the paths of the keys in it; None of any other value.

        Of OmegaConf's syntax only the names of other keys are let through: no resolvers, which read
        the environment or call functions.
        """
        if not isinstance(value, str) or "${" not in value:
            return None
        if "${" in _INTERPOLATION.sub("", value):
            raise ConfigError(f"{path}={value!r}: only the name of a key may stand in ${{...}}")
        return _INTERPOLATION.sub(
            lambda match: f"${{{self.find(self.current(match[1])[0]).path}}}", value
        )

    def overrides(self, items: Iterable[str] | Mapping[str, Any]) -> dict[str, Any]:
        """Like ``flatten``, from ``key=value`` texts whose values are YAML, or from a mapping."""
        if isinstance(items, Mapping):
            return one_budget(self.flatten(items))
        flat: dict[str, Any] = {}
        for item in items:
            name, equals, text = item.partition("=")
            if not equals or not name:
                raise ConfigError(f"expected key=value, got {item!r}{nearest(item, self.by_name)}")
            if name in (*self.groups, *GROUP_ALIASES):
                raise ConfigError(f"{name} is a group of keys; write {name}.KEY=value")
            try:
                value = parse_yaml(text)
            except ConfigError:
                value = text
            name, value = self.translate(name, value)
            if (other := self.unused(name)) is not None:
                other.check(value)
                continue
            key = self.find(name)
            if key.hint is str and not isinstance(value, str):
                value = text
            value = key.check(value)
            if flat.setdefault(key.path, value) != value:
                raise ConfigError(f"{key.path} is given twice: {flat[key.path]} and {value}")
        return one_budget(flat)

    def merge(self, values: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
        """Values by ``Key.path`` over the defaults, the last ones winning, and interpolated.

        Args:
            values: where each comes from, and what is said there by ``Key.path``.

        Raises:
            ConfigError: an interpolation leads back to itself, grows too large, or makes a value
                that its key refuses; names the file.
        """
        defaults = {path: key.default for path, key in self.by_path.items()}
        layers = [("the defaults", defaults), *values]
        origin = {path: where for where, flat in layers for path in flat}
        merged = OmegaConf.merge(*(_tree(flat) for _, flat in layers))
        found = _flat(OmegaConf.to_container(merged))
        known: dict[str, int] = {}
        for path, value in found.items():
            if not isinstance(value, str) or "${" not in value:
                continue
            try:
                _check_expansion(path, found, known)
                found[path] = self.by_path[path].check(OmegaConf.select(merged, path))
            except (ConfigError, OmegaConfBaseException) as error:
                raise ConfigError(f"{origin[path]}: {str(error).splitlines()[0]}") from None
        return found

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

    def merged(self, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Values by ``Key.path``; later files win, and what is ``given`` wins over all."""
        return self.schema.merge([*self.values, ("the command line", given or {})])


def _named_code(mapping: dict[str, Any], path: Path) -> tuple[str | None, str | None]:
    """Take out of a mapping which module it names, and the hash that is recorded for it."""
    module, recorded = mapping.pop("module", None), mapping.pop("module_sha256", None)
    if module is not None and (not isinstance(module, str) or not module):
        raise ConfigError(f"{path}: module must be a Python file or module, got {module!r}")
    if module is not None and module.endswith(".py"):
        module = str(path.parent / module)  # an absolute one stays what it is
    return module, recorded


def _import_code(
    what: str,
    code: tuple[str | None, str | None],
    load: Callable[[str, str | None], None],
    path: Path,
    run: bool,
    trust: bool,
) -> None:
    """Import the module that registers a family or an algorithm which is not known yet.

    The ``config.yaml`` of a ``run`` may have come from anywhere: what it names is imported where
    the reader trusts it, and it is still what the run was trained with.
    """
    module, recorded = code
    if module is None:
        return
    if run and not trust:
        raise ConfigError(
            f"{path}: {what} is registered by {module}; code that a run names is imported only "
            "with --trust"
        )
    if run and recorded is None:
        raise ConfigError(
            f"{path}: has no module_sha256 for {module}, so it is not known what code the run was "
            "trained with"
        )
    try:
        load(module, recorded)
    except ConfigError as error:
        raise ConfigError(f"{path}: module {module} cannot be imported: {error}") from None
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{path}: module {module} cannot be imported: {reason}") from error


def _family(mapping: dict[str, Any], path: Path, run: bool = False, trust: bool = True) -> str:
    """Take the family out of an env file, and import the module that registers it.

    Nothing is imported for a family that is known.
    """
    family = mapping.pop("family", None)
    code = _named_code(mapping, path)
    if not isinstance(family, str):
        raise ConfigError(f"{path}: must begin with 'family: NAME'; the families are {_families()}")
    if not registry.knows(family):
        _import_code(f"family {family!r}", code, registry.load, path, run, trust)
    try:
        registry.config_class(family)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    return family


def _algorithm(
    name: Any, mapping: dict[str, Any], path: Path, run: bool = False, trust: bool = True
) -> str:
    """The algorithm that ``algo_name`` says, once the module is imported that registers it.

    Args:
        name: what ``algo_name`` says.
        mapping: may name the module, which is taken out.
        path: of the file, which messages name.
        run: whether it is the ``config.yaml`` of a run.
        trust: whether code that a run names is imported.
    """
    code = _named_code(mapping, path)
    if not isinstance(name, str):
        raise ConfigError(f"{path}: algo_name must be a text, got {name!r}")
    if not algorithms.knows(name):
        _import_code(f"algorithm {name!r}", code, algorithms.load_module, path, run, trust)
    try:
        algorithms.load(name)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return name


def names_own_code(path: Path) -> bool:
    """Whether all code that a run's ``config.yaml`` names was imported here for files of one's own.

    A file that is damaged names none.
    """
    try:
        mapping = read_yaml(path, inside=path.parent)
    except FileError:
        return False
    env, algo = mapping.get("env"), mapping.get("algo")
    named = []
    if isinstance(env, dict) and "module" in env:
        named.append((registry.origin(str(env.get("family"))), env["module"]))
    if isinstance(algo, dict) and "module" in algo:
        named.append((algorithms.origin(str(mapping.get("algo_name"))), algo["module"]))
    return bool(named) and all(code and code[0] == module for code, module in named)


def _families() -> str:
    return ", ".join(registry.names())


def _source(kind: str, name: str) -> tuple[Path, dict[str, Any]]:
    """File that ``--<kind>=name`` means and what it says; without a file, a family's defaults.

    Raises:
        ConfigError: there is no such file, family or algorithm, or it is unreadable.
    """
    if name not in available(kind):
        if kind == "env" and registry.offers(name):
            return Path(f"--env={name}"), {"family": name}
        if kind == "algo" and algorithms.knows(name):
            return Path(f"--algo={name}"), {"algo_name": name}
    path = find(kind, name)
    return path, read_yaml(path)


def read_sources(expt: str, algo: str, env: str) -> Sources:
    """Read the three files of a choice.

    Raises:
        ConfigError: a file is missing or unreadable, or says something that cannot be.
    """
    found = [_source("env", env), _source("algo", algo), _source("expt", expt)]
    values = []
    path, mapping = found[0]
    try:
        family = _family(mapping, path)
        (path, mapping), (_, experiment) = found[1:]
        name = experiment.get("algo_name", mapping.get("algo_name", DEFAULTS["algo"]))
        schema = Schema(family, _algorithm(name, mapping, path))
        for index, (path, mapping) in enumerate(found):
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
        ConfigError: a name, key or value that cannot be, or values that exclude each other.
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
    return {"env.family": family_of(config.env), **_flat(asdict(config))}


def about(config: Config) -> dict[str, Any]:
    """What a run is: every value that must be the same where its checkpoints are loaded."""
    return {path: value for path, value in flat(config).items() if path not in RESUMABLE}


def upgrade(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the values of an older run, by their paths then, are by the paths of today.

    Left out are keys of other algorithms, which were written down for every run. Nothing changes
    where the family or the algorithm is not known here.
    """
    family, name = values.get("env.family"), str(values.get("algo_name"))
    if not isinstance(family, str) or not registry.knows(family) or not algorithms.knows(name):
        return dict(values)
    schema, found = Schema(family, name), {}
    for path, value in values.items():
        now, value = schema.translate(path, value)
        if schema.unused(now, foreign=True) is None:
            found[now] = value
    return found


def config_to_yaml(config: Config) -> str:
    """The whole config as YAML that ``config_from_yaml`` reads back to an equal one."""
    tree = asdict(config)
    family = family_of(config.env)
    tree["env"] = {"family": family, **_origin(registry.origin(family)), **tree["env"]}
    tree["algo"] = {**_origin(algorithms.origin(config.algo_name)), **tree["algo"]}
    groups_last = sorted(tree, key=lambda name: isinstance(tree[name], dict))
    return OmegaConf.to_yaml(OmegaConf.create({name: tree[name] for name in groups_last}))


def _origin(code: tuple[str, str] | None) -> dict[str, str]:
    return {} if code is None else {"module": code[0], "module_sha256": code[1]}


def config_from_yaml(path: Path | str, trust: bool = False) -> Config:
    """Read what ``config_to_yaml`` wrote into a file, now or in an older version.

    Args:
        path: of the file, which may come from anywhere.
        trust: import the code that it names, if that is what it was trained with.

    Raises:
        ConfigError: the file is missing or unreadable, says something that cannot be, or names
            code that is not imported.
    """
    path = Path(path)
    mapping = read_yaml(path, inside=path.parent)
    env, algo = mapping.get("env"), mapping.get("algo", {})
    if not isinstance(env, dict) or not isinstance(algo, dict):
        raise ConfigError(f"{path}: has no group 'env', so it is not the resolved config of a run")
    try:
        family = _family(env, path, run=True, trust=trust)
        name = mapping.get("algo_name", DEFAULTS["algo"])
        schema = Schema(family, _algorithm(name, algo, path, run=True, trust=trust))
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
        ConfigError: a key or value that cannot be.
    """
    values = flat(config)
    schema = Schema(values.pop("env.family"), config.algo_name)
    return schema.build({**values, **schema.overrides(overrides)})
