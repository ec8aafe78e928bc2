"""Values chosen by name: built in, registered by a user's code, or of an installed package."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import EntryPoint
from typing import Generic, TypeVar

from mg2l.core import plugins
from mg2l.core.schema import ConfigError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """Values by name.

    Args:
        kind: name of such a value, for messages.
        group: entry points ``name = "package.module"``; importing the module registers the name.
        builtin: imports the modules of this package that register; called before every look-up.
    """

    def __init__(self, kind: str, group: str, builtin: Callable[[], None] = lambda: None) -> None:
        self.kind, self.group = kind, group
        self._builtin = builtin
        self._values: dict[str, T] = {}
        self._origins: dict[str, tuple[str, str]] = {}

    def add(self, name: str, value: T) -> None:
        """Register a value; registering a name again requires the same value.

        Raises:
            ValueError: the name has another value.
        """
        if self._values.setdefault(name, value) != value:
            raise ValueError(
                f"{self.kind} {name!r} is registered already, as {self._values[name]!r}"
            )
        if (origin := plugins.origin()) is not None:
            self._origins[name] = origin

    def registered(self) -> dict[str, T]:
        """Values that have been registered so far; imports nothing."""
        return dict(self._values)

    def knows(self, name: str) -> bool:
        """Whether a name is registered, or of an installed package; imports none."""
        self._builtin()
        return name in self._values or name in self._entries()

    def names(self) -> list[str]:
        """All names; those of packages whose import fails are left out."""
        self._builtin()
        for name in self._entries():
            with suppress(ConfigError):  # raised when the name is asked for
                self._import(name)
        return sorted(self._values)

    def get(self, name: str) -> T:
        """The value of a name.

        Raises:
            ConfigError: there is none, and the message names the nearest; or the package that
                should register it fails to.
        """
        self._builtin()
        self._import(name)
        if name not in self._values:
            known = self.names()
            raise ConfigError(
                f"unknown {self.kind} {name!r}; choose one of {', '.join(known)}"
                f"{nearest(name, known)}"
            )
        return self._values[name]

    def origin(self, name: str) -> tuple[str, str] | None:
        """Origin of a name that `mg2l.core.plugins.import_source` imported, if any.

        Returns:
            The absolute path of a file or the name of a module, and the SHA-256 of its source.
        """
        return self._origins.get(name)

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Undo registrations of a block at its end; for tests and notebooks."""
        self._builtin()
        values, origins = dict(self._values), dict(self._origins)
        try:
            yield
        finally:
            self._values, self._origins = values, origins

    def _entries(self) -> dict[str, EntryPoint]:
        return plugins.entries(self.group)

    def _import(self, name: str) -> None:
        """Import the installed package that registers a name, if there is one.

        Raises:
            ConfigError: its import fails, or does not register the name.
        """
        entry = None if name in self._values else self._entries().get(name)
        if entry is None:
            return
        named = plugins.import_entry(f"{self.kind} {name!r}", entry)
        if name not in self._values:
            raise ConfigError(f"{named} is not registered by {entry.module}, which should do so")
