"""What every program of mg2l has in common: one line for errors, signals, and its output."""

from __future__ import annotations

import errno
import io
import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_helpers import small_run, status

import mg2l.train as train
from mg2l import cli, evaluate
from mg2l.core.files import WriteError, read_json
from mg2l.core.schema import ConfigError
from mg2l.training import checkpoint, loop
from mg2l.training.metrics import read_metrics
from mg2l.training.stop import GracefulStop, Interrupted, Output

MEMORY = "error: this does not fit into memory: "
ENOSPC = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("two\nlines"), 2, "error: two lines\n"),
        (ConfigError("a \x1b[31m colour"), 2, "error: a \\x1b[31m colour\n"),
        (WriteError("x: cannot be written"), 1, "error: x: cannot be written\n"),
        (ENOSPC, 1, "error: No space left on device\n"),
        (
            PermissionError(errno.EACCES, "Permission denied", "f"),
            1,
            "error: f: Permission denied\n",
        ),
        (MemoryError("Unable to allocate 9 GiB"), 1, f"{MEMORY}Unable to allocate 9 GiB\n"),
        (RuntimeError("you tried to allocate 9\nbytes"), 1, f"{MEMORY}you tried to allocate 9\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (Interrupted(signal.SIGTERM), 143, "error: interrupted by SIGTERM\n"),
    ],
)
def test_errors_are_one_line(capsys, error, code, said):
    @cli.command
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as raised:
        main()
    assert raised.value.code == code
    assert capsys.readouterr().err == said


def test_a_line_has_an_end(capsys):
    with pytest.raises(SystemExit):
        cli.abort("x" * 10**6)
    assert len(capsys.readouterr().err) < 2100


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]
)
def test_signals_tidy_up(capsys, number, code):
    tidied = []

    @cli.command
    def main() -> None:
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        finally:
            tidied.append(number)

    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(SystemExit) as raised:
        main()
    assert (raised.value.code, tidied) == (code, [number])
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)] == handlers


def test_nohup_stays_in_force():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with GracefulStop() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
        cli.command(lambda: os.kill(os.getpid(), signal.SIGHUP))()
    finally:
        signal.signal(signal.SIGHUP, before)


class Breaking(io.StringIO):
    """A file that takes some texts, and then none."""

    def __init__(self, error: OSError, texts: int) -> None:
        super().__init__()
        self.error, self.texts = error, texts

    def write(self, text: str) -> int:
        self.texts -= 1
        if self.texts < 0:
            raise self.error
        return super().write(text)


@pytest.mark.parametrize(
    ("error", "code"), [(BrokenPipeError(errno.EPIPE, "Broken pipe"), 141), (ENOSPC, 1)]
)
def test_an_output_that_breaks_lets_the_work_come_to_an_end(monkeypatch, capsys, error, code):
    worked = []

    @cli.command
    def main() -> None:
        print("seen")
        with GracefulStop() as stop:
            print("lost")
            assert (stop.requested, stop.exit_code) == (True, code)
        worked.append(1)

    file = Breaking(error, texts=2)
    monkeypatch.setattr(sys, "stdout", file)
    with pytest.raises(SystemExit) as raised:
        main()
    assert (raised.value.code, worked, file.getvalue()) == (code, [1], "seen\n")
    assert sys.stdout is file
    said = "error: standard output: cannot be written: No space left on device\n"
    assert capsys.readouterr().err == (said if code == 1 else "")


def test_keys_without_effect_are_named(capsys):
    words = ["lr=0.5", "algo.context_dim=4", "gamma=0.9"]
    assert cli.parse(["--algo=oracle", *words])[0].ppo.gamma == 0.9
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"{name} has no effect: oracle has no such key" for name in ("lr", "algo.context_dim")
    ]
    cli.parse(["--algo=mg2l", *words])
    assert not capsys.readouterr().err


