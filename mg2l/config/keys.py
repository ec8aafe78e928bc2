"""Every key of a run: names, checks, merging and interpolation.

Values are merged by OmegaConf, the last one wins. ``${n_landmarks}`` stands for the value that
another key has after merging.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mg2l.config import older
from mg2l.config.algorithms import algorithms
from mg2l.config.sections import Config
from mg2l.core.files import parse_yaml
from mg2l.core.schema import ConfigError, Key, check_value, groups, keys, nearest
from mg2l.envs.registry import families

_INTERPOLATION = re.compile(r"\$\{([\w.]+)\}")
MAX_EXPANDED = 100_000
"""Largest length of a value after interpolation."""


def one_budget(values: dict[str, Any]) -> dict[str, Any]:
    """Values of one source; an ``n_iters`` in it replaces ``n_env_steps`` of weaker ones.

    Raises:
        ConfigError: it has both.
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


def dotted(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Values of a nested mapping by dotted path."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= dotted(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _check_expansion(
    path: str, values: Mapping[str, Any], known: dict[str, int], chain: tuple[str, ...] = ()
) -> int:
    """Length of a value after interpolation; also validates it.

    Raises:
        ConfigError: it refers to itself, or becomes too large.
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
        family: family of its environment.
        algorithm: its ``algo_name``.

    Raises:
        ValueError: there is no such family or algorithm, or two of their keys have one name.
    """

    def __init__(self, family: str, algorithm: str = "mg2l") -> None:
        self.family, self.algorithm = family, algorithm
        algo_class = algorithms.get(algorithm).config_class
        own = {"env": families.get(family).config_class, "algo": algo_class}
        self.groups = {**groups(Config), **own}
        every = [*keys(Config)]
        for group, section in self.groups.items():
            every += keys(section, group)
        self.by_path = {key.path: key for key in every}
        self.by_name: dict[str, Key] = {}
        for key in every:
            if (other := self.by_name.setdefault(key.name, key)) is not key:
                raise ConfigError(
                    f"env family {family!r} and algorithm {algorithm!r} cannot be combined: "
                    f"{other.path} and {key.path} have one name"
                )

    def find(self, name: str) -> Key:
        """The key that a leaf name or ``group.name`` refers to.

        Raises:
            ConfigError: there is none; the message names the nearest key, or its replacement.
        """
        group, _, leaf = name.rpartition(".")
        key = self.by_path.get(name) or (None if group else self.by_name.get(name))
        if key is not None:
            return key
        if leaf in older.RETIRED:
            reason = older.RETIRED[leaf]
            raise ConfigError(f"key {leaf!r} of the original code has no meaning here: {reason}")
        if leaf == "family":
            raise ConfigError("the env family is chosen by --env, whose file names it")
        if leaf in self.by_name and (group in self.groups or not group):
            right = self.by_name[leaf].path
            raise ConfigError(f"key {leaf!r} does not belong to {group!r}; did you mean {right!r}?")
        owners = [
            family for family in families.names()
            if leaf in {key.name for key in keys(families.get(family).config_class)}
        ]  # fmt: skip
        if owners:
            listed = ", ".join(owners)
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
            name: algorithms.get(name).config_class for name in algorithms.names()
        }
        return [name for name, section in own.items() if leaf in _own_keys(section)]

    def unused(self, name: str, foreign: bool = False) -> Key | None:
        """The key of other algorithms that ``name`` refers to, where this one does not have it.

        Keys that several of them inherit, such as ``update_contexts``, may be given to all. A key
        of a single one is a mistake elsewhere, except where ``foreign`` keys are allowed.
        """
        group, _, leaf = name.rpartition(".")
        if leaf in self.by_name or group not in ("", "algo"):
            return None
        for owner in self._algorithms_with(leaf):
            section: Any = algorithms.get(owner).config_class
            key = _own_keys(section)[leaf]
            if foreign or leaf not in vars(section).get("__annotations__", {}):
                return key
        return None

    def translate(self, name: str, value: Any) -> tuple[str, Any]:
        """Current name and value of a key that may be an older one."""
        now, meanings = older.current(name)
        if meanings is None:
            return now, value
        return now, meanings[check_value(name.rpartition(".")[2], bool, value)]

    def flatten(
        self, mapping: Mapping[Any, Any], foreign: bool = False, group: str = ""
    ) -> dict[str, Any]:
        """Values by ``Key.path``, from leaf names, dotted names or nested groups; all checked.

        Interpolations stay, with the names of ``Key.path``.

        Args:
            mapping: content of a file.
            foreign: pass over the keys of other algorithms, as in files of older runs.
            group: group that the mapping belongs to.

        Raises:
            ConfigError: unknown key, value that its key refuses, or two values for one key.
        """
        flat: dict[str, Any] = {}

        def put(path: str, value: Any) -> None:
            if flat.setdefault(path, value) != value:
                raise ConfigError(f"{path} is given twice: {flat[path]} and {value}")

        for name, value in mapping.items():
            if not group and name in (*self.groups, *older.GROUP_ALIASES):
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
        """An interpolation with the full paths of its keys; None for any other value.

        Only names of other keys are allowed of OmegaConf's syntax: no resolvers, which read the
        environment or call functions.
        """
        if not isinstance(value, str) or "${" not in value:
            return None
        if "${" in _INTERPOLATION.sub("", value):
            raise ConfigError(f"{path}={value!r}: only the name of a key may stand in ${{...}}")
        return _INTERPOLATION.sub(
            lambda match: f"${{{self.find(older.current(match[1])[0]).path}}}", value
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
            if name in (*self.groups, *older.GROUP_ALIASES):
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
            values: sources and their values by ``Key.path``.

        Raises:
            ConfigError: an interpolation refers to itself, grows too large, or gives a value
                that its key refuses; names the file.
        """
        defaults = {path: key.default for path, key in self.by_path.items()}
        layers = [("the defaults", defaults), *values]
        origin = {path: where for where, flat in layers for path in flat}
        merged = OmegaConf.merge(*(_tree(flat) for _, flat in layers))
        found = dotted(OmegaConf.to_container(merged))
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
