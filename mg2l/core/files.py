"""Safe reading of untrusted files, and atomic writing.

Run folders are shared: what is read from them may be damaged or hostile. Here sizes and depths
are bounded, nothing but regular files is opened, nothing is executed, and every fault is one
`FileError` that says where.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from mg2l.core.errors import RunError
from mg2l.core.schema import ConfigError

MAX_JSON = 2**24
"""Bytes of a JSON file at most."""

MAX_YAML = 2**20
"""Bytes of a YAML file at most."""

MAX_DEPTH = 64
"""Lists and objects inside each other at most."""

MAX_INT_BITS = 128
"""Bits of an integer at most: states of random number generators have as many."""


class FileError(ConfigError):
    """A file that cannot be used; the message is one line that names it and says why."""


class MissingFileError(FileError):
    """A file that is not there."""


class WriteError(RunError, RuntimeError):
    """A file that could not be written; the message is one line that names it and says why."""


def read_bytes(path: Path | str, *, inside: Path | None = None, most: int = MAX_JSON) -> bytes:
    """Read a regular file.

    Args:
        path: path of the file; links are followed.
        inside: folder that the file must lie in once links are resolved.
        most: bytes it may have.

    Raises:
        MissingFileError: it is not there.
        FileError: it is not a regular file, is larger, lies outside, or cannot be read.
    """
    try:
        if inside is not None and not Path(path).resolve().is_relative_to(inside.resolve()):
            raise FileError(f"{path}: is a link that leads out of {inside}")
        # Without O_NONBLOCK, opening a pipe without a writer would block.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                what = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
                raise FileError(f"{path}: cannot be read: is {what}")
            if status.st_size > most:
                raise FileError(f"{path}: must have at most {most} bytes, got {status.st_size}")
            return file.read(status.st_size)
    except FileNotFoundError:
        raise MissingFileError(f"{path}: there is no such file") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: links that lead to each other
        reason = getattr(error, "strerror", None) or str(error)
        raise FileError(f"{path}: cannot be read: {reason}") from None
    except ValueError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{str(path)!r}: cannot be read: {error}") from None


def read_text(path: Path | str, *, inside: Path | None = None, most: int = MAX_JSON) -> str:
    """Read a file of UTF-8. Raises as `read_bytes` does."""
    try:
        return read_bytes(path, inside=inside, most=most).decode("utf-8")
    except UnicodeDecodeError as error:
        reason = f"byte {error.start} is not UTF-8"
        raise FileError(f"{path}: cannot be read: {reason}") from None


def parse_json(text: str | bytes, name: object, surrogates: bool = False) -> Any:
    """A JSON document as Python values; NaN and infinities are taken as Python writes them.

    Args:
        text: the document, UTF-8 where it is bytes.
        name: name of the document, for the message.
        surrogates: allow halves of surrogate pairs, which cannot be written as UTF-8.

    Raises:
        FileError: it is not JSON, is nested too deeply, or holds an unsupported integer or text.
    """
    try:
        value = json.loads(text.decode("utf-8") if isinstance(text, bytes) else text)
        _check_nesting(value, surrogates)
    except RecursionError:
        raise FileError(f"{name}: cannot be read: not valid JSON: nested too deep") from None
    except ValueError as error:
        raise FileError(f"{name}: cannot be read: not valid JSON: {error}") from None
    return value


def read_json(
    path: Path | str, shape: Any = dict, *, inside: Path | None = None, most: int = MAX_JSON
) -> Any:
    """Read a JSON file of a ``shape`` as in `require`. Raises FileError."""
    return require(parse_json(read_text(path, inside=inside, most=most), path), shape, path)


def read_yaml(path: Path | str, *, inside: Path | None = None) -> dict[str, Any]:
    """The ``key: value`` lines of a YAML file, as nested dictionaries. Raises FileError."""
    try:
        value = parse_yaml(read_text(path, inside=inside, most=MAX_YAML))
    except FileError as error:
        text = str(error)
        raise type(error)(text if text.startswith(str(path)) else f"{path}: {text}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise FileError(f"{path}: must hold 'key: value' lines, got {_KINDS[type(value)]}")
    return value


def _check_nesting(value: Any, surrogates: bool = False) -> None:
    """Raise ValueError where a value is nested too deeply or holds unsupported numbers or texts."""
    level, depth = [value], 0
    while level:
        if depth > MAX_DEPTH:
            raise ValueError("nested too deep")
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.keys()
                inner += item.values()
            elif isinstance(item, list):
                inner += item
            elif type(item) is int and item.bit_length() > MAX_INT_BITS:
                raise ValueError(f"an integer has more than {MAX_INT_BITS} bits")
            elif isinstance(item, str) and not (surrogates or item.isascii()):
                item.encode("utf-8")
        level, depth = inner, depth + 1


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain scalars: 5e-4 is a number, and only true and false are booleans.

    Aliases, which a few lines can multiply beyond any memory, and tags are refused.
    """

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            self._refuse(f"aliases such as *{event.anchor} are not allowed", event)
        if getattr(event, "tag", None) is not None:
            self._refuse(f"tags such as {event.tag} are not allowed", event)
        if self.depth > MAX_DEPTH:
            self._refuse("nested too deep", event)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._refuse("a key must be a word, got a list or a mapping", key_node)
            if key_node.value in seen:
                self._refuse(f"key {key_node.value!r} occurs twice", key_node)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    @staticmethod
    def _refuse(problem: str, at: Any) -> None:
        raise yaml.constructor.ConstructorError(None, None, problem, at.start_mark)


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in [
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9_]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+0123456789."),
    ),
]:
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})$"), _first
    )


