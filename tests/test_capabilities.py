"""Parts outside ``mg2l.algorithms`` ask an algorithm what it can do, and never which one it is."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from method_helpers import tiny_learner

from mg2l.algorithms.base import TaskInference
from mg2l.config.algorithms import algorithms
from mg2l.config.files import available
from mg2l.core.schema import keys

PACKAGE = Path(__file__).resolve().parents[1] / "mg2l"
SOURCES = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.relative_to(PACKAGE).parts[0] not in ("algorithms", "envs")
]
BASES = {"mg2l.algorithms.base", "mg2l.algorithms.agent"}
"""What others may import of the algorithms."""

NAMES = {*algorithms.names()}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_part_knows_an_algorithm(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        modules = []
        if isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        known = [name for name in modules if name.startswith("mg2l.algorithms")]
        assert {*known} <= BASES, f"{path} imports {known}"
        if isinstance(node, ast.Compare):
            words = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
            named = [word for word in words if isinstance(word, str) and word in NAMES]
            assert not named, f"{path}:{node.lineno} compares with {named}"
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
            assert "inference" not in ast.unparse(node.args[0]), f"{path}:{node.lineno}"


@pytest.mark.parametrize("name", sorted(NAMES))
def test_each_algorithm_is_one_folder_with_its_file_and_test(name: str) -> None:
    registered = algorithms.get(name)
    algorithm = registered.inference
    stem = name.replace("-", "_")
    assert algorithm.__module__ == f"mg2l.algorithms.{stem}.algorithm"
    assert any(file == name or file.startswith(f"{name}-") for file in available("algo"))
    assert (Path(__file__).parent / f"test_{stem}.py").is_file()
    assert registered.config_class is algorithm.config_class
    if own := vars(algorithm.config_class).get("__annotations__"):
        assert algorithm.config_class.__module__ == f"mg2l.algorithms.{stem}.config"
        assert {*own} <= {key.name for key in keys(algorithm.config_class)}


def test_what_is_not_there_says_so() -> None:
    inference = tiny_learner("mappo").inference
    assert isinstance(inference, TaskInference)
    assert (inference.latent_source, inference.infers_from_contexts) == ("nothing", False)
    assert inference.agent_network(0) is None
    with pytest.raises(NotImplementedError, match="MAPPO has no contexts"):
        print(inference.context_length)
    with pytest.raises(NotImplementedError, match="MAPPO has no beliefs"):
        inference.initial_belief_state(1)
