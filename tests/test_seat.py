"""One process per folder, on one machine and across machines."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from mg2l.training import seat
from mg2l.training.seat import Seat, taken

HOLD = """
import sys, time
from pathlib import Path
from mg2l.training.seat import Seat
Seat(Path(sys.argv[1])); print("held", flush=True); time.sleep(60)
"""


@pytest.fixture
def unlocked(monkeypatch):
    """A file system that knows no locks."""

    def refuse(*_):
        raise OSError("no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.fixture
def fast(monkeypatch):
    """Leases that are renewed every 50 ms and expire after half a second."""
    monkeypatch.setattr(seat, "HEARTBEAT", 0.05)
    monkeypatch.setattr(seat, "EXPIRES", 0.5)


def elsewhere(monkeypatch):
    """From here on, this is another machine."""
    monkeypatch.setattr(seat, "_machine", lambda: "another")


def silent(folder, monkeypatch):
    """A seat whose holder renews nothing, as if its machine were suspended or dead."""
    with monkeypatch.context() as patch:
        patch.setattr(seat, "HEARTBEAT", 3600)
        return Seat(folder)


def leases(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith(seat.SEAT))


@pytest.mark.usefixtures("unlocked")
def test_held_and_given_up(tmp_path):
    assert not taken(tmp_path)
    with Seat(tmp_path):
        assert taken(tmp_path)
        with pytest.raises(BlockingIOError):
            Seat(tmp_path)
    assert not taken(tmp_path)
    with Seat(tmp_path):
        assert leases(tmp_path) == [".seat-00000002"]


@pytest.mark.usefixtures("unlocked")
def test_free_at_once_after_a_kill_on_the_same_machine(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert taken(tmp_path)
        other.send_signal(signal.SIGKILL)
        other.wait()
        Seat(tmp_path).close()


@pytest.mark.usefixtures("unlocked", "fast")
def test_a_holder_on_another_machine_is_seen_by_its_renewals(tmp_path, monkeypatch):
    with Seat(tmp_path) as held:
        elsewhere(monkeypatch)
        assert taken(tmp_path)
        with pytest.raises(BlockingIOError):
            Seat(tmp_path)
        assert not held.lost


@pytest.mark.usefixtures("unlocked", "fast")
def test_a_seat_whose_machine_died_is_taken_over_once_it_has_expired(tmp_path, monkeypatch):
    silent(tmp_path, monkeypatch)
    elsewhere(monkeypatch)
    start = time.monotonic()
    with Seat(tmp_path):
        assert 0.4 < time.monotonic() - start < 5
        assert leases(tmp_path) == [".seat-00000002"]


@pytest.mark.usefixtures("unlocked", "fast")
def test_a_suspended_holder_finds_that_it_has_lost_its_seat(tmp_path, monkeypatch):
    held = silent(tmp_path, monkeypatch)
    elsewhere(monkeypatch)
    with Seat(tmp_path) as mine:
        held.renew()
        assert held.lost
        held.close()
        assert leases(tmp_path) == [".seat-00000002"]
        assert not mine.lost


@pytest.mark.usefixtures("unlocked")
def test_a_copy_of_a_folder_in_use_is_free(tmp_path):
    (tmp_path / "run").mkdir()
    with Seat(tmp_path / "run"):
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        Seat(tmp_path / "copy").close()


@pytest.mark.usefixtures("unlocked")
def test_an_old_lease_needs_no_watching(tmp_path):
    lease = tmp_path / ".seat-00000007"
    lease.write_text(json.dumps({"machine": "gone", "pid": 1, "start": "1"}))
    os.utime(lease, (0, 0))
    Seat(tmp_path).close()
    assert leases(tmp_path)[0] == ".seat-00000008"


@pytest.mark.usefixtures("unlocked", "fast")
def test_of_many_at_once_one_gets_it(tmp_path, monkeypatch):
    """Threads as machines: each with locks and processes that the others do not see."""
    silent(tmp_path, monkeypatch)
    machine = threading.local()
    monkeypatch.setattr(seat, "_machine", lambda: machine.name)
    found, refused = [], []

    def take(name):
        machine.name = name
        try:
            found.append(Seat(tmp_path))
        except BlockingIOError:
            refused.append(name)

    threads = [threading.Thread(target=take, args=(str(k),)) for k in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(found), len(refused)) == (1, 11)
    found[0].close()
