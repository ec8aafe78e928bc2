"""A grid of runs that loses nothing, whatever is killed."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from unittest.mock import Mock

import pytest
from method_helpers import tiny_words

from mg2l import cli, sweep
from mg2l.cli import scheduler
from mg2l.cli.grid import grid
from mg2l.launch import local
from mg2l.launch.local import Local
from mg2l.training.metrics import read_metrics

TINY = tiny_words(n_iters=None, save_model=True, save_interval=1)


def words(folder, *more, n_iters=2, algos=("mappo", "oracle"), seeds=(0,), jobs=2):
    return [
        *("--algos", *algos, "--envs", "mpe-spread", "--seeds", *map(str, seeds)),
        *("--jobs", str(jobs), "--folder", str(folder), *TINY, *more, f"n_iters={n_iters}"),
    ]


def begin(*argv):
    return subprocess.Popen(
        [sys.executable, "-m", "mg2l.sweep", *argv],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(process, status=0):
    out, _ = process.communicate(timeout=120)
    assert process.returncode == status, out
    return out


def states(folder):
    lines = (folder / "sweep.jsonl").read_text().splitlines()
    return {(row["algo"], row["seed"]): row for row in map(json.loads, lines)}


def iterations(folder):
    found = {}
    for path in folder.glob("*/*/*/metrics.jsonl"):
        key = (path.parts[-3], int(path.parts[-2].partition("-sd")[2]))
        assert key not in found, "a run was begun twice"
        found[key] = [row["iteration"] for row in read_metrics(path)]
    return found


def jobs_of(*argv):
    return grid(sweep.parse(argv))


def wait_for(condition, what):
    for _ in range(3000):
        if found := condition():
            return found
        time.sleep(0.02)
    raise TimeoutError(what)


def children(pid):
    text = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in text.stdout.split()]


def alive(pid):
    return os.path.exists(f"/proc/{pid}") and " Z " not in open(f"/proc/{pid}/stat").read()


def test_order_and_overrides(tmp_path):
    argv = [
        *("--algos", "mg2l", "mappo", "--envs", "mpe-spread", "mpe-hunting"),
        *("--seeds", "0", "1"),
    ]
    argv += ["--folder", str(tmp_path), "--set", "mpe-hunting:n_iters=7", "n_iters=9"]
    jobs = jobs_of(*argv)
    assert [(job.seed, job.env, job.algo) for job in jobs] == [
        (seed, env, algo)
        for seed in (0, 1)
        for env in ("mpe-spread", "mpe-hunting")
        for algo in ("mg2l", "mappo")
    ]
    assert {(job.env, job.n_iters) for job in jobs} == {("mpe-spread", 9), ("mpe-hunting", 7)}


def test_overrides_may_follow_options_of_many_words(tmp_path):
    argv = ["--folder", str(tmp_path), "--algos", "mappo", "gamma=0.5", "--envs", "mpe-spread"]
    argv += ["n_iters=7", "--set", "mappo:n_iters=9", "--seeds", "3", "4", "ppo.clip_param=0.1"]
    argv += ["--then", "evaluate", "max_ep_len=10"]
    first, second = jobs_of(*argv)
    assert (first.algo, first.seed, second.seed, first.n_iters) == ("mappo", 3, 4, 9)
    assert first.analyses == ["evaluate"]
    assert {"gamma=0.5", "ppo.clip_param=0.1", "max_ep_len=10"} <= {*first.words}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--set", "mpe-rain:n_iters=1"], "expected NAME:KEY=VALUE"),
        (["n_iter=3"], "n_iters"),
        (["save_model=false"], "resumes from checkpoints"),
        (["--algos", "mappo", "mappo"], "anything twice"),
        (["seed=3"], "seed=3: a sweep is given this by --seeds"),
        (["main_save_path=x"], "main_save_path=x: a sweep is given this by --folder"),
        (["n_training_threads=many"], "n_training_threads must be an integer"),
    ],
)
def test_a_mistake_is_reported_before_anything_starts(tmp_path, more, said):
    argv = ["--algos", "mappo", "--envs", "mpe-spread", "--folder", str(tmp_path / "s"), *more]
    with pytest.raises(cli.ConfigError, match=said):
        jobs_of(*argv)
    assert not (tmp_path / "s").exists()


def test_runs_the_grid_and_a_larger_one_continues(tmp_path):
    folder = tmp_path / "s"
    out = finish(begin(*words(folder)))
    assert "2 of 2 done, 0 failed" in out
    assert iterations(folder) == {("mappo", 0): [1, 2], ("oracle", 0): [1, 2]}
    out = finish(begin(*words(folder, n_iters=3, seeds=(0, 1), algos=("mappo",))))
    assert "mappo-sd0: resumes" in out
    assert "mappo-sd1: starts" in out
    assert iterations(folder) == {
        ("mappo", 0): [1, 2, 3], ("mappo", 1): [1, 2, 3], ("oracle", 0): [1, 2],
    }  # fmt: skip
    assert {key: row["state"] for key, row in states(folder).items()} == {
        ("mappo", 0): "done", ("mappo", 1): "done", ("oracle", 0): "done",
    }  # fmt: skip
    assert "0 of 2 runs to do" in finish(
        begin(*words(folder, n_iters=3, seeds=(0, 1), algos=("mappo",)))
    )


def test_analyses_what_is_trained(tmp_path):
    argv = ["--then", "evaluate", *words(tmp_path / "s", algos=("mappo",))]
    out = finish(begin(*argv))
    assert "mappo-sd0: evaluate is next" in out
    (path,) = tmp_path.glob("s/mpe-spread/mappo/*/evaluation.json")
    first = path.stat().st_mtime_ns
    assert "0 of 1 runs to do" in finish(begin(*argv))
    assert path.stat().st_mtime_ns == first
    finish(begin(*argv[:-1], "n_iters=3"))
    assert path.stat().st_mtime_ns > first
    assert json.loads(path.read_text())["iteration"] == 3
    os.utime(path, (0, 0))  # as a copy may have it
    again = [*argv[:-1], "n_iters=3"]
    assert "0 of 1 runs to do" in finish(begin(*again))
    for damaged in ("[]", '{"iteration": "3"}', "\0"):
        path.write_text(damaged)
        (job,) = jobs_of(*again)
        assert job.stage() == "evaluate"

    algos = ("mappo", "mg2l", "focal", "varibad")
    analyses = {
        job.algo: job.analyses
        for job in jobs_of("--then", "evaluate", "probe", *words(tmp_path, algos=algos))
    }
    both = ["evaluate", "probe"]
    assert analyses == {"mappo": both[:1], "mg2l": both, "focal": both, "varibad": both[:1]}


def test_kill_9_of_a_job_and_of_the_sweep(tmp_path):
    folder = tmp_path / "s"
    argv = words(folder, n_iters=60, algos=("mappo",), jobs=1)
    process = begin(*argv)
    wait_for(lambda: any(len(rows) > 4 for rows in iterations(folder).values()), "iterations")
    (job,) = children(process.pid)
    os.kill(job, signal.SIGKILL)
    (second,) = wait_for(lambda: [c for c in children(process.pid) if c != job], "a new job")
    process.send_signal(signal.SIGKILL)
    out = finish(process, -signal.SIGKILL)
    assert "starts again (status -9" in out
    wait_for(lambda: not alive(second), "the end of the job whose sweep was killed")
    finish(begin(*argv))
    assert iterations(folder) == {("mappo", 0): [*range(1, 61)]}
    assert states(folder)["mappo", 0]["state"] == "done"


def test_asked_to_stop(tmp_path):
    folder = tmp_path / "s"
    argv = words(folder, n_iters=5000, algos=("mappo",), jobs=1)
    process = begin(*argv)
    wait_for(lambda: any(iterations(folder).values()), "iterations")
    process.send_signal(signal.SIGINT)
    finish(process, 130)
    row = states(folder)["mappo", 0]
    assert row["state"] == "stopped"
    assert row["iterations"] == len(iterations(folder)["mappo", 0])


def test_what_cannot_succeed_is_tried_once_and_reported(tmp_path):
    folder = tmp_path / "s"
    finish(begin(*words(folder, algos=("mappo",))))
    out = finish(begin(*words(folder, "gamma=0.5", n_iters=3)), 1)  # another run than before
    assert "starts again" not in out
    assert "1 of 2 done, 1 failed" in out
    row = states(folder)["mappo", 0]
    assert (row["state"], row["attempts"]) == ("failed", 1)
    assert "gamma=0.5 conflicts with --resume" in row["error"]
    # The table is that of mg2l.compare: gamma distinguishes the two only within an algorithm.
    assert "| mpe-spread | oracle | 1 | 3 | 120 |" in out


def ended(tmp_path, *endings):
    """State of a job after attempts that end with these statuses and last lines."""
    (job,) = jobs_of(*words(tmp_path, algos=("mappo",)))
    grid = scheduler.Sweep([job], tmp_path, Local(1))
    job.log.parent.mkdir(exist_ok=True)
    for status, line in endings:
        assert job.state == "waiting"
        job.log.write_text(f"{line}\n")
        job.state, job.attempts = "running", job.attempts + 1
        grid.stages[job.name] = "train"
        grid.running[job.name] = (job, Mock(poll=Mock(return_value=status)))
        assert grid.collect(stopping=False)
    return job.state


def test_what_fails_is_tried_again(tmp_path):
    def state(*endings):
        return ended(tmp_path, *endings)

    assert state((2, "error: a mistake")) == "failed"
    assert state((1, "iteration 3: loss is nan")) == "waiting"
    assert state((1, "iteration 3: loss is nan"), (1, "iteration 3: loss is nan")) == "failed"
    assert state((1, "iteration 3: crashed"), (1, "iteration 9: crashed")) == "waiting"
    assert state((-9, "3/9"), (-9, "3/9")) == "waiting"
    assert state((-9, "3/9"), (-9, "3/9"), (-9, "3/9")) == "failed"


def test_a_run_in_which_a_process_is_at_work_is_no_mistake(tmp_path):
    run = tmp_path / "mpe-spread" / "mappo" / "20260101-000000-sd0"
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert ended(tmp_path, (2, "error: another process is at work")) == "waiting"
    assert ended(tmp_path, (2, "error: another process is at work")) == "failed"


def test_threads_may_be_chosen(tmp_path):
    def chosen(*more):
        jobs = jobs_of(*words(tmp_path, *more))
        given = [word for job in jobs for word in job.command(5) if "n_training_threads" in word]
        return [word.partition("=")[2] for word in given]

    assert chosen() == ["5", "5"]
    assert chosen("n_training_threads=0") == ["5", "5"]
    assert chosen("n_training_threads=3") == ["3", "3"]
    assert chosen("n_training_threads=3", "--set", "oracle:n_training_threads=2") == ["3", "2"]


def test_damaged_runs_and_files_stop_no_sweep(tmp_path):
    folder = tmp_path / "s"
    (folder / "mpe-spread" / "mappo").mkdir(parents=True)
    mine = tmp_path / "mine"
    mine.write_text("mine")
    (folder / "sweep.jsonl.partial").symlink_to(mine)
    kept = json.dumps({"algo": "other", "env": "mpe-spread", "seed": 0})
    (folder / "sweep.jsonl").write_text(f'{kept}\n[1]\n{{"algo": 3}}\nnonsense\n{"[" * 9999}\n')
    bad = folder / "mpe-spread" / "oracle" / "20260101-000000-sd0"
    bad.mkdir(parents=True)
    (bad / "metrics.jsonl").write_text("[]\n")
    (bad / "config.yaml").write_text("a: &a [*a]\n")
    (bad / ".lock").symlink_to(mine)
    out = finish(begin(*words(folder, "n_training_threads=1")), 1)
    assert "2 at once, 1 threads each" in out
    assert "1 of 2 done, 1 failed" in out
    assert f"skipped: {bad / 'metrics.jsonl'}" in out
    assert "| mpe-spread | mappo | 1 | 2 | 80 |" in out
    assert mine.read_text() == "mine"
    rows = [json.loads(line) for line in (folder / "sweep.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    assert rows[0] == json.loads(kept)


def test_two_sweeps_cannot_share_a_folder(tmp_path):
    with scheduler.own(tmp_path), pytest.raises(cli.ConfigError, match="another sweep is at work"):
        scheduler.own(tmp_path)


def test_memory_keeps_a_second_job_waiting(tmp_path, monkeypatch):
    (job,) = jobs_of(*words(tmp_path, algos=("mappo",)))
    grid = scheduler.Sweep([job], tmp_path, Local(2))
    assert grid.room()
    with subprocess.Popen(["sleep", "20"]) as process:
        grid.running["x"] = (job, process)
        assert grid.room()
        monkeypatch.setattr(local, "LEAST_MEMORY", 2**60)
        full = scheduler.Sweep([job], tmp_path, Local(2))
        full.running = grid.running
        assert not full.room()
        process.kill()
