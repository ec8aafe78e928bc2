"""Code from outside the package that registers something: files, modules, installed packages."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from mg2l.core.files import read_bytes
from mg2l.core.schema import ConfigError

PREFIX = "mg2l_plugin_"
"""Prefix of the names of modules from files; the hash of the path follows."""

_importing: list[tuple[str, str]] = []


def origin() -> tuple[str, str] | None:
    """Origin of the module that `import_source` is importing, if any.

    Returns:
        The absolute path of a file or the name of a module, and the SHA-256 of its source.
    """
    return _importing[-1] if _importing else None


def source(module: str) -> tuple[str, bytes]:
    """Path and content of a module's source. Imports nothing.

    Args:
        module: the path of a Python file, or the dotted name of a module.

    Raises:
        ModuleNotFoundError: there is no such module, or it has no source.
        FileError: it cannot be read.
    """
    path = str(Path(module).resolve())
    if not module.endswith(".py"):
        parent, name, spec = None, "", None
        for word in module.split("."):
            name = f"{name}.{word}".removeprefix(".")
            specs = (finder.find_spec(name, parent) for finder in sys.meta_path)
            spec = next((spec for spec in specs if spec is not None), None)
            if spec is None:
                raise ModuleNotFoundError(f"No module named {name!r}")
            parent = spec.submodule_search_locations
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            raise ModuleNotFoundError(f"{module} is no module of Python source")
        path = spec.origin
    return path, read_bytes(path)


def import_source(module: str, sha256: str | None = None) -> None:
    """Import a Python file, by its path, or a module, by its name.

    What has been imported before is not imported again. An error in it is raised as it is. What is
    imported, and from where, is printed on stderr.

    Args:
        module: ends in ``.py`` where it is a file.
        sha256: what its source must have; None is any.

    Raises:
        ConfigError: its source has another hash.
    """
    path, code = source(module)
    digest = hashlib.sha256(code).hexdigest()
    if sha256 not in (None, digest):
        raise ConfigError(f"{path} has sha256 {digest}, expected {sha256}")
    print(f"importing {path}, sha256 {digest[:16]}", file=sys.stderr, flush=True)
    _importing.append((path if module.endswith(".py") else module, digest))
    try:
        if module.endswith(".py"):
            _execute(path, code)
        else:
            importlib.import_module(module)
    finally:
        _importing.pop()


def _execute(path: str, code: bytes) -> None:
    """Import the code of a file: the source that was hashed, never a compiled file beside it."""
    name = f"{PREFIX}{hashlib.sha256(path.encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        exec(compile(code, path, "exec"), vars(sys.modules[name]))
    except BaseException:
        del sys.modules[name]
        raise


def entries(group: str) -> dict[str, EntryPoint]:
    """Entry points of installed packages, by name: ``name = "package.module"``."""
    return _entries(group, tuple(sys.path))


@functools.cache
def _entries(group: str, path: tuple[str, ...]) -> dict[str, EntryPoint]:
    """Entry points of the packages on ``path``, which is ``sys.path``."""
    return {entry.name: entry for entry in entry_points(group=group)}


def import_entry(what: str, entry: EntryPoint) -> str:
    """Import the module of an entry point.

    Args:
        what: what the module registers, for messages.
        entry: names the module.

    Returns:
        ``what``, and the package that it comes from.

    Raises:
        ConfigError: the import fails.
    """
    named = f"{what} of the package {entry.dist.name if entry.dist else entry.module}"
    try:
        importlib.import_module(entry.module)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{named} cannot be imported: {type(error).__name__}: {error}") from error
    return named
