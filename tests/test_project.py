"""Habits of the project: one version, its changelog, citations, templates, the workflow."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from setuptools.config.pyprojecttoml import read_configuration

import mg2l

ROOT = Path(__file__).resolve().parents[1]
GITHUB = ROOT / ".github"


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_one_place_has_the_version() -> None:
    project = read_configuration(ROOT / "pyproject.toml", expand=True)["project"]
    assert project["version"] == mg2l.__version__
    assert "version" in project["dynamic"]
    assert "version" not in load(ROOT / "CITATION.cff")
    paper = load(ROOT / "CITATION.cff")["preferred-citation"]
    assert project["urls"]["Paper"].endswith(paper["doi"])


def test_the_changelog_has_a_section_for_what_comes() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)
    assert sections[0] == "Unreleased"
    assert mg2l.__version__.partition(".dev")[0] in text


def test_close_work_is_cited_with_the_page_about_it() -> None:
    page = " ".join((ROOT / "docs/related.md").read_text(encoding="utf-8").split())
    references = load(ROOT / "CITATION.cff")["references"]
    assert len(references) == 5
    for reference in references:
        assert {"type", "title", "authors", "year"} <= set(reference)
        assert reference["title"] in page
        assert str(reference["year"]) in page
        assert reference.get("url", "") in page
        for author in reference["authors"]:
            assert author["family-names"] in page


def test_the_workflow_runs_all_checks() -> None:
    workflow = load(GITHUB / "workflows/ci.yml")
    steps = workflow["jobs"]["ci"]["steps"]
    assert steps[-1] == {"run": ".ci/run"}
    assert any("cuda-nvcc" in step.get("run", "") for step in steps)
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


def test_issue_forms_are_complete() -> None:
    forms = [load(path) for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml")]
    forms = [form for form in forms if "body" in form]
    assert len(forms) == 2
    for form in forms:
        assert {"name", "description", "body"} <= set(form)
        ids = [field["id"] for field in form["body"]]
        assert len(set(ids)) == len(ids)
        assert any(field.get("validations", {}).get("required") for field in form["body"])
