"""The example of an environment in C++ that pybind11 binds: compiled, refused, trained."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_helpers import SMALL

EXAMPLES = Path(__file__).parents[1] / "examples"

pytestmark = pytest.mark.ci

REFUSALS = """
import ring
walkers = ring.Ring(2, 3, 4)
for call, message in (
    (lambda: walkers.place(2, [0, 0, 0]), "env must be in [0, 2)"),
    (lambda: walkers.place(0, [0, 0, 4]), "cells must be in [0, 4), got 4"),
    (lambda: walkers.step([[0] * 3] * 2, [0]), "goals must have 2 numbers, got 1"),
    (lambda: walkers.step([[3] * 3] * 2, [0, 0]), "actions must be in [0, 3), got 3"),
):
    try:
        call()
    except (ValueError, IndexError) as error:
        assert str(error) == message, error
    else:
        raise AssertionError(message)
walkers.place(0, [0, 1, 3])
print(walkers.step([[2, 0, 1], [1, 1, 1]], [0, 1]).tolist(), walkers.cells().tolist())
"""


def run(*words: str, folder: Path) -> str:
    done = subprocess.run(words, cwd=folder, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_example_in_cpp_trains(tmp_path: Path) -> None:
    for path in EXAMPLES.glob("cpp_environment.*"):
        shutil.copy(path, tmp_path)
    comment = (tmp_path / "cpp_environment.cpp").read_text().split("\n\n")[0]
    command = " ".join(re.findall(r"^//   +(.*)$", comment, re.MULTILINE))
    asked = re.sub(
        r"\$\(python (.*?)\)",
        lambda words: run(sys.executable, *words[1].split(), folder=tmp_path).strip(),
        command,
    )
    run(*shlex.split(asked), "-Wall", "-Wextra", "-Werror", folder=tmp_path)
    found = run(sys.executable, "-c", REFUSALS, folder=tmp_path)
    assert found == "[[-0.5, -0.0, -0.5], [-0.5, -0.5, -0.5]] [[1, 0, 3], [0, 0, 0]]\n"
    words = [word for word in SMALL if not word.startswith("--env=")]
    train = [sys.executable, "-m", "mg2l.train", *words, "--env=cpp_environment.yaml"]
    run(*train, f"main_save_path={tmp_path / 'runs'}", folder=tmp_path)
    assert list((tmp_path / "runs").rglob("metrics.jsonl"))
