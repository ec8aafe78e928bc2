"""What README and docs/ say is so: links, paths, commands, keys, metrics, tests, code blocks."""

from __future__ import annotations

import ast
import doctest
import fnmatch
import importlib
import re
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from method_helpers import tiny_words
from packaging.requirements import Requirement
from setuptools.config.pyprojecttoml import read_configuration

from benchmarks.peers import race
from mg2l import cli, sweep, tune
from mg2l.cli import suite
from mg2l.cli.grid import grid
from mg2l.config.algorithms import algorithms
from mg2l.config.files import load_config
from mg2l.config.keys import Schema
from mg2l.config.saved import RESUMABLE, flat
from mg2l.core.schema import ConfigError
from mg2l.envs import benchmark as envs_benchmark
from mg2l.envs import registry
from mg2l.envs import render as envs_render
from mg2l.envs import replay as envs_replay
from mg2l.evaluation import probe
from mg2l.report import __main__ as report
from mg2l.train import run as train
from mg2l.training.metrics import read_metrics, scalars
from mg2l.tuning.plan import plan

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS, SCENARIO = ROOT / "docs/commands.md", ROOT / "docs/tutorials/environment.md"
TINY = tiny_words(save_model=True, save_interval=1, log_tensorboard=True)

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
MATH = re.compile(r"\$[^$\n]+\$")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
TEST = re.compile(r"(?:tests/[\w/]+\.py::)?test_\w+")
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@cache
def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of every fenced block."""
    return FENCE.findall(page.read_text(encoding="utf-8"))


@cache
def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def spans(page: Path) -> list[str]:
    return SPAN.findall(prose(page))


def commands(page: Path) -> list[str]:
    """Lines of the blocks without a language that are commands, comments cut off."""
    lines = [line for language, text in blocks(page) if not language for line in text.splitlines()]
    starts = ("python ", "pip ", "pytest")
    return [line.partition("  #")[0].strip() for line in lines if line.startswith(starts)]


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@cache
def schemas() -> list[Schema]:
    families = [Schema(family) for family in registry.names()]
    return [*families, *(Schema("mpe-spread", name) for name in algorithms.names())]


@cache
def key_names() -> set[str]:
    return {name for schema in schemas() for name in (*schema.by_name, *schema.by_path)}


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of two iterations."""
    root = tmp_path_factory.mktemp("runs")
    config, options = cli.parse([*TINY, f"main_save_path={root}"])
    assert train(config, options) == 0
    (folder,) = root.glob("*/*/*")
    return folder


# Links and paths.


@pages
def test_links_resolve(page: Path) -> None:
    for target in LINK.findall(prose(page)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}, which is not there"
        assert file.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(file), f"{page.name}: no heading #{anchor} in {path}"


@pages
def test_paths_exist(page: Path) -> None:
    """Whatever begins with a folder of the repository, in code spans and in the layout."""
    text = " ".join(spans(page)) + " " + " ".join(t for lang, t in blocks(page) if not lang)
    folders = "mg2l|envs|configs|csrc|tests|benchmarks|examples|docs"
    found = re.findall(rf"(?<![\w/.-])(?:{folders})/[\w./*-]*", text)
    for path in found:
        if "NAME" not in path:
            assert list(ROOT.glob(path.rstrip("/."))), f"{page.name} names {path}"


def test_the_check_of_paths_sees_some() -> None:
    assert sum(len(re.findall(r"mg2l/\w+", text)) for text in map(prose, PAGES)) > 10


# Commands.