def test_texts_that_the_output_has_no_letters_for():
    raw = io.BytesIO()
    out = Output(io.TextIOWrapper(raw, "ascii"))
    print("é \udcff", file=out, flush=True)
    assert raw.getvalue() == b"\\xe9 \\udcff\n"


@pytest.mark.parametrize("module", ["info", "compare", "envs.benchmark", "envs.replay", "probe"])
def test_a_wrong_word_is_one_line(monkeypatch, capsys, module):
    program = __import__(f"mg2l.{module}", fromlist=["main"])
    words = {"info": []}.get(module, ["--no-such-option"])
    monkeypatch.setattr(sys, "argv", ["program", *words])
    code = status(monkeypatch, program.main, *words)
    err = capsys.readouterr().err
    if module == "info":
        assert (code, err) == (0, "")
    else:
        assert code == 2
        assert err.startswith("error: ")
        assert err.count("\n") == 1


# A disk that is full.


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("runs"))


def fill_at(monkeypatch, call):
    """Let the disk be full from the ``call``-th flush of a file to it on."""
    honest, calls = os.fsync, [0]

    def fsync(handle):
        calls[0] += 1
        if calls[0] >= call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        honest(handle)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("call", [1, 3, 4, 6, 8])
def test_a_full_disk_while_training(trained, tmp_path, monkeypatch, capsys, call):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    before = checkpoint.load(checkpoint.path_of(run / "checkpoints", 4)).state["env_steps"]
    fill_at(monkeypatch, call)
    assert status(monkeypatch, train.main, f"--resume={run}", "n_iters=6") == 1
    monkeypatch.undo()
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "No space left on device" in err
    assert str(run) in err
    last = checkpoint.iterations(run / "checkpoints")[-1]
    assert checkpoint.load(checkpoint.path_of(run / "checkpoints", last)).iteration == last
    assert checkpoint.load(checkpoint.path_of(run / "checkpoints", 4)).state["env_steps"] == before
    assert len(read_metrics(run / "metrics.jsonl")) >= 4
    assert read_json(run / "environment.json", {"names": dict})
    assert status(monkeypatch, train.main, f"--resume={run}", "n_iters=6") == 0


def test_a_run_whose_folder_is_removed_ends(tmp_path, monkeypatch, capsys):
    iterate = loop.iterate

    def removing(learner, iteration, evaluator=None):
        if iteration == 2:
            shutil.rmtree(tmp_path / "runs")
        return iterate(learner, iteration, evaluator)

    monkeypatch.setattr(loop, "iterate", removing)
    with pytest.raises(AssertionError):
        small_run(tmp_path / "runs")
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "metrics.jsonl: cannot be written: it was removed" in err
    assert not (tmp_path / "runs").exists()


def test_results_that_cannot_be_written_are_shown(trained, monkeypatch, capsys):
    fill_at(monkeypatch, 1)
    words = [trained, "--episodes=1", "--shots", 0]
    assert status(monkeypatch, evaluate.main, *words) == 1
    out, err = capsys.readouterr()
    assert "0 shots, uniform" in out
    assert "evaluation.json: cannot be written: No space left on device" in err
    assert err.count("\n") == 1
    assert not list(trained.glob("evaluation*"))


def test_a_terminal_that_is_closed(tmp_path):
    master, slave = pty.openpty()
    words = [sys.executable, "-m", "mg2l.train", "--algo=mappo", "n_iters=100000", "gpu_id=-1",
             "max_ep_len=4", "n_rollout_threads=2", "ppo_epoch=1", "save_interval=100000",
             "log_tensorboard=false", f"main_save_path={tmp_path}"]  # fmt: skip
    process = subprocess.Popen(
        words, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    os.close(slave)
    seen = b""
    while b"MI" not in seen and b"return" not in seen:
        seen += os.read(master, 4096)
    os.close(master)
    assert process.wait(60) == 129
    (run,) = tmp_path.glob("*/*/*")
    (last,) = checkpoint.iterations(run / "checkpoints")
    assert len(read_metrics(run / "metrics.jsonl")) == last
