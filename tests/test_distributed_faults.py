"""What ends one of W processes ends all, or costs nothing but the time since the checkpoint."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from method_helpers import TINY, overrides
from test_distributed import ROOT, launch, torchrun

from mg2l.training.checkpoint import iterations
from mg2l.training.metrics import read_metrics

pytestmark = pytest.mark.ci

SIZES = {**TINY, "n_ae_rollout_threads": 4, "update_contexts": 12, "max_ep_len": 20}
RUN = {**SIZES, "save_model": True, "save_interval": 2, "n_iters": 12, "keep_checkpoints": 9}


def words(folder: Path, algo: str = "mg2l", **values: Any) -> list[str]:
    return [f"--algo={algo}", f"--folder={folder}", *overrides({**RUN, **values})]


def rows(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run, without times."""
    return [
        {k: v for k, v in row.items() if not k.startswith("time/") and k != "env_steps_per_s"}
        for row in read_metrics(folder / "metrics.jsonl")
    ]


@pytest.fixture
def start() -> Iterator[Callable[[list[str]], subprocess.Popen[str]]]:
    """Starts commands, each in a session of its own; none outlives the test."""
    started = []

    def start(command: list[str]) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=pipe, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            for pid in (*workers(process.pid), process.pid):
                os.kill(pid, signal.SIGKILL)
            process.communicate()


def workers(launcher: int) -> list[int]:
    """Processes that torchrun has started, by rank."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    ranks: dict[int, int] = {}
    for child in children:
        settings = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks |= {int(x[5:]): int(child) for x in settings if x.startswith(b"RANK=")}
    return [ranks[rank] for rank in sorted(ranks)]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not condition():
        if process.poll() is not None:
            pytest.fail(f"ended too early: {process.communicate()[0]}")
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    done = launch(torchrun(2, "-m", "mg2l.train", *words(folder)))
    assert done.returncode == 0, done.stderr
    return folder


def test_sigterm_and_kill_9_leave_no_trace_in_the_metrics(start, undisturbed, tmp_path):
    folder = tmp_path / "run"
    command = torchrun(2, "-m", "mg2l.train", *words(folder), restarts=2)
    first = start(command)
    wait_for(lambda: bool(iterations(folder / "checkpoints")), first)
    first.send_signal(signal.SIGTERM)
    said = first.communicate(timeout=300)[0]
    last = iterations(folder / "checkpoints")[-1]
    assert f"stopped after iteration {last}" in said
    assert last < 12
    assert len(rows(folder)) == last

    second = start(command)
    wait_for(lambda: iterations(folder / "checkpoints")[-1] > last, second)
    os.kill(workers(second.pid)[1], signal.SIGKILL)
    said = second.communicate(timeout=500)[0]
    assert second.returncode == 0, said
    assert rows(folder) == rows(undisturbed)


@pytest.mark.parametrize("size", [1, 4])
def test_a_checkpoint_is_resumed_with_any_number_of_processes(undisturbed, tmp_path, size):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    for iteration in iterations(folder / "checkpoints"):
        if iteration > 10:
            shutil.rmtree(folder / "checkpoints" / f"{iteration:08d}")
    done = launch(torchrun(size, "-m", "mg2l.train", *words(folder)))
    assert done.returncode == 0, done.stderr
    for one, other in zip(rows(undisturbed), rows(folder), strict=True):
        assert other["return"] == pytest.approx(one["return"], rel=1e-3)
        assert other["loss/value"] == pytest.approx(one["loss/value"], rel=1e-2)


@pytest.mark.parametrize(
    ("fault", "rank", "line"),
    [
        ("nan", 1, "gave a reward of nan to agent 0 in sub-environment 2,"),
        ("env", 1, "the simulator is gone"),
        ("disk", 0, "cannot be written: File too large"),
    ],
)
def test_a_fault_of_one_process_ends_all_with_its_line(tmp_path, fault, rank, line):
    script = str(ROOT / "tests/distributed_faults.py")
    done = launch(torchrun(2, script, fault, str(rank), *words(tmp_path / "run", "mappo")))
    assert done.returncode != 0
    errors = [text for text in done.stderr.splitlines() if text.startswith("error:")]
    assert len(errors) == 1, done.stderr
    assert line in errors[0]
    assert "Traceback" not in done.stderr.partition("ChildFailedError")[0].partition("E1")[0]


def test_numbers_that_cannot_be_divided_are_refused(tmp_path):
    done = launch(torchrun(3, "-m", "mg2l.train", *words(tmp_path / "run", "mappo")))
    errors = [text for text in done.stderr.splitlines() if text.startswith("error:")]
    assert errors == ["error: n_rollout_threads=4 must be a multiple of 3, the number of processes"]
    assert "exitcode  : 2" in done.stderr
    assert not (tmp_path / "run").exists()
