"""Every module imports only its own layer and those below it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

LAYERS = (
    "core",
    "ops",
    "estimators",
    "envs",
    "config",
    "nn",
    "experience",
    "algorithms",
    "training",
    "evaluation",
    "deploy",
    "api",
    "launch",
    "cli",
    "tuning",
    "report",
)
"""From the bottom; above them are the commands, files at the top of ``mg2l/``."""

COMMANDS = {
    "mg2l/estimators/table.py",
    *(f"mg2l/envs/{name}.py" for name in ("benchmark", "command", "gallery", "render", "replay")),
}
"""Commands that stand beside what they show."""

PACKAGE = Path(__file__).resolve().parents[1] / "mg2l"
MODULES = sorted(
    path
    for folder in (PACKAGE, PACKAGE / "envs")  # a link, which rglob does not follow
    for path in folder.rglob("*.py")
)


def imported(tree: ast.Module) -> set[str]:
    """Second words of what is imported from ``mg2l``, but for annotations."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "mg2l":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mg2l."):
            found.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {x.name.split(".")[1] for x in node.names if x.name.startswith("mg2l.")}
    return {name for name in found if not name.startswith("_")}


def rank(name: str) -> int:
    return LAYERS.index(name) if name in LAYERS else len(LAYERS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    parts = path.relative_to(PACKAGE.parent).parts
    if "/".join(parts) in COMMANDS or parts[1:] == ("__init__.py",):
        return
    own = rank(parts[1])
    above = {name for name in imported(ast.parse(path.read_text())) if rank(name) > own}
    assert not above, f"{'/'.join(parts)} imports {sorted(above)}"


def test_the_walk_sees_all_parts() -> None:
    assert {path.relative_to(PACKAGE).parts[0] for path in MODULES} >= set(LAYERS)