def test_setup_commands() -> None:
    lines = commands(ROOT / "README.md")
    assert lines == [
        "python -m venv .venv && . .venv/bin/activate && "
        "pip install -c constraints.txt -e . && python -m mg2l.train",
        'pip install -c constraints.txt -e ".[dev]" && pytest -n auto --dist loadfile',
    ]
    pinned = {
        re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    project = read_configuration(ROOT / "pyproject.toml", expand=False)["project"]
    extras = project["optional-dependencies"]
    listed = [*project["dependencies"], *extras["dev"], *extras["docs"], *extras["analysis"]]
    needed = {re.sub(r"[-_.]+", "-", Requirement(text).name).lower() for text in listed}
    assert needed - {"mg2l", "setuptools", "wheel"} <= pinned  # pip freeze leaves these out


def check_train(words: list[str], run: Path, tmp_path: Path) -> None:
    """The command line is understood; the run itself is what `tiny_run` is for."""
    given = {"RUN": str(run), "mine.yaml": str(tmp_path / "mine.yaml")}
    (tmp_path / "mine.yaml").write_text("algo_name: mappo\n")
    for name, value in given.items():
        words = [re.sub(rf"\b{name}$", value, word) for word in words]
    found = cli.read(words)
    assert (found is None) == ("--help" in words)


def run_replay(words: list[str]) -> None:
    words = [str(ROOT / "tests/golden/mpe_spread_2a3l.npz") if "." in w else w for w in words]
    assert envs_replay.main(words) == 0


@pytest.mark.parametrize(
    "line", [*commands(COMMANDS), *commands(SCENARIO), *commands(ROOT / "docs/performance.md")]
)
def test_commands(
    line: str, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = shlex.split(line)
    if words[0] == "pytest":
        assert all((ROOT / word).exists() for word in words[1:])
        return
    if "--env=spacing.yaml" in words:
        return  # see test_the_scenario_trains
    assert words[:2] == ["python", "-m"], f"this test does not know {line!r}"
    module, arguments = words[2], words[3:]
    if module == "mg2l.train":
        check_train(arguments, tiny_run, tmp_path)
        return
    if module == "mg2l.sweep":
        assert grid(sweep.parse(arguments))
        return
    if module == "benchmarks.peers.race":  # its contestants are not installed
        assert race.parse(arguments).rounds
        return
    if module == "mg2l.tune":
        assert plan(tune.parse(arguments)).space
        return
    if module == "mg2l.envs.replay":
        run_replay(arguments)
        return
    if module in ("mg2l.envs.benchmark", "mg2l.envs.render"):
        monkeypatch.chdir(tmp_path)
        words = [f"--run={tiny_run}" if word == "--run=RUN" else word for word in arguments]
        command = envs_benchmark if module.endswith("benchmark") else envs_render
        more = ["--num-envs=2", "--steps=3"] if command is envs_benchmark else []
        assert command.main([*words, *more]) == 0
        return
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(probe, "EPISODES", 6)
    run = shutil.copytree(tiny_run, tmp_path / "run")  # for what is written beside it
    replaced = dict.fromkeys(("runs/mpe-spread", "sweeps/first"), str(tiny_run.parents[1]))
    replaced |= {"RUN": str(run)}
    monkeypatch.setattr(sys, "argv", [module, *(replaced.get(word, word) for word in arguments)])
    program = report if module == "mg2l.report" else importlib.import_module(module)
    program.main()
    assert ("--plot" in arguments) == (tmp_path / "curves.png").exists()


def test_the_scenario_trains(tmp_path: Path) -> None:
    """The file of the section on scenarios, beside the example, trains; its run is found again."""
    shutil.copy(ROOT / "examples/custom_scenario.py", tmp_path)
    (text,) = [text for _, text in blocks(SCENARIO) if text.startswith("# spacing.yaml")]
    (tmp_path / "spacing.yaml").write_text(text)
    (line,) = [line for line in commands(SCENARIO) if "spacing.yaml" in line]
    words = [sys.executable, *shlex.split(line)[1:], *TINY]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (run,) = tmp_path.glob("runs/spacing/mg2l/*")
    assert len(read_metrics(run / "metrics.jsonl")) == 2
    words = [sys.executable, "-m", "mg2l.train", f"--resume={run}", "--trust", "n_iters=3"]
    done = subprocess.run(words, cwd=tmp_path / "runs", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(read_metrics(run / "metrics.jsonl")) == 3


# What a run leaves.


def test_a_run_leaves_what_is_said(tiny_run: Path) -> None:
    table = prose(COMMANDS).partition("## What a run writes")[2].partition("\n## ")[0]
    named = {name.rstrip("/") for name in re.findall(r"^\| `([\w./]+)`", table, re.MULTILINE)}
    left = {
        path.name for path in tiny_run.iterdir() if not path.name.startswith((".lock", ".seat"))
    }
    left -= {"probe.json", "report.html"}
    assert named == left


@pages
def test_metrics_exist(page: Path, tiny_run: Path) -> None:
    rows = read_metrics(tiny_run / "metrics.jsonl")
    logged = {name for row in rows for name in (*row, *scalars(row))}
    logged.add("time/comm")  # of several processes
    kinds = {name.partition("/")[0] for name in logged if "/" in name}
    for span in spans(page):
        if re.fullmatch(r"[a-z]+/[\w*]+", span) and span.partition("/")[0] in kinds:
            assert fnmatch.filter(logged, span), f"{page.name}: no metric {span}"


# Keys of the configuration.


def accepts(schema: Schema, override: str) -> bool:
    try:
        return bool(schema.overrides([override]))
    except ConfigError:
        return False


@pages
def test_keys_exist(page: Path) -> None:
    """`key: value` and `key=value` in the text are accepted by a family."""
    for span in spans(page):
        match = re.fullmatch(r"'?([\w.]+)(?:: |=)(.+?)'?", span)
        if match is None or match[2] in ("RUN", "VALUE"):
            continue
        if match[1] == "family":
            assert match[2] in ["NAME", *registry.names()]
            continue
        override = f"{match[1]}={match[2]}"
        assert any(accepts(schema, override) for schema in schemas()), f"{page.name}: {span}"


@cache
def names_in_code() -> set[str]:
    """Every word of the code."""
    folders = ("mg2l", "envs", "csrc")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*")]
    sources = [file for file in files if file.suffix in (".py", ".h", ".cpp", ".cu", ".cuh")]
    return {word for file in sources for word in re.findall(r"\w+", file.read_text("utf-8"))}


@pages
def test_names_exist(page: Path) -> None:
    """A span that is one name with an underscore is a key, or a name in the code."""
    for span in spans(page):
        if re.fullmatch(r"[A-Za-z]\w*_\w+", span) and not span.startswith(("test_", "MG2L_")):
            assert span in key_names() | names_in_code(), f"{page.name} names {span}"


def test_groups_hold_the_keys_named() -> None:
    page = ROOT / "docs/configuration.md"
    table = re.findall(r"^\| (?:`(\w+)`|\(none\)) \|.*\| (.+) \|$", prose(page), re.MULTILINE)
    paths = set().union(*(schema.by_path for schema in schemas()))
    assert [group for group, _ in table] == ["", *schemas()[0].groups]
    for group, names in table:
        for name in SPAN.findall(names):
            assert (f"{group}.{name}" if group else name) in paths, f"{name} is not in {group!r}"


def test_keys_of_a_resumption() -> None:
    text = prose(ROOT / "docs/configuration.md").partition("## Resuming")[2]
    listed = text.partition("n_iters=2000`:")[2].partition(". Where")[0]
    assert set(SPAN.findall(listed)) == RESUMABLE


def test_the_table_of_choices_is_the_files() -> None:
    """Keys in which mg2l and mg2l-paper differ, on mpe-spread."""
    table = prose(ROOT / "docs/algorithms.md").partition("| key | `mg2l` | `mg2l-paper` |")[2]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|$", table, re.MULTILINE)
    said = {key: tuple(yaml.safe_load(text) for text in values) for key, *values in rows}
    ours, paper = (flat(load_config(algo=algo)) for algo in ("mg2l", "mg2l-paper"))
    differ = {path.rpartition(".")[2]: (ours[path], paper[path]) for path in ours}
    assert said == {name: pair for name, pair in differ.items() if pair[0] != pair[1]}


def test_values_that_all_algorithms_share() -> None:
    text = prose(ROOT / "docs/algorithms.md").partition("## The same for all of them")[2]
    config = {path.rpartition(".")[2]: v for path, v in flat(load_config()).items()}
    pairs = [span.split(": ") for span in SPAN.findall(text) if ": " in span]
    assert len(pairs) == 5
    assert {key: yaml.safe_load(value) for key, value in pairs} == {k: config[k] for k, _ in pairs}


# Tests, code blocks, picture, citation.


@cache
def functions(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_error_names_a_test_that_exists() -> None:
    page = ROOT / "docs/errors-of-the-original.md"
    rows = re.findall(r"^\| (?!---|the original)(.+) \| .+ \| (.+) \|$", prose(page), re.MULTILINE)
    assert len(rows) >= 15
    for error, tests in rows:
        names = SPAN.findall(tests)
        assert names, error
        for name in names:
            assert TEST.fullmatch(name), name
            file, _, test = name.rpartition("::")
            assert test in functions(ROOT / (file or "tests/test_original_errors.py")), name


@pytest.mark.parametrize(
    "code", [text for page in PAGES for language, text in blocks(page) if language == "python"]
)
def test_python_blocks_run(
    code: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # where they train
    exec(compile(code, "docs", "exec"), {})


@pytest.mark.parametrize(
    "name", ["", ".api.callbacks", ".api.training", ".api.team", ".api.results"]
)
def test_examples_in_docstrings_run(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    module = importlib.import_module(f"mg2l{name}")
    found = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert found.attempted
    assert not found.failed


@pytest.mark.parametrize(
    "text", [text for page in PAGES for language, text in blocks(page) if language == "yaml"]
)
def test_yaml_blocks_load(text: str, tmp_path: Path) -> None:
    if "family: spacing" in text:
        return  # see test_the_scenario_trains
    file = tmp_path / "file.yaml"
    file.write_text(text)
    if "apiVersion:" in text:
        assert yaml.safe_load(text)["kind"]
        return
    if "runs:" in text:
        assert suite.read(str(file)).cells
        return
    kind = "env" if "family:" in text else "algo"
    load_config(**{kind: str(file)})


def test_only_known_languages_stand_in_blocks() -> None:
    assert {language for page in PAGES for language, _ in blocks(page)} <= {
        "", "python", "yaml", "toml", "math",
    }  # fmt: skip


def test_no_math_in_code_and_no_fence_is_open() -> None:
    for page in PAGES:
        assert "```" not in prose(page), page.name
        assert SPAN.sub("", prose(page)).count("$") % 2 == 0, page.name
        for formula in MATH.findall(SPAN.sub("", prose(page))):
            assert formula.count("{") == formula.count("}"), formula


def test_picture_of_the_method() -> None:
    tree = ET.parse(ROOT / "docs/method.svg")
    names = {element.tag.rpartition("}")[2] for element in tree.iter()}
    assert {"title", "desc", "style"} <= names
    assert not names & {"image", "script", "foreignObject"}
    used = {
        word
        for element in tree.iter()
        for word in element.get("class", "").split()
    }  # fmt: skip
    style = next(e.text or "" for e in tree.iter() if e.tag.endswith("style"))
    light, _, dark = style.partition("@media (prefers-color-scheme: dark)")
    both = set(re.findall(r"\.(\w+)", light)) & set(re.findall(r"\.(\w+)", dark))
    assert used - both <= {"key1", "key2", "key3"}, "colours for one mode only"


def test_citation() -> None:
    cff: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "license"} <= set(cff)
    assert cff["cff-version"] == "1.2.0"
    paper = cff["preferred-citation"]
    assert paper["doi"] == "10.1109/TNNLS.2025.3540758"
    assert [f"{a['given-names']} {a['family-names']}" for a in paper["authors"]] == [
        "Zijie Zhao", "Yuqian Fu", "Jiajun Chai", "Yuanheng Zhu", "Dongbin Zhao",
    ]  # fmt: skip
    assert (paper["volume"], paper["issue"], paper["year"]) == (36, 8, 2025)
    assert cff["license"] == "MIT"
    assert "MG2L developers" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    readme = " ".join(prose(ROOT / "README.md").replace(">", "").split())
    assert paper["doi"] in readme
    assert paper["title"] in readme
    assert cff["authors"] == [{"name": "MG2L developers"}]
