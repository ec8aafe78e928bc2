"""A grid of runs that loses nothing, whatever is killed."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from mg2l import cli, sweep
from mg2l.run.metrics import read_metrics

TINY = [
    *("save_interval=1", "gpu_id=-1", "max_ep_len=8", "n_rollout_threads=4", "ppo_epoch=1"),
    *("num_mini_batch=1", "algo_hidden_size=8", "log_tensorboard=false"),
]


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
    return sweep.grid(sweep.parse(argv))


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
        (["save_model=false"], "goes on from checkpoints"),
        (["--algos", "mappo", "mappo"], "anything twice"),
    ],
)
def test_a_mistake_is_told_before_anything_starts(tmp_path, more, said):
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
    assert "mappo-sd0: goes on" in out
    assert "mappo-sd1: begins" in out
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


def test_what_fails_is_tried_again_and_told(tmp_path):
    folder = tmp_path / "s"
    finish(begin(*words(folder, algos=("mappo",))))
    out = finish(begin(*words(folder, "gamma=0.5", n_iters=3)), 1)  # another run than before
    assert out.count("starts again") == sweep.ATTEMPTS - 1
    assert "1 of 2 done, 1 failed" in out
    row = states(folder)["mappo", 0]
    assert (row["state"], row["attempts"]) == ("failed", sweep.ATTEMPTS)
    assert "gamma=0.5 conflicts with --resume" in row["error"]


def test_two_sweeps_cannot_share_a_folder(tmp_path):
    with sweep.own(tmp_path), pytest.raises(cli.ConfigError, match="another sweep is at work"):
        sweep.own(tmp_path)


def test_memory_keeps_a_second_job_waiting(tmp_path, monkeypatch):
    (job,) = jobs_of(*words(tmp_path, algos=("mappo",)))
    grid = sweep.Sweep([job], tmp_path, 2)
    assert grid.room()
    with subprocess.Popen(["sleep", "20"]) as process:
        grid.running["x"] = (job, process)
        assert grid.room()
        monkeypatch.setattr(sweep, "LEAST_MEMORY", 2**60)
        full = sweep.Sweep([job], tmp_path, 2)
        full.running = grid.running
        assert not full.room()
        process.kill()
