"""Reading untrusted files, and writing files atomically."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path

import pytest

from mg2l.core import files
from mg2l.core.files import FileError, MissingFileError, WriteError

YAML = {
    "alias": ("a: &x [1]\nb: *x", "line 2: not valid YAML: aliases such as .x are not allowed"),
    "bomb": (
        "a: &a [x]\n"
        + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in itertools.pairwise("abcde")),
        "aliases",
    ),
    "itself": ("a: &a [*a]", "aliases"),
    "list key": ("[a, b]: 1", "line 1: not valid YAML: a key must be a word, got a list"),
    "group key": ("? {a: 1}\n: 2", "a key must be a word"),
    "tag": ("a: !!timestamp x", "tags such as .* are not allowed"),
    "code": ("a: !!python/object/apply:os.system [x]", "tags"),
    "twice": ("a: 1\na: 2", "line 2: .*key 'a' occurs twice"),
    "deep list": ("[" * 5000, "nested too deep"),
    "deep group": ("{a: " * 5000, "nested too deep"),
    "deep items": ("- " * 5000, "nested too deep"),
    "huge": ("a: " + "9" * 5000, "not valid YAML"),
    "large": ("a: " + "9" * 100, "more than 128 bits"),
    "zero byte": ("\0", "not valid YAML"),
    "surrogate": ('a: "\\ud800"', "not valid YAML"),
    "documents": ("--- 1\n--- 2", "not valid YAML"),
    "list": ("- 1", "must hold 'key: value' lines, got a list"),
}


@pytest.mark.parametrize("name", YAML)
def test_a_yaml_file_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    text, said = YAML[name]
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(FileError, match=said) as error:
        files.read_yaml(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


JSON = {
    "deep": (b"[" * 100_000, "nested too deep"),
    "rather deep": (b"[" * 70 + b"]" * 70, "nested too deep"),
    "cut": (b'{"a": 1', "not valid JSON"),
    "empty": (b"", "not valid JSON"),
    "huge": (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
    "large": (b'{"a": ' + b"9" * 100 + b"}", "more than 128 bits"),
    "surrogate": (b'{"a": "\\ud800"}', "not valid JSON"),
    "surrogate key": (b'{"\\ud800": 1}', "not valid JSON"),
    "not UTF-8": (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
    "list": (b"[]", "must be an object, got a list"),
}


@pytest.mark.parametrize("name", JSON)
def test_a_json_file_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    text, said = JSON[name]
    path = tmp_path / "a.json"
    path.write_bytes(text)
    with pytest.raises(FileError, match=said) as error:
        files.read_json(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_numbers_that_are_not_finite_are_read_as_python_writes_them() -> None:
    assert str(files.parse_json("[NaN, -Infinity]", "a")) == "[nan, -inf]"


@pytest.mark.parametrize(
    ("value", "shape", "said"),
    [
        ({"a": 1}, {"a": str}, "f: a must be a text, got an integer"),
        ({"a": True}, {"a": int}, "f: a must be an integer, got true or false"),
        ({"a": True}, {"a": float}, "f: a must be a number, got true or false"),
        ({"a": 1}, {"a": float}, None),
        ({"a": 1, "b": []}, {"a": int}, None),
        ({}, {"a": int}, "f: a is missing"),
        ({}, {"a?": int}, None),
        ({"a": None}, {"a?": int}, "f: a must be an integer, got null"),
        ({"a": {"b": [1, "x"]}}, {"a": {"b": [int]}}, r"f: a\.b\[1\] must be an integer"),
        ({"x": {"y": [1, None]}}, {...: {"y": [(int, None)]}}, None),
        ({"x": 3}, {...: {"y": int}}, "f: x must be an object, got an integer"),
        (None, list, "f: the document must be a list, got null"),
    ],
)
def test_shapes(value: object, shape: object, said: str | None) -> None:
    if said is None:
        assert files.require(value, shape, "f") == value
        return
    with pytest.raises(FileError, match=said):
        files.require(value, shape, "f")


def test_only_regular_files_of_a_folder_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "secret").write_text("secret")
    (folder / "inside").write_text("inside")
    (folder / "link").symlink_to("inside")
    (folder / "out").symlink_to("../secret")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")
    assert files.read_text(folder / "link", inside=folder) == "inside"
    for name, said in [
        ("out", "leads out of"),
        ("../secret", "leads out of"),
        ("loop", "cannot be read"),
        ("pipe", "is no regular file"),
        (".", "cannot be read"),
        ("a\0b", "cannot be read"),
        ("x" * 300, "cannot be read"),
    ]:
        with pytest.raises(FileError, match=said):
            files.read_text(folder / name, inside=folder)
    with pytest.raises(MissingFileError, match="there is no such file"):
        files.read_text(folder / "none", inside=folder)
    with pytest.raises(FileError, match="must have at most 3 bytes"):
        files.read_text(folder / "inside", most=3)


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})

    def fill_the_disk() -> None:
        with files.replacing(path) as partial:
            partial.write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(WriteError, match=r"a\.json: cannot be written: No space left on device"):
        fill_the_disk()
    assert files.read_json(path, {"a": int}) == {"a": 1}
    assert [found.name for found in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_what_is_no_file_is_not_replaced(tmp_path: Path, kind: str) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(pipe)
    with pytest.raises(WriteError, match=f"{kind}: cannot be written: is no regular file"):
        files.write_text(tmp_path / kind, "x")
    assert pipe.is_fifo()
    assert (tmp_path / "link").is_symlink()
    assert {found.name for found in tmp_path.iterdir()} == {"pipe", "folder", "link"}


def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    link = tmp_path / "a.json"
    link.symlink_to("mine")
    files.write_json(link, {})
    assert (tmp_path / "mine").read_text() == "mine"
    assert not link.is_symlink()
