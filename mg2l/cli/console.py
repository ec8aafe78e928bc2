"""``mg2l COMMAND ...``: every command of mg2l, as ``python -m mg2l.COMMAND ...``."""

from __future__ import annotations

import ast
import importlib.util
import runpy
import sys
from pathlib import Path

from mg2l import cli
from mg2l.core.schema import nearest

COMMANDS = {
    "train": "mg2l.train",
    "evaluate": "mg2l.evaluate",
    "probe": "mg2l.probe",
    "export": "mg2l.export",
    "sweep": "mg2l.sweep",
    "tune": "mg2l.tune",
    "report": "mg2l.report",
    "compare": "mg2l.compare",
    "info": "mg2l.info",
    "benchmark": "mg2l.envs.benchmark",
    "render": "mg2l.envs.render",
    "replay": "mg2l.envs.replay",
}
"""Modules by the names of commands."""


def summary(module: str) -> str:
    """First line of a command's docstring, without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is not None and spec.submodule_search_locations:
        spec = importlib.util.find_spec(f"{module}.__main__")
    assert spec is not None
    text = Path(str(spec.origin)).read_text(encoding="utf-8")
    line = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    return line.partition(": ``")[0].rstrip(".")


def help_text() -> str:
    """The text of ``mg2l --help``."""
    lines = [f"  {name:10} {summary(module)}" for name, module in COMMANDS.items()]
    return "\n".join(["mg2l COMMAND [--help] ...", "", *lines])


def main() -> None:
    """Entry point of ``mg2l``."""
    command, *words = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help", "help"):
        print(help_text())
        return
    if command not in COMMANDS:
        near = nearest(command, list(COMMANDS))
        cli.abort(f"unknown command {command!r}; commands are {', '.join(COMMANDS)}{near}")
    sys.argv = [f"mg2l {command}", *words]
    runpy.run_module(COMMANDS[command], run_name="__main__", alter_sys=False)
