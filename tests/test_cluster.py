"""Sweeps and searches on a cluster: the same runs, the same metrics, whatever dies."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_helpers import add_node, kill_node, ray_cluster
from method_helpers import TINY, tiny_words

import mg2l
from mg2l import cli, sweep, tune
from mg2l.cli.executors import executor, slurm_options
from mg2l.cli.grid import grid
from mg2l.cli.scheduler import Sweep
from mg2l.launch.slurm import Slurm
from mg2l.launch.work import BUSY, Resources, attend, seat_of
from mg2l.training.metrics import read_metrics
from mg2l.training.seat import Seat

WORDS = tiny_words(n_iters=None, save_model=True, save_interval=1, n_training_threads=1)


def words(folder: Path, *more: str, n_iters: int = 2, seeds: tuple[int, ...] = (0, 1)) -> list[str]:
    return [
        *("--algos", "mappo", "--envs", "mpe-spread", "--seeds", *map(str, seeds)),
        *("--folder", str(folder), *WORDS, *more, f"n_iters={n_iters}"),
    ]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one CPU each."""
    with ray_cluster(1, 1, client=True) as found:
        yield found


def client(cluster: Any) -> str:
    """Address of the head, a node that lives: ``auto`` may choose any node of this machine."""
    return f"ray://127.0.0.1:{cluster.client_port}"


def replace_node(cluster: Any) -> None:
    kill_node(cluster, next(iter(cluster.worker_nodes)))
    add_node(cluster, 1)


def begin(folder: Path, argv: list[str], module: str = "mg2l.sweep") -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    with (folder / "out").open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", module, *argv], stdout=out, stderr=subprocess.STDOUT
        )


def runs(folder: Path) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for path in folder.glob("mpe-spread/mappo/[0-9]*"):
        seed = int(path.name.partition("-sd")[2])
        assert seed not in found, "a run was begun twice"
        found[seed] = path
    return found


def plain(run: Path) -> list[str]:
    """Metrics as texts, without times."""
    return [
        json.dumps({k: v for k, v in row.items() if "time/" not in k and k != "env_steps_per_s"})
        for row in read_metrics(run / "metrics.jsonl")
    ]


def undisturbed(folder: Path, seed: int, n_iters: int) -> list[str]:
    keys: dict[str, Any] = {**TINY, "n_iters": n_iters, "seed": seed}
    return plain(mg2l.train(algo="mappo", main_save_path=str(folder), **keys).folder)


def wait_for(condition, what: str, process: subprocess.Popen[bytes], folder: Path):
    """Wait until a condition holds, as long as the process lives that is to bring it about."""
    for _ in range(6000):
        if found := condition():
            return found
        if process.poll() is not None:
            break
        time.sleep(0.05)
    logs = [folder / "out", *folder.rglob("*.log")]
    said = "\n".join(f"{path}:\n{path.read_text()[-2000:]}" for path in logs if path.exists())
    raise TimeoutError(f"{what} (status {process.returncode})\n{said}")


def least(folder: Path) -> int:
    """Iterations of the run that has come least far."""
    paths = [run / "metrics.jsonl" for run in runs(folder).values()]
    return min((p.read_bytes().count(b"\n") if p.exists() else 0 for p in paths), default=0)


@pytest.mark.ci
def test_a_node_and_the_driver_are_killed(cluster, tmp_path):
    """The runs continue elsewhere, bit for bit."""
    folder, n_iters = tmp_path / "s", 400
    argv = words(folder, "--on", client(cluster), n_iters=n_iters)
    process = begin(folder, argv)
    wait_for(
        lambda: len(runs(folder)) == 2 and least(folder) >= 3, "two runs at work", process, folder
    )
    replace_node(cluster)
    wait_for(
        lambda: "starts again" in (folder / "out").read_text(),
        "one to start again",
        process,
        folder,
    )
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert least(folder) < n_iters
    assert begin(folder, argv).wait(timeout=900) == 0
    out = (folder / "out").read_text()
    assert "starts again (status -9" in out
    assert "2 of 2 done, 0 failed" in out
    for seed, run in runs(folder).items():
        assert plain(run) == undisturbed(tmp_path / "own", seed, n_iters)


