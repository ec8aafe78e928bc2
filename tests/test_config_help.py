"""``--help``, ``--resume`` and exit statuses of the command line."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from config_helpers import refusal

from mg2l import cli
from mg2l.config import files as loading
from mg2l.config.algorithms import algorithms
from mg2l.config.keys import Schema
from mg2l.envs import registry

FAMILIES = registry.names()
ALGORITHMS = [("mpe-spread", name) for name in algorithms.names()]


def test_help_names_everything(capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.parse(["--help=all"])
    assert exit_info.value.code == 0
    text, err = capsys.readouterr()
    assert err == ""
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    words = " ".join(text.split())
    assert "--env=mpe-spread [default] Agents that must find out which landmarks to cover." in words
    for kind in loading.KINDS:
        for name in loading.available(kind):
            assert f"--{kind}={name}" in text
            head = []
            for line in loading.find(kind, name).read_text().splitlines():
                if not line.startswith("# "):
                    break
                head.append(line[2:])
            assert " ".join(head) in words
    for family, algorithm in [*((name, "mg2l") for name in FAMILIES), *ALGORITHMS]:
        schema = Schema(family, algorithm)
        env = text[text.index(f"env, family {family}:") :].splitlines()
        algo = text[text.index(f"algo, {algorithm}:") :].splitlines()
        for path, key in schema.by_path.items():
            place = {"env": env, "algo": algo}.get(path.partition(".")[0], lines)
            heading = next(line for line in place if line.startswith(f"  {key.name}  "))
            assert key.kind.split(" |")[0] in heading
            assert f"default {cli.shown(key.default)}" in words
            assert key.help.replace("``", "") in words


def test_the_command_line_is_read_without_torch():
    """A third of the time of ``import torch`` is what help and mistakes take."""
    code = (
        "import sys, mg2l.train; from mg2l import cli;"
        "cli.help_text(['--help=all']); cli.read(['--algo=corro', '--env=rware-layout']);"
        "cli.read(['--algo=mate']); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_is_of_the_chosen_environment_and_algorithm():
    text = cli.help_text(["--algo=focal", "--env=rware-layout"])
    for shown in ("algo, focal:", "distance_floor", "env, family rware-layout:", "sensor_range"):
        assert shown in text
    for other in ("algo, mg2l:", "bounded_by", "env, family mpe-spread:", "n_landmarks"):
        assert other not in text
        assert other in cli.help_text(["--algo=focal", "--env=rware-layout", "--help=all"])
    assert len(text.splitlines()) < 400


def test_help_shows_what_the_chosen_files_set():
    paper = cli.help_text(["--algo=mg2l-paper"])
    assert "update_transitions  int in [1, 1000000], default 10, here 100" in paper
    assert "update_transitions  int in [1, 1000000], default 10\n" in cli.help_text([])


def test_the_module_refuses_with_status_2():
    done = subprocess.run(
        [sys.executable, "-m", "mg2l.train", "clip_parm=0.3"], capture_output=True, text=True,
        cwd=Path(__file__).parent,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "error: unknown key 'clip_parm'; did you mean 'clip_param'?\n"
    assert done.stdout == ""


@pytest.fixture
def run(tmp_path):
    """A run folder with the files that the command line reads."""
    from mg2l.training.folder import RunFolder

    config, options = cli.parse([f"main_save_path={tmp_path}", "--algo=mappo", "gamma=0.9"])
    with RunFolder.create(config, options) as folder:
        return folder.path, config


def test_resume_takes_the_config_of_the_run(run):
    path, config = run
    resumed, options = cli.parse([f"--resume={path}", "--resume-previous"])
    assert resumed == config
    assert options == cli.Options("default", "mappo", "mpe-spread", path, True)
    longer, _ = cli.parse([f"--resume={path}", "n_iters=9999", "--algo=mappo"])
    assert longer == dataclasses.replace(config, n_iters=9999)


def test_resume_refuses_what_would_change_the_run(capsys, run):
    path, _ = run
    err = refusal(capsys, f"--resume={path}", "gamma=0.8")
    assert "ppo.gamma=0.8 conflicts" in err
    assert "0.9" in err
    err = refusal(capsys, f"--resume={path}", "--algo=mg2l")
    assert "--algo=mg2l conflicts" in err
    assert "--algo=mappo" in err
    assert "did you mean 'gamma'" in refusal(capsys, f"--resume={path}", "gama=0.8")
    (path / "environment.json").write_text("{")
    assert "environment.json: cannot be read" in refusal(capsys, f"--resume={path}")


def test_help_into_a_pipe_that_is_closed_early():
    command = f"{sys.executable} -m mg2l.train --help | head -n 1"
    run = subprocess.run(command, shell=True, check=False, capture_output=True, text=True)
    assert run.stdout.startswith("python -m mg2l.train")
    assert run.stderr == ""
