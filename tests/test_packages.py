"""Packages that are missing: one line, which also fits installed wheels."""

import importlib.metadata
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from mg2l import probe
from mg2l.core.packages import installed, require
from mg2l.core.schema import ConfigError

ROOT = Path(__file__).parents[1]
SOURCES = [path for folder in ("mg2l", "envs") for path in (ROOT / folder).rglob("*.py")]


def test_what_is_missing_is_named():
    require("this", "torch", "numpy", extra="analysis")
    with pytest.raises(ConfigError) as caught:
        require("a thing", "torch", "no_such_a", "no_such_b", extra="analysis")
    assert str(caught.value) == (
        "a thing needs the packages no_such_a, no_such_b; install with: "
        'pip install "mg2l[analysis]"'
    )


def test_what_was_imported_from_no_file_is_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "made_here", ModuleType("made_here"))
    assert installed("made_here")
    monkeypatch.setitem(sys.modules, "made_here", None)
    assert not installed("made_here")


@pytest.mark.parametrize(
    ("missing", "words", "line"),
    [
        ("sklearn", [], 'a probe needs the package sklearn; install with: .*"mg2l[analysis]"'),
        ("matplotlib", ["--map=a.png"], '--map needs the package matplotlib; .*"mg2l[analysis]"'),
        ("umap", ["--by", "umap"], '--by umap needs the package umap; .*"mg2l[umap]"'),
    ],
)
def test_a_probe_says_what_it_needs_before_it_begins(
    tmp_path, monkeypatch, capsys, missing, words, line
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == missing else find(name)
    )
    monkeypatch.setattr("sys.argv", ["probe", str(tmp_path), *words])
    with pytest.raises(SystemExit):
        probe.main()
    pattern = re.escape(f"error: {line}").replace(r"\.\*", ".*")
    assert re.fullmatch(pattern + "\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--map=a.txt"], "--map=a.txt: must end in one of "),
        (["--episodes", "1", str(10**30)], "--episodes: must be a whole number from 1 to "),
    ],
)
def test_a_probe_refuses_before_it_begins(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.setattr("sys.argv", ["probe", str(tmp_path), *words])
    with pytest.raises(SystemExit):
        probe.main()
    assert said in capsys.readouterr().err


def test_messages_hold_outside_a_clone():
    extras = {*(importlib.metadata.metadata("mg2l").get_all("Provides-Extra") or ())}
    for path in SOURCES:
        text = path.read_text()
        assert "constraints.txt" not in text, path
        assert "root of the repository" not in text, path
        named = re.findall(r'mg2l\[(\w+)\]|extra="([\w-]+)"', text)
        assert {one or other for one, other in named} <= extras, path
