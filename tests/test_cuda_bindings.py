"""The tests of operators pass with what a GPU runs in their place, bindings and all, on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from cuda_host import ROOT
from cuda_host.binding import build_library

pytestmark = pytest.mark.ci

CPU_ONLY = (
    # Checked on the CPU, where looking costs nothing.
    "tests/test_pairwise_lse.py::test_refuses[positive range]",
    "tests/test_encode_context.py::test_refuses[index too large]",
    "tests/test_encode_context.py::test_refuses[index negative]",
    "tests/test_film.py::test_refuses_an_index_out_of_range",
    "tests/test_contrast.py::test_refusals[positive too large]",
    "tests/test_contrast.py::test_refusals[positive negative]",
    "tests/test_innovation_moments.py::test_refuses[places too large]",
    "tests/test_innovation_moments.py::test_refuses[places negative]",
    "tests/test_innovation_moments.py::test_refuses[places shared]",
    # Those of torch's products do.
    "tests/test_pairwise_lse.py::test_results_do_not_depend_on_the_number_of_threads",
    "tests/test_gelu_mlp.py::test_results_do_not_depend_on_the_number_of_threads",
    # Kernels for a GPU do not multiply bfloat16, and refuse tensors that are not on the CPU.
    "tests/test_stacked_mlp.py::test_bfloat16",
    "tests/test_encode_context.py::test_bfloat16",
)
"""What is said of kernels for the CPU alone."""


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    build_library()


@pytest.mark.parametrize(
    ("operator", "options"),
    [
        ("pairwise_lse", []),
        ("pairwise_lse", ["--products"]),
        ("pia_pool", []),
        ("stacked_mlp", []),
        ("film", []),
        ("clipped", []),
        ("gaussian_surrogate", []),
        ("contrast", []),
        ("clip_norms", []),
        ("encode_context", []),
        ("gelu_mlp", []),
        ("innovation_moments", []),
    ],
    ids=str,
)
def test_operator(operator: str, options: list[str]) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "cuda_host.binding", *options]
    command += [f"tests/test_{operator}.py", *(f"--deselect={test}" for test in CPU_ONLY)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout
