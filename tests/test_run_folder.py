"""The folder of a run, the device it uses, and how it is stopped."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

import mg2l.train as train
from mg2l import cli
from mg2l.config.saved import config_from_yaml
from mg2l.core.schema import ConfigError
from mg2l.experience.finite import NonFiniteLossError, require_finite
from mg2l.training import folder as folder_module
from mg2l.training import loop
from mg2l.training.device import select_device
from mg2l.training.finite import save_batch
from mg2l.training.folder import RunFolder
from mg2l.training.stop import GracefulStop


@pytest.fixture
def choice(tmp_path):
    return cli.parse([f"main_save_path={tmp_path}", "--env=mpe-prey", "--algo=mappo", "seed=5"])


def test_name_and_contents(choice, tmp_path):
    config, options = choice
    with RunFolder.open(config, options) as run:
        assert run.path.parent == tmp_path / "mpe-prey" / "mappo"
        stamp, _, seed = run.path.name.rpartition("-")
        time.strptime(stamp, "%Y%m%d-%H%M%S")
        assert seed == "sd5"
        assert config_from_yaml(run.config_path) == config
        notes = json.loads(run.environment_path.read_text())
    assert notes["names"] == {"expt": "default", "algo": "mappo", "env": "mpe-prey"}
    started = notes["started"]
    assert started["packages"]["torch"] == torch.__version__
    assert started["command"][1:] == sys.argv
    assert started["cores"] == os.cpu_count()
    assert started["python"].startswith("3.")
    assert notes["resumed"] == []
    assert [path.name for path in run.path.parent.iterdir()] == [run.path.name]


def test_the_commit_of_the_source_is_noted(choice):
    root = Path(folder_module.__file__).resolve().parents[2]
    if not (root / ".git").exists():
        pytest.skip("not a checkout")
    head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True)
    assert folder_module.environment()["commit"] == head.stdout.decode().strip()


def test_runs_of_the_same_second_differ(choice, monkeypatch):
    config, options = choice
    monkeypatch.setattr(time, "strftime", lambda *_: "20250101-000000")
    runs = [RunFolder.create(config, options) for _ in range(3)]
    names = [run.path.name for run in runs]
    assert names == [f"20250101-000000-sd5{end}" for end in ("", "-2", "-3")]
    for run in runs:
        run.close()


def test_threads_that_start_at_once_do_not_interfere(choice, monkeypatch):
    config, options = choice
    monkeypatch.setattr(folder_module, "environment", dict)
    monkeypatch.setattr(time, "strftime", lambda *_: "20250101-000000")
    runs = []
    threads = [
        threading.Thread(target=lambda: runs.append(RunFolder.create(config, options)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({run.path for run in runs}) == 8


def test_a_place_that_cannot_be_written(choice, tmp_path):
    config, options = choice
    (tmp_path / "mpe-prey").write_text("a file")
    with pytest.raises(ConfigError, match=r"main_save_path=.*cannot make"):
        RunFolder.create(config, options)


def test_resume(choice):
    config, options = choice
    with RunFolder.create(config, options) as run:
        pass
    again, resumed = cli.parse([f"--resume={run.path}", "n_iters=77"])
    with RunFolder.open(again, resumed) as same:
        assert same.path == run.path
        assert config_from_yaml(same.config_path).n_iters == 77
    notes = json.loads(run.environment_path.read_text())
    assert len(notes["resumed"]) == 1
    assert notes["resumed"][0]["cpu"] == notes["started"]["cpu"]


def test_a_run_has_one_process_at_a_time(choice):
    config, options = choice
    run = RunFolder.create(config, options)
    again = cli.parse([f"--resume={run.path}"])
    with pytest.raises(ConfigError, match="another process is at work"):
        RunFolder.open(*again)
    run.close()
    RunFolder.open(*again).close()


def test_device_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert select_device(-1) == select_device(3) == torch.device("cpu")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError("Unable to allocate 8 TiB"), "not fit into memory: Unable to allocate 8 TiB"),
        (
            RuntimeError("can't allocate memory: 9 bytes\nat ..."),
            "memory: can't allocate",
        ),
        (ValueError("agents must share one action space"), "agents must share one action space"),
        (None, "obs=cnn needs observations that begin with an image"),
    ],
)
def test_what_cannot_be_built_is_said_before_there_is_a_folder(
    tmp_path, monkeypatch, choice, error, line
):
    config, options = choice
    if error is not None:
        monkeypatch.setattr(loop, "Learner", Mock(side_effect=error))
    config = dataclasses.replace(
        config, gpu_id=-1, policy=dataclasses.replace(config.policy, obs="cnn")
    )
    with pytest.raises(ConfigError, match=line) as caught:
        train.run(config, options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_device_with_gpus(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert select_device(1) == torch.device("cuda", 1)
    assert select_device(-1) == torch.device("cpu")
    assert capsys.readouterr().out == ""
    with pytest.raises(
        ConfigError, match=r"gpu_id=2: this machine has 2 GPUs; choose one of 0\.\.1"
    ):
        select_device(2)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_the_first_signal_asks_the_second_acts(capfd, number, code):
    def usual(*_):
        raise InterruptedError

    before = signal.signal(number, usual)
    try:
        with GracefulStop() as stop:
            assert (stop.requested, stop.exit_code) == (False, 0)
            os.kill(os.getpid(), number)
            assert (stop.requested, stop.exit_code) == (True, code)
            assert "stopping after this iteration" in capfd.readouterr().err
            with pytest.raises(InterruptedError):
                os.kill(os.getpid(), number)
        assert signal.getsignal(number) is usual
    finally:
        signal.signal(number, before)


def test_handlers_are_given_back_after_an_error():
    before = signal.getsignal(signal.SIGINT)

    def work():
        with GracefulStop():
            assert signal.getsignal(signal.SIGINT) is not before
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert signal.getsignal(signal.SIGINT) is before


def test_in_another_thread_signals_are_left_alone():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work():
        with GracefulStop() as stop:
            seen.append((signal.getsignal(signal.SIGINT), stop.requested))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, False)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, bad):
    from safetensors import safe_open

    batch = {"obs": torch.arange(6.0).view(2, 3), "ids": torch.tensor([4, 5])}
    with pytest.raises(NonFiniteLossError) as raised:
        require_finite("loss/critic", torch.tensor([[1.0, bad]], requires_grad=True), batch)
    error = save_batch(raised.value, 12, tmp_path)
    assert str(error).startswith(f"iteration 12: loss/critic is {bad}; the run stops, ")
    assert (error.iteration, error.term) == (12, "loss/critic")
    assert error.path == tmp_path / "nonfinite-00000012.safetensors"
    with safe_open(error.path, "pt") as file:
        assert file.metadata()["term"] == "loss/critic"
        assert torch.equal(file.get_tensor("obs"), batch["obs"])
        assert torch.equal(file.get_tensor("ids"), torch.tensor([4, 5]))


def test_finite_losses_pass():
    require_finite("finite, but not its sum", torch.full((9,), 3e38), {})
    require_finite("no floating point", torch.ones(2, 2).int(), {})
