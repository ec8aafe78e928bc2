"""A small run that is trained once, programs called in this process, an installed package."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from method_helpers import tiny_words

import mg2l.train as train

SMALL = [
    *("--algo=mg2l", "--env=mpe-spread", "seed=3"),
    *tiny_words(n_iters=4, save_interval=2, sample_ae_interval=2, save_model=True),
]


def status(monkeypatch: pytest.MonkeyPatch, main: Callable[[], int | None], *words: object) -> int:
    """Exit status of a program called with these words."""
    monkeypatch.setattr(sys, "argv", ["program", *map(str, words)])
    try:
        return main() or 0
    except SystemExit as error:
        return int(error.code or 0)


def small_run(root: Path) -> Path:
    """Train four iterations, and return the folder."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert status(monkeypatch, train.main, *SMALL, f"main_save_path={root}") == 0
    (folder,) = root.glob("*/*/*-sd3")
    return folder


def install_plugins(monkeypatch: pytest.MonkeyPatch, root: Path, kind: str, plugged: str) -> None:
    """Install a package ``plug`` below ``root`` that has entry points ``mg2l.<kind>``.

    Its module ``plugged_<kind>`` has the source ``plugged``; ``broken_<kind>`` cannot be imported,
    and ``idle_<kind>`` registers nothing.
    """
    sources = {"plugged": plugged, "broken": "import a_package_that_is_missing", "idle": ""}
    for name, text in sources.items():
        (root / f"{name}_{kind}.py").write_text(text)
    info = root / "plug-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1.0\n")
    points = "".join(f"{name} = {name}_{kind}\n" for name in sources)
    (info / "entry_points.txt").write_text(f"[mg2l.{kind}]\n{points}")
    monkeypatch.syspath_prepend(root)
