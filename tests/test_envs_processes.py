"""Processes of foreign environments: how they end, and what they cannot do to the parent."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from adapted_envs import TRAIN, Walkers, make_walkers

from mg2l.core.schema import ConfigError
from mg2l.envs import adapters
from mg2l.envs.adapters import workers


def build(make, num_envs=1, **keys):
    config = adapters.AdapterConfig(**{"n_workers": 1, "max_ep_len": 50, **keys})
    tasks = adapters.task_set(TRAIN, [], config)
    return adapters.AdaptedEnv("adapted", make, tasks, config, num_envs, 0)


def make_starting(params):
    """Environments that start processes: plain, in a session, orphaned."""
    for command in ("exec sleep 1000", "exec setsid sleep 1000", "setsid sleep 1000 &"):
        process = subprocess.Popen(["sh", "-c", command])
    process.wait()
    return Walkers(**params)


def alive(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def sleepers(folder):
    """Processes whose environment names this folder; one within its exec has none yet."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if f"MG2L_TEST={folder}".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


def wait_until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


PARENT = """
import time
import test_envs_processes
env = test_envs_processes.build(test_envs_processes.make_starting, 2, n_workers=2)
env.reset()
print("ready", flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGHUP])
def test_all_processes_end_with_the_parent_however_it_ends(tmp_path, how):
    environment = {**os.environ, "MG2L_TEST": str(tmp_path), "OMP_NUM_THREADS": "1"}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parent,
        env=environment,
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"ready\n"
    # Two workers below their guardians, and processes of one description and two sub-environments.
    wait_until(lambda: len(sleepers(tmp_path)) == 1 + 2 * 2 + 3 * 3)
    parent.send_signal(how)
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not sleepers(tmp_path))


def test_closing_ends_what_environments_have_started(tmp_path, monkeypatch):
    monkeypatch.setenv("MG2L_TEST", str(tmp_path))
    env = build(make_starting)
    env.reset()
    wait_until(lambda: len(sleepers(tmp_path)) == 2 + 2 * 3)
    env.close()
    assert not sleepers(tmp_path)


def test_a_worker_that_crashes_takes_what_it_has_started_along(tmp_path, monkeypatch):
    monkeypatch.setenv("MG2L_TEST", str(tmp_path))
    env = build(make_starting)
    env.reset()
    before = set(sleepers(tmp_path))
    os.kill(env.workers.pids[0], signal.SIGKILL)
    assert env.step(np.zeros((1, 2, 1)))[3].all()
    assert not before & set(sleepers(tmp_path))
    env.close()


def test_the_end_of_the_thread_that_has_started_a_worker_does_not_end_it():
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        env = pool.submit(build, make_walkers).result()
    env.reset()
    assert not env.step(np.zeros((1, 2, 1)))[3].any()
    env.close()


class Attacker(Walkers):
    """Attacks in its second step; how is a method's name."""

    how = ""

    def step(self, actions):
        if self.time == 1:
            getattr(self, self.how)()
        return super().step(actions)

    def write(self):
        for descriptor in range(3, 1200):
            with contextlib.suppress(OSError):
                os.write(descriptor, b"x" * 5000)

    def close_all(self):
        os.closerange(3, 1200)

    def leave_a_fork(self):
        if os.fork() == 0:
            os.setsid()
            time.sleep(1000)
        os._exit(3)

    def fork(self):
        os.fork()

    def raise_end_of_file(self):
        input()

    def leave(self):
        sys.exit(0)

    def end_the_guardian(self):
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(1000)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("write", "something else wrote into its socket"),
        ("close_all", "the process ended with status 0"),
        ("leave_a_fork", "the process ended with status 3"),
        ("raise_end_of_file", "EOFError: EOF when reading a line"),
        ("leave", "SystemExit: 0"),
        ("end_the_guardian", "the process ended with status -9"),
        ("fork", None),
    ],
)
def test_an_environment_cannot_block_the_parent(how, message, capfd):
    def make(params):
        env = Attacker(**params)
        env.how = how
        return env

    env = build(make, timeout=30)
    env.reset()
    begin = time.monotonic()
    truncated = [bool(env.step(np.zeros((1, 2, 1)))[3].all()) for _ in range(3)]
    assert truncated == [False, message is not None, False]
    assert time.monotonic() - begin < 20
    env.close()
    if message is not None:
        assert capfd.readouterr().err.count(message) == 1


def test_a_worker_that_stands_still_is_killed(monkeypatch):
    monkeypatch.setattr(workers, "GRACE", 0.2)
    env = build(make_walkers, timeout=1)
    env.reset()
    victim = env.workers.pids[0]
    os.kill(victim, signal.SIGSTOP)
    assert env.step(np.zeros((1, 2, 1)))[3].all()
    wait_until(lambda: not alive(victim))
    env.close()


def test_what_environments_print_is_no_output_of_a_command(capfd):
    def make(params):
        print("a greeting")
        return Walkers(**params)

    env = build(make)
    env.close()
    output = capfd.readouterr()
    assert (output.out, output.err.count("a greeting")) == ("", 1)


def test_a_factory_that_cannot_be_sent():
    held = threading.Lock()

    def make(params):
        return held

    with pytest.raises(ConfigError, match="make cannot be sent to worker processes: TypeError"):
        build(make)
