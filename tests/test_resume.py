"""A run that was interrupted gives bit for bit the metrics of one that was not."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from method_helpers import tiny_words

from mg2l.training import checkpoint
from mg2l.training.metrics import read_metrics

ITERATIONS = 24
SMALL = [
    *("n_training_threads=1", "seed=3"),
    *tiny_words(
        n_iters=ITERATIONS,
        save_interval=3,
        save_model=True,
        sample_ae_interval=2,
        max_ep_len=12,
        num_mini_batch=None,
    ),
]
CHOICES = {
    "mg2l": ["--algo=mg2l", "--env=mpe-spread"],
    "recurrent": ["--algo=mappo", "--env=mpe-hunting", "use_recurrent_policy=true",
                  "data_chunk_length=4", "use_valuenorm=false", "use_popart=true",
                  "num_mini_batch=2"],
}  # fmt: skip


def start(*argv):
    return subprocess.Popen(
        [sys.executable, "-m", "mg2l.train", *map(str, argv)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def finish(process, status=0):
    out, err = process.communicate(timeout=120)
    assert process.returncode == status, err
    return out, err


def run_folder(root):
    (folder,) = root.glob("*/*/*-sd3")
    return folder


def wait_for_lines(root, count):
    """Wait until a run below ``root`` has logged ``count`` iterations."""
    for _ in range(6000):
        for path in root.glob("*/*/*/metrics.jsonl"):
            if path.read_bytes().count(b"\n") >= count:
                return
        time.sleep(0.01)
    raise TimeoutError(f"{root} does not reach {count} iterations")


def wait_for_start(root, times):
    """Wait until the run has been resumed so many times: only then do its lines count."""
    for _ in range(6000):
        for path in root.glob("*/*/*/environment.json"):
            if len(json.loads(path.read_text())["resumed"]) == times:
                return
        time.sleep(0.01)
    raise TimeoutError(f"{root} was not resumed {times} times")


def rows(root):
    """Metrics as texts, without timings."""
    found = []
    for row in read_metrics(run_folder(root) / "metrics.jsonl"):
        kept = {key: value for key, value in row.items()
                if not key.startswith("time/") and key != "env_steps_per_s"}  # fmt: skip
        found.append(json.dumps(kept, sort_keys=True))
    return found


def run_undisturbed(root, choice):
    argv = [*CHOICES[choice], *SMALL]
    finish(start(*argv, f"main_save_path={root}"))
    expected = rows(root)
    assert [json.loads(row)["iteration"] for row in expected] == [*range(1, ITERATIONS + 1)]
    assert len({json.loads(row)["return"] for row in expected}) == ITERATIONS
    return argv, expected


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Folder, command line and metrics of an undisturbed run."""
    root = tmp_path_factory.mktemp("reference")
    return root, *run_undisturbed(root, "mg2l")


def kill_and_resume(root, argv, expected, moments):
    """Kill a run once it has logged so many iterations, resume it, kill it again, ..."""
    rng = random.Random(1)
    process = start(*argv, f"main_save_path={root}")
    for times, lines in enumerate(moments):
        wait_for_start(root, times)
        wait_for_lines(root, lines)
        time.sleep(rng.uniform(0.0, 0.05))
        process.send_signal(signal.SIGKILL)
        finish(process, -signal.SIGKILL)
        before = rows(root)
        assert lines <= len(before) < ITERATIONS, "it was not killed on its way"
        assert before == expected[: len(before)]
        process = start(f"--resume={run_folder(root)}")
    finish(process)
    assert rows(root) == expected


def test_kill_9_at_any_moment(reference, tmp_path):
    _, argv, expected = reference
    kill_and_resume(tmp_path, argv, expected, [1, 5, 10])  # the first before any checkpoint


def test_kill_9_with_memory_minibatches_and_another_family(tmp_path):
    argv, expected = run_undisturbed(tmp_path / "one", "recurrent")
    kill_and_resume(tmp_path / "other", argv, expected, [8])


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGPIPE, 141)],
)
def test_asked_to_stop(reference, tmp_path, number, status):
    _, argv, expected = reference
    process = start(*argv, f"main_save_path={tmp_path}")
    wait_for_lines(tmp_path, 4)
    if number == signal.SIGPIPE:  # the reader has seen enough, as in `| head`
        process.stdout.close()
        process.stdout = None
        _, err = finish(process, status)
        assert "resume with --resume=" in err
    else:
        process.send_signal(number)
        _, err = finish(process, status)
        assert "stopping after this iteration" in err
    assert "Traceback" not in err
    done = len(rows(tmp_path))
    assert 4 <= done < ITERATIONS
    folder = run_folder(tmp_path)
    assert checkpoint.iterations(folder / "checkpoints")[-1] == done, "no iteration is lost"
    if number == signal.SIGTERM:
        finish(start(f"--resume={folder}"))
        assert rows(tmp_path) == expected


def test_a_damaged_checkpoint_and_the_one_before_it(reference, tmp_path):
    root, _, expected = reference
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    folder = run_folder(tmp_path)
    last = checkpoint.path_of(folder / "checkpoints", ITERATIONS)
    data = bytearray((last / "state.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (last / "state.safetensors").write_bytes(data)
    _, err = finish(start(f"--resume={folder}"), 2)
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert f"{last}: state.safetensors is damaged" in err
    assert f"{ITERATIONS - 3:08}: use --resume-previous" in err
    assert rows(tmp_path) == expected, "a refusal changes nothing"
    out, _ = finish(start(f"--resume={folder}", "--resume-previous"))
    assert f"iteration {ITERATIONS - 2}/{ITERATIONS}" in out
    assert f"iteration {ITERATIONS - 3}/{ITERATIONS}" not in out
    assert rows(tmp_path) == expected


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_the_first_iteration_stops_at_once_and_the_run_can_begin(
    tmp_path, number, status
):
    small = [word for word in SMALL if not word.startswith(("n_iters=", "n_init_updates="))]
    words = ["--algo=mg2l", *small, "n_iters=1", "n_init_updates=2000"]
    process = start(*words, f"main_save_path={tmp_path}")
    assert process.stdout is not None
    while "before iteration 1" not in process.stdout.readline():
        assert process.poll() is None
    time.sleep(0.3)  # somewhere in the exploration or the 2,000 updates after it
    process.send_signal(number)
    out, err = finish(process, status)
    assert err == ""
    assert "stopped before training; resume with --resume=" in out
    finish(start(f"--resume={run_folder(tmp_path)}"))
    assert len(read_metrics(run_folder(tmp_path) / "metrics.jsonl")) == 1
