"""The docs as a site: nothing is missing, the notebook runs, and a browser shows it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ci

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as strictly as mkdocs can."""
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        words, cwd=ROOT, env=environment, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_notebook_was_executed(site: Path) -> None:
    page = (site / "tutorials/first_team/index.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/png;base64,') == 2
    assert len(re.findall(r"task \d: exploring -?\d", page)) == 3


def test_the_reference_has_docstrings_of_the_public_names(site: Path) -> None:
    names = {
        "api": ["mg2l.api.training.train", "mg2l.api.team.Team.act"],
        "environments": ["mg2l.envs.base.VectorEnv.step"],
        "operators": ["mg2l.ops.gae.gae"],
        "deploy": ["mg2l.deploy.agent.Agent.infer"],
    }
    for page, wanted in names.items():
        text = (site / "reference" / page / "index.html").read_text(encoding="utf-8")
        for name in wanted:
            assert f'id="{name}"' in text


def test_formulas_and_files_of_the_repository_are_pages(site: Path) -> None:
    algorithms = (site / "algorithms/index.html").read_text(encoding="utf-8")
    assert algorithms.count("<math") > 20
    assert "$q(" not in algorithms
    example = (site / "source/examples/exported_team_py/index.html").read_text(encoding="utf-8")
    assert "exported_team.py" in example


def test_no_page_asks_another_host(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        asked = re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="(https?://[^"]+)"', text)
        assert asked == [], page
