"""How a factory is sent to worker processes: by value, with all that it uses."""

from __future__ import annotations

import dis
import io
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

import cloudpickle

from mg2l.core.schema import ConfigError

_GLOBAL = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}


def dumps(value: Any) -> bytes:
    """Pickle a value, with functions and classes that workers must not or cannot import by value.

    Raises:
        ConfigError: it cannot be pickled.
    """
    _pickle_by_value(value)
    buffer = io.BytesIO()
    try:
        _Pickler(buffer).dump(value)
    except Exception as error:
        name = getattr(value, "__qualname__", type(value).__name__)
        raise ConfigError(
            f"{name} cannot be sent to worker processes: {type(error).__name__}: {error}"
        ) from error
    return buffer.getvalue()


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # untyped
    """Sends functions with the names that bodies of classes in them use.

    cloudpickle looks for instructions that load a global; the body of a class has others.
    """

    def reducer_override(self, obj: Any) -> Any:
        """See ``pickle.Pickler``."""
        reduced = super().reducer_override(obj)
        if isinstance(obj, FunctionType) and isinstance(reduced, tuple) and len(reduced) > 2:
            slots = reduced[2][1]
            codes = list(_nested(obj.__code__))
            names = {name for code in codes for name in _loaded(code)}
            slots["__globals__"].update(
                {name: obj.__globals__[name] for name in names if name in obj.__globals__}
            )
            cells = [cell.cell_contents for cell in obj.__closure__ or () if _filled(cell)]
            attributes = {name for code in codes for name in code.co_names}
            slots["_cloudpickle_submodules"] = [
                module
                for package in (*slots["__globals__"].values(), *cells)
                if isinstance(package, ModuleType)
                for module in _submodules(package, attributes)
            ]
        return reduced


def _nested(code: CodeType) -> Iterator[CodeType]:
    """A code object and those of the functions and classes in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _loaded(code: CodeType) -> Iterator[str]:
    return (step.argval for step in dis.get_instructions(code) if step.opname in _GLOBAL)


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _submodules(package: ModuleType, attributes: set[str]) -> Iterator[ModuleType]:
    """Modules of a package that are imported, and that code with these attributes may use."""
    prefix = f"{package.__name__}."
    for name, module in list(sys.modules.items()):
        if name.startswith(prefix) and attributes.issuperset(name[len(prefix) :].split(".")):
            yield module


def _pickle_by_value(value: Any) -> None:
    """Send a function with what it uses of its module, where workers must not import that.

    What was loaded from a file by its path has no name there, and a module that registers families
    would import mg2l, and torch with it.
    """
    module = sys.modules.get(getattr(value, "__module__", None) or "")
    if not callable(value) or module is None:
        return
    owners = {
        getattr(v, "__module__", None) or getattr(v, "__name__", "") for v in vars(module).values()
    }
    imports_us = any(str(owner).partition(".")[0] == "mg2l" for owner in owners)
    if imports_us or module.__name__.startswith("mg2l_plugin_"):
        cloudpickle.register_pickle_by_value(module)