def parse_yaml(text: str) -> Any:
    """A YAML document as Python values. Raises FileError with one line."""
    try:
        value = yaml.load(text, _Loader)
        _check_nesting(value)
    except (yaml.YAMLError, ValueError) as error:
        problem = getattr(error, "problem", None) or str(error)
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: " if mark else ""
        raise FileError(f"{place}not valid YAML: {' '.join(problem.split())}") from None
    return value


_KINDS = {
    dict: "an object", list: "a list", str: "a text", int: "an integer", float: "a number",
    bool: "true or false", type(None): "null",
}  # fmt: skip


def require(value: Any, shape: Any, name: object, at: str = "") -> Any:
    """Validate the content of a document.

    Args:
        value: content of JSON or YAML.
        shape: a type; ``[shape]`` for a list of such; a tuple of alternatives, None among them; or
            an object: ``{"key": shape, "perhaps?": shape, ...: shape}``, where ``"perhaps"`` may
            be missing and ``...`` stands for all keys that are not named. Keys that the shape
            does not know are allowed. An integer counts as a float, a boolean as neither.
        name: name of the document, for the message.
        at: path of the value in it.

    Returns:
        The value.

    Raises:
        FileError: it has the wrong shape; the message says where.

    >>> require({"names": {"algo": "mg2l"}}, {"names": {...: str}, "resumed?": [dict]}, "a.json")
    {'names': {'algo': 'mg2l'}}
    """
    problem = _misfit(value, shape, at)
    if problem:
        raise FileError(f"{name}: {problem}")
    return value


def _misfit(value: Any, shape: Any, at: str) -> str | None:
    """The message of `require`, or None where a value fits."""
    where, got = at or "the document", f"got {_KINDS.get(type(value), type(value).__name__)}"
    if isinstance(shape, tuple):
        found = [_misfit(value, one, at) for one in shape]
        return None if None in found else found[0]
    if isinstance(shape, Mapping):
        if not isinstance(value, dict):
            return f"{where} must be an object, {got}"
        for key, inner in shape.items():
            if key is ...:
                continue
            name = key.removesuffix("?")
            if name in value:
                problem = _misfit(value[name], inner, f"{at}.{name}" if at else name)
                if problem:
                    return problem
            elif name == key:
                return f"{f'{at}.{name}' if at else name} is missing"
        rest = value.keys() - {str(key).removesuffix("?") for key in shape}
        pairs = [(f"{at}.{key}" if at else str(key), value[key], shape[...])
                 for key in rest if ... in shape]  # fmt: skip
    elif isinstance(shape, list):
        if not isinstance(value, list):
            return f"{where} must be a list, {got}"
        pairs = [(f"{at}[{index}]", item, shape[0]) for index, item in enumerate(value)]
    else:
        kind = type(None) if shape is None else shape
        fits = type(value) is kind or (kind is float and type(value) is int)
        return None if fits else f"{where} must be {_KINDS[kind]}, {got}"
    return next((text for place, item, one in pairs if (text := _misfit(item, one, place))), None)


# Writing.


def write_all(handle: int, data: bytes) -> None:
    """Write everything to a file's descriptor. Raises OSError."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]


@contextlib.contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Name the file where the system refuses to write it.

    Raises:
        WriteError: an `OSError` came, such as of a full disk.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise WriteError(f"{path}: cannot be written: {reason}") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which replaces ``path`` atomically when everything is written.

    A reader sees the old file or the new one, and any failure leaves the old one as it was. A
    link to a file is itself replaced.

    Raises:
        WriteError: it cannot be written, or there is a device, a pipe or a folder in its place.
    """
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        with writing(path):
            # To rename over a device is allowed to root, and takes it from the whole machine.
            if path.exists() and not path.is_file():
                raise OSError("is no regular file")
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.unlink(missing_ok=True)  # of a write that was cut short, or a link
            yield partial
            partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file at once, on the disk before this returns. Raises WriteError."""
    with replacing(path) as partial, partial.open("xb", buffering=0) as file:
        write_all(file.fileno(), data)
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, see `write_text`."""
    write_text(path, json.dumps(value, indent=2) + "\n")
