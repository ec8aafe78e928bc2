"""Code inside or named by a run folder is not imported unless it is trusted."""

from __future__ import annotations

import py_compile
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hostile_helpers import SMALL, status

import mg2l.train as train
from mg2l import evaluate, export, probe
from mg2l.cli.jobs import Job
from mg2l.config import files as loading
from mg2l.config.saved import config_from_yaml, config_to_yaml
from mg2l.envs import registry, render

UNCHECKED = py_compile.PycInvalidationMode.UNCHECKED_HASH


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of a family of one's own, which is then forgotten; its code lies in ``code/own.py``."""
    code = tmp_path / "code"
    code.mkdir()
    source = "\n".join(
        [
            "from dataclasses import dataclass",
            "from pathlib import Path",
            "from mg2l.envs import registry",
            "@dataclass",
            "class OwnConfig(registry.config_class('mpe-spread')):",
            "    '''A family of one's own.'''",
            "spread = registry.families.get('mpe-spread').factory",
            "registry.register('own', OwnConfig, spread)",
            "with Path(__file__).with_name('imported').open('a') as file: file.write('x')",
        ]
    )
    (code / "own.py").write_text(source)
    (code / "own.yaml").write_text("family: own\nmodule: own.py\n")
    words = [word for word in SMALL if not word.startswith("--env=")]
    words += [f"--env={code / 'own.yaml'}", f"main_save_path={tmp_path / 'runs'}"]
    with other_process():
        assert status(monkeypatch, train.main, *words) == 0
    (code / "imported").unlink()
    (run,) = (tmp_path / "runs").glob("*/*/*-sd3")
    return run


@contextmanager
def other_process() -> Iterator[None]:
    """What files register within is forgotten, as if it had been done by another process."""
    with registry.families.scope():
        yield
    for name in [name for name in sys.modules if name.startswith("mg2l_plugin_")]:
        del sys.modules[name]


def imported(tmp_path: Path) -> bool:
    return (tmp_path / "code" / "imported").exists()


def test_code_that_a_run_names_needs_trust(own, tmp_path, monkeypatch, capsys):
    capsys.readouterr()
    for main, word in [
        (evaluate.main, own),
        (probe.main, own),
        (export.main, own),
        (train.main, f"--resume={own}"),
    ]:
        assert status(monkeypatch, main, word) == 2
        err = capsys.readouterr().err
        assert f"family 'own' is registered by {tmp_path / 'code' / 'own.py'}" in err
        assert "only with --trust" in err
        assert err.count("\n") == 1
    with pytest.raises(SystemExit) as raised:
        render.main([f"--run={own}"])
    assert raised.value.code == 2
    assert not imported(tmp_path)
    with other_process():
        words = [own, "--trust", "--episodes=1", "--shots", 0]
        assert status(monkeypatch, evaluate.main, *words) == 0
    assert f"importing {tmp_path / 'code' / 'own.py'}, sha256 " in capsys.readouterr().err
    assert imported(tmp_path)
    assert status(monkeypatch, train.main, f"--resume={own}", "--trust", "n_iters=5") == 0


def test_code_that_has_changed_is_not_imported(own, tmp_path, monkeypatch, capsys):
    path = tmp_path / "code" / "own.py"
    source = path.read_text()
    path.write_text(source + "\n")
    assert status(monkeypatch, evaluate.main, own, "--trust") == 2
    assert "own.py has sha256" in capsys.readouterr().err
    text = (own / "config.yaml").read_text()
    kept = [line for line in text.splitlines() if "module_sha256" not in line]
    (own / "config.yaml").write_text("\n".join(kept))
    assert status(monkeypatch, evaluate.main, own, "--trust") == 2
    assert "has no module_sha256" in capsys.readouterr().err
    assert not imported(tmp_path)


def test_a_compiled_file_beside_it_is_not_what_runs(own, tmp_path, monkeypatch):
    path = tmp_path / "code" / "own.py"
    evil = tmp_path / "evil.py"
    evil.write_text("import pathlib; pathlib.Path(__file__).with_name('evil').touch(); 1 / 0")
    cache = Path(str(py_compile.compile(str(evil), invalidation_mode=UNCHECKED)))
    (path.parent / "__pycache__").mkdir(exist_ok=True)
    shutil.copy(cache, path.parent / "__pycache__" / cache.name.replace("evil", "own"))
    assert status(monkeypatch, evaluate.main, own, "--trust", "--episodes=1", "--shots", 0) == 0
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("module", ["code.py", "../code.py", "{root}/code.py", "hostile_code"])
def test_nothing_is_imported_for_a_known_family(tmp_path, monkeypatch, module, capsys):
    for name in ("run/code.py", "code.py", "run/hostile_code.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("import sys; sys.exit(7)")
    monkeypatch.syspath_prepend(tmp_path / "run")
    config = loading.load_config(algo="mappo")
    text = config_to_yaml(config)
    assert "module" not in text
    place = f"  module: {module.format(root=tmp_path)}\n"
    family = "  family: mpe-spread\n"
    path = tmp_path / "run" / "config.yaml"
    path.write_text(text.replace(family, family + place))
    assert config_from_yaml(path, trust=True) == config
    # Of another family it ends neither the program nor silently.
    path.write_text(text.replace(family, "  family: other\n" + place))
    for words in ([], ["--trust"]):
        assert status(monkeypatch, evaluate.main, tmp_path / "run", *words) == 2
        err = capsys.readouterr().err
        assert ("has no module_sha256" if words else "only with --trust") in err
    assert "hostile_code" not in sys.modules


def test_a_module_that_ends_the_program_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "own.py").write_text("import sys; sys.exit(0)")
    (tmp_path / "own.yaml").write_text("family: other\nmodule: own.py\n")
    assert status(monkeypatch, train.main, f"--env={tmp_path / 'own.yaml'}") == 2
    assert "own.py cannot be imported: SystemExit: 0" in capsys.readouterr().err


def test_a_sweep_trusts_what_its_own_command_line_names(own, tmp_path, monkeypatch):
    job = Job("mg2l", "own", 3, [], 4, tmp_path / "runs", ["evaluate"])
    assert job.run() == own
    assert "--trust" not in job.command(1)
    loading.load_config(env=str(tmp_path / "code" / "own.yaml"))
    assert job.command(1)[-1] == "--trust"
    job.n_iters = 9
    assert "--trust" in job.command(1)
    text = (own / "config.yaml").read_text()
    for changed in (text.replace("code/own.py", "code/other.py"), "[" * 9000):
        (own / "config.yaml").write_text(changed)
        assert "--trust" not in job.command(1)