@pytest.mark.ci
def test_asked_to_stop_on_the_cluster_of_this_machine(cluster, tmp_path):
    """Tasks that run end with a checkpoint, those that wait leave the queue."""
    folder = tmp_path / "s"
    process = begin(
        folder, words(folder, "--on", "auto", "--cpus", "1", n_iters=5000, seeds=(0, 1, 2))
    )
    wait_for(
        lambda: len(runs(folder)) == 2 and least(folder) >= 2, "iterations of two", process, folder
    )
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=300) == 130
    states = [json.loads(line) for line in (folder / "sweep.jsonl").read_text().splitlines()]
    assert {row["state"] for row in states} == {"stopped"}
    done = sorted(len(plain(run)) for run in runs(folder).values())
    assert sorted(row["iterations"] for row in states) == [0, *done]


@pytest.mark.ci
def test_a_search_whose_node_is_killed(cluster, tmp_path):
    """Population-based training: trials, forks and decisions are those on one machine."""
    more = [
        *("--algo", "mappo", "--search", "ppo.actor_lr=log:1e-4..1e-1", "--scheduler", "pbt"),
        *("--trials", "4", "--interval", "2", "n_iters=4", "max_ep_len=100"),
        *(word for word in WORDS if not word.startswith("max_ep_len=")),
    ]
    calm, folder = tmp_path / "calm", tmp_path / "s"
    assert tune.run(tune.parse([*more, "--folder", str(calm)])) == 0
    argv = [*more, "--folder", str(folder), "--on", client(cluster)]
    process = begin(folder, argv, "mg2l.tune")
    paths = "trials/*/*/*/*/metrics.jsonl"
    wait_for(lambda: [*folder.glob(paths)], "a trial at work", process, folder)
    replace_node(cluster)
    assert process.wait(timeout=900) == 0
    for trial in sorted((calm / "trials").iterdir()):
        (own,) = trial.glob("mpe-spread/*/*")
        (run,) = (folder / "trials" / trial.name).glob("mpe-spread/*/*")
        assert plain(run) == plain(own)
    journals = [(path / "trials.jsonl").read_text().splitlines()[1:] for path in (calm, folder)]
    assert sorted(journals[0]) == sorted(journals[1])


@pytest.mark.ci
def test_slurm_by_submitits_local_executor(tmp_path, monkeypatch):
    """Nothing here is SLURM: submitit runs the same pickled jobs as processes of this machine."""
    monkeypatch.chdir(tmp_path)
    jobs = grid(sweep.parse(words(tmp_path / "s", "--on", "slurm")))
    where = Slurm(Resources(), tmp_path / "s", 2, cluster="local")
    assert Sweep(jobs, tmp_path / "s", where).go() == 0
    for seed, run in runs(tmp_path / "s").items():
        assert plain(run) == undisturbed(tmp_path / "own", seed, 2)


def test_work_that_was_queued_twice_is_done_once(tmp_path):
    (job,) = grid(sweep.parse(words(tmp_path, seeds=(0,))))
    stop = tmp_path / ".stop"
    seat_of(job).mkdir(parents=True)
    with Seat(seat_of(job)):
        assert attend(job, 1, stop, tmp_path) == BUSY
    stop.touch()
    assert attend(job, 1, stop, tmp_path) == BUSY
    assert not runs(tmp_path)
    stop.unlink()
    job.n_iters = 0  # another has done it meanwhile
    (tmp_path / "mpe-spread" / "mappo" / "20260101-000000-sd0").mkdir(parents=True)
    (tmp_path / "mpe-spread" / "mappo" / "20260101-000000-sd0" / "config.yaml").touch()
    assert attend(job, 1, stop, tmp_path) == 0
    assert not job.log.exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--on", "mars"], "--on must be local, ray://HOST:PORT, auto or slurm, got 'mars'"),
        (["--cpus", "2"], "--cpus needs a cluster"),
        (["--slurm", "partition=gpu"], "--slurm needs --on=slurm, got --on=local"),
        (["--on", "slurm", "--slurm", "gpu"], "expected OPTION=VALUE, got 'gpu'"),
        (["--on", "slurm"], "--on=slurm: "),
    ],
)
def test_mistakes(tmp_path, more, said):
    arguments = sweep.parse(words(tmp_path, *more))

    def enter():
        with executor(arguments):
            pass

    with pytest.raises(cli.ConfigError, match=said):
        enter()


def test_options_of_sbatch():
    assert slurm_options(["partition=gpu", "time=240"]) == {"partition": "gpu", "time": 240}
