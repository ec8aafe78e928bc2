"""Code that configurations name: modules that register families and algorithms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mg2l.config.algorithms import algorithms
from mg2l.core import plugins
from mg2l.core.files import FileError, read_yaml
from mg2l.core.registry import Registry
from mg2l.core.schema import ConfigError
from mg2l.envs.registry import families


def take_family(mapping: dict[str, Any], path: Path, run: bool = False, trust: bool = True) -> str:
    """Take the family out of an env file; see `take_algorithm`.

    Raises:
        ConfigError: it names none, or one that is not registered.
    """
    name = mapping.pop("family", None)
    module = _take_module(mapping, path)
    if not isinstance(name, str):
        known = ", ".join(families.names())
        raise ConfigError(f"{path}: must begin with 'family: NAME'; the families are {known}")
    _require(families, "family", name, module, path, run, trust)
    return name


def take_algorithm(
    name: Any, mapping: dict[str, Any], path: Path, run: bool = False, trust: bool = True
) -> str:
    """The algorithm of a file, once the module that registers it is imported.

    Nothing is imported for a name that is known.

    Args:
        name: value of ``algo_name``.
        mapping: may name the module, which is taken out.
        path: path of the file, for messages.
        run: whether the file is the ``config.yaml`` of a run, which may have come from anywhere.
        trust: import the code that a run names, if it is still what the run was trained with.

    Raises:
        ConfigError: no text, or an algorithm that is not registered.
    """
    module = _take_module(mapping, path)
    if not isinstance(name, str):
        raise ConfigError(f"{path}: algo_name must be a text, got {name!r}")
    _require(algorithms, "algorithm", name, module, path, run, trust)
    return name


def _take_module(mapping: dict[str, Any], path: Path) -> tuple[str | None, str | None]:
    """The module that a file names, and the hash of its source that was recorded."""
    module, recorded = mapping.pop("module", None), mapping.pop("module_sha256", None)
    if module is not None and (not isinstance(module, str) or not module):
        raise ConfigError(f"{path}: module must be a Python file or module, got {module!r}")
    if module is not None and module.endswith(".py"):
        module = str(path.parent / module)  # an absolute one stays what it is
    return module, recorded


def _require(
    registry: Registry[Any],
    kind: str,
    name: str,
    code: tuple[str | None, str | None],
    path: Path,
    run: bool,
    trust: bool,
) -> None:
    """Import the module that registers a name which is not known yet."""
    module, recorded = code
    if module is not None and not registry.knows(name):
        if run and not trust:
            raise ConfigError(
                f"{path}: {kind} {name!r} is registered by {module}; code that a run names is "
                "imported only with --trust"
            )
        if run and recorded is None:
            raise ConfigError(
                f"{path}: has no module_sha256 for {module}, so it is not known what code the run "
                "was trained with"
            )
        failed = f"{path}: module {module} cannot be imported"
        try:
            plugins.import_source(module, recorded)
        except ConfigError as error:
            raise ConfigError(f"{failed}: {error}") from None
        except (Exception, SystemExit) as error:
            raise ConfigError(f"{failed}: {type(error).__name__}: {error}") from error
    try:
        registry.get(name)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


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
        named.append((families.origin(str(env.get("family"))), env["module"]))
    if isinstance(algo, dict) and "module" in algo:
        named.append((algorithms.origin(str(mapping.get("algo_name"))), algo["module"]))
    return bool(named) and all(code and code[0] == module for code, module in named)
