"""Algorithms from outside the package: named by a file, or those of an installed package."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hostile_helpers import SMALL, install_plugins

from mg2l import cli
from mg2l.algorithms.mappo.algorithm import MAPPO
from mg2l.config.algorithms import algorithms, register_algorithm
from mg2l.config.files import load_config, read_sources
from mg2l.config.saved import config_from_yaml
from mg2l.core.schema import ConfigError

EXAMPLES = Path(__file__).parents[1] / "examples"
WORDS = [word for word in SMALL if not word.startswith(("--algo=", "n_init_updates="))]

COMMANDS = """
import importlib, json, sys
from mg2l.evaluation import probe
probe.EPISODES, probe.CONTEXTS = 4, 12
for name, *words in json.loads(sys.argv[1]):
    sys.argv = [name, *words]
    try:
        print(name, importlib.import_module(name).main() or 0, flush=True)
    except SystemExit as end:
        print(name, end.code, flush=True)
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example alone, which is not part of the package."""
    folder = tmp_path_factory.mktemp("own")
    for kind in ("py", "yaml"):
        shutil.copy(EXAMPLES / f"custom_algorithm.{kind}", folder)
    return folder


def run(folder: Path, *commands: list[str]) -> tuple[list[str], str]:
    """Lines of output and errors of commands, one after the other in one fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)],
        cwd=folder, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return done.stdout.splitlines(), done.stderr


def test_all_commands_take_it(own: Path) -> None:
    algo, wanted = "--algo=custom_algorithm.yaml", "n_init_updates=1"  # one of its own keys
    lines, errors = run(own, ["mg2l.train", algo, wanted, *WORDS, "main_save_path=runs"])
    assert lines[-1] == "mg2l.train 0", errors
    (folder,) = (own / "runs").glob("*/*/*-sd3")
    assert folder.parent.name == "custom_algorithm"
    saved = yaml.safe_load((folder / "config.yaml").read_text())["algo"]
    assert saved["module"] == str(own / "custom_algorithm.py")
    assert len(saved["module_sha256"]) == 64
    assert saved["reward_hidden"] == 64
    assert "loss/reward" in json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])

    # In a process that does not know it, its code is imported with --trust alone.
    lines, errors = run(own, ["mg2l.evaluate", str(folder)])
    assert lines == ["mg2l.evaluate 2"]
    assert "algorithm 'reward-prediction' is registered by" in errors
    assert "only with --trust" in errors
    commands = [
        ["mg2l.train", f"--resume={folder}", "--trust", "n_iters=5"],
        ["mg2l.evaluate", str(folder), "--trust", "--episodes=1", "--shots", "0", "1"],
        ["mg2l.probe", str(folder), "--trust", "--episodes", "1", "--by", "pca"],
        ["mg2l.export", str(folder), "--trust"],
        ["mg2l.report.__main__", "runs", "--out=report.html"],
        [
            *("mg2l.sweep", "--algos", "custom_algorithm.yaml", "--envs", "mpe-spread"),
            *("--seeds", "3", "--folder=sweep", "--then", "evaluate"),
            *[word for word in WORDS if not word.startswith(("--", "seed="))],
        ],
    ]
    lines, errors = run(own, *commands)
    done = [line for line in lines if line.partition(" ")[0] in {name for name, *_ in commands}]
    assert done == [f"{name} 0" for name, *_ in commands], errors
    assert {"evaluation.json", "probe.json", "export"} <= {x.name for x in folder.iterdir()}
    manifest = json.loads((folder / "export" / "export.json").read_text())
    assert manifest["algorithm"] == "reward-prediction"
    assert len(manifest["agents"]) == 2
    assert len(list((own / "sweep").glob("*/*/*-sd3/evaluation.json"))) == 1


def test_its_keys_are_like_those_of_the_package(own: Path, capsys: pytest.CaptureFixture) -> None:
    path = own / "custom_algorithm.yaml"
    text = cli.help_text([f"--algo={path}"])
    capsys.readouterr()
    assert "algo, reward-prediction: Representations that predict rewards." in text
    assert "reward_hidden  int in [1, 4096], default 32, here 64" in text
    assert "Width of the hidden layer that predicts a reward." in text
    assert "bounded_by" not in text
    for words, message in [
        (["reward_hiden=8"], "unknown key 'reward_hiden'; did you mean 'reward_hidden'?"),
        (["reward_hidden=0"], r"reward_hidden must be in \[1, 4096\], got 0"),
    ]:
        with pytest.raises(ConfigError, match=message):
            load_config(algo=str(path), overrides=words)
    assert read_sources("default", str(path), "mpe-spread").schema.algorithm == "reward-prediction"


def test_code_that_a_run_names_is_checked(own: Path, tmp_path: Path) -> None:
    """A stranger's name needs a word, its hash, and to be registered by what it names."""
    config = load_config(algo="mappo")
    tree = {"algo_name": "stranger", "env": {"family": "mpe-spread"}, "algo": {"module": "x.py"}}
    path = tmp_path / "config.yaml"
    (tmp_path / "x.py").write_text("raise SystemExit(7)")
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError, match="only with --trust"):
        config_from_yaml(path)
    with pytest.raises(ConfigError, match="has no module_sha256"):
        config_from_yaml(path, trust=True)
    tree["algo"] = {"module": "x.py", "module_sha256": "0" * 64}
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError, match=r"x\.py has sha256 .*, expected 0000"):
        config_from_yaml(path, trust=True)
    own_file = tmp_path / "mine.yaml"
    for code, message in [
        ("import sys; sys.exit(0)", "cannot be imported: SystemExit: 0"),
        ("", "unknown algorithm 'mine'"),
    ]:
        (tmp_path / "mine.py").write_text(code)
        own_file.write_text("algo_name: mine\nmodule: mine.py\n")
        with pytest.raises(ConfigError, match=message):
            load_config(algo=str(own_file))
    # Nothing is imported for an algorithm that is known.
    own_file.write_text("algo_name: mappo\nmodule: x.py\n")
    assert load_config(algo=str(own_file)) == config


PLUGIN = """
from mg2l.algorithms.mappo.algorithm import MAPPO
from mg2l.config.algorithms import register_algorithm
class Plugged(MAPPO):
    '''From a package.'''
register_algorithm("plugged", Plugged)
"""


def test_an_installed_package_adds_algorithms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_plugins(monkeypatch, tmp_path, "algorithms", PLUGIN)
    assert {"plugged", "mg2l"} <= {*algorithms.names()}
    config, options = cli.parse(["--algo=plugged", "ppo_epoch=3"])
    assert (options.algo, config.algo_name, config.ppo.ppo_epoch) == ("plugged", "plugged", 3)
    assert "--algo=plugged\n      From a package." in cli.help_text([])
    for name, message in [
        ("pluged", "did you mean 'plugged'"),
        ("broken", r"algorithm 'broken' of the package plug .* ModuleNotFoundError"),
        ("idle", "is not registered by idle_algorithms"),
    ]:
        with pytest.raises(ConfigError, match=message):
            load_config(algo=name)


def test_names_and_classes_are_checked() -> None:
    register_algorithm("mappo", MAPPO)  # once more
    with pytest.raises(ValueError, match="'oracle' is registered already"):
        register_algorithm("oracle", MAPPO)
    with pytest.raises(ValueError, match="must be a subclass of TaskInference"):
        register_algorithm("mine", dict)  # type: ignore[arg-type]
    checks = type("Checks", (MAPPO,), {"check_config": classmethod(lambda cls, config: None)})
    with pytest.raises(ValueError, match="has check_config, which nothing calls"):
        register_algorithm("checks", checks)
