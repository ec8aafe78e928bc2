"""Metrics in files and trackers; progress on terminals and elsewhere."""

import errno
import io
import json
import math
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from rich.console import Console

from mg2l.core.files import FileError
from mg2l.training.metrics import MetricsLogger, read_metrics, scalars, truncate
from mg2l.training.progress import RunProgress, clock, live_line, summary


def row(iteration, value=0.0):
    return {"iteration": iteration, "return": value, "return_by_task": {"a": 1.0, "b": -2.0}}


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_one_line_per_iteration_at_once(tmp_path):
    with MetricsLogger(tmp_path) as logger:
        for iteration in (1, 2):
            logger.log(row(iteration))
            lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
            assert [strict(line)["iteration"] for line in lines] == [*range(1, iteration + 1)]
    assert read_metrics(tmp_path / "metrics.jsonl") == [row(1), row(2)]


def test_values_become_strict_json(tmp_path):
    value = 0.1 + 0.2
    with MetricsLogger(tmp_path) as logger:
        logger.log({
            "iteration": np.int64(1), "float": value, "tensor": torch.tensor(1 / 3),
            "numpy": np.float32(1 / 3), "nan": math.nan, "inf": [math.inf, torch.tensor(-math.inf)],
            "nested": {"x": {"y": torch.tensor(2)}}, "none": None, "text": "ü", "flag": True,
        })  # fmt: skip
        with pytest.raises(TypeError, match="object is not a metric"):
            logger.log({"iteration": 2, "x": object()})
        with pytest.raises(KeyError, match="iteration"):
            logger.log({"x": 1})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    read = strict(line)
    third = torch.tensor(1 / 3).item()
    assert read == {
        "iteration": 1, "float": value, "tensor": third, "numpy": third, "nan": None,
        "inf": [None, None], "nested": {"x": {"y": 2}}, "none": None, "text": "ü", "flag": True,
    }  # fmt: skip
    assert scalars(read) == {
        "iteration": 1, "float": value, "tensor": third, "numpy": third, "nested/x/y": 2,
    }  # fmt: skip


def test_resuming_cuts_what_came_after_the_checkpoint(tmp_path):
    with MetricsLogger(tmp_path) as logger:
        for iteration in range(1, 8):
            logger.log(row(iteration, 1.0))
    with MetricsLogger(tmp_path, start=4) as logger:
        assert [line["iteration"] for line in read_metrics(logger.path)] == [1, 2, 3, 4]
        logger.log(row(5, 2.0))
    assert [line["return"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1.0] * 4 + [
        2.0
    ]
    with MetricsLogger(tmp_path) as logger:
        assert read_metrics(logger.path) == [], "a run that starts again keeps no lines"


def test_a_file_cut_at_any_byte_is_mended(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps(row(iteration)) + "\n" for iteration in (1, 2, 3)]
    whole = "".join(lines).encode()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        count = whole[:size].count(b"\n")
        assert len(read_metrics(path)) == count
        assert truncate(path, 2) == min(count, 2)
        assert path.read_bytes() == "".join(lines[: min(count, 2)]).encode()


@pytest.mark.parametrize(
    "bad",
    [
        b"\x00\x00\n",
        b"[]\n",
        b'{"iteration": "2"}\n',
        b"{}\n",
        b"[" * 5000 + b"\n",
        random.Random(0).randbytes(20) + b"\n",
    ],
)
def test_garbage_is_refused_and_cut_only_where_it_is_written_again(tmp_path, bad):
    path = tmp_path / "metrics.jsonl"
    good = json.dumps(row(1)).encode() + b"\n"
    whole = good + bad + json.dumps(row(2)).encode() + b"\n"
    path.write_bytes(whole)
    for read in (read_metrics, lambda path: truncate(path, 9)):
        with pytest.raises(FileError, match=r"metrics\.jsonl: line 2: ") as error:
            read(path)
        assert "\n" not in str(error.value)
        assert path.read_bytes() == whole
    assert truncate(path, 1) == 1
    assert path.read_bytes() == good


def test_a_file_that_is_none_has_no_lines(tmp_path):
    assert truncate(tmp_path / "none.jsonl", 3) == 0


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    write = os.write

    def half(handle, data):
        if len(data) < 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(handle, data[: len(data) // 2])

    with MetricsLogger(tmp_path) as logger:
        logger.log(row(1))
        monkeypatch.setattr(os, "write", half)
        with pytest.raises(OSError, match=r"No space left on device.*metrics\.jsonl"):
            logger.log(row(2))
        monkeypatch.undo()
    assert read_metrics(tmp_path / "metrics.jsonl") == [row(1)]
    assert (tmp_path / "metrics.jsonl").read_bytes().endswith(b"\n")


def test_a_folder_that_was_removed_is_noticed(tmp_path):
    with MetricsLogger(tmp_path) as logger:
        (tmp_path / "metrics.jsonl").unlink()
        with pytest.raises(FileNotFoundError, match="was removed"):
            logger.log(row(1))


def test_what_was_lost_is_known(tmp_path):
    with MetricsLogger(tmp_path) as logger:
        assert (logger.kept, logger.dropped) == (0, False)
        for iteration in (1, 2, 3):
            logger.log(row(iteration))
    for start, expected in [(5, (3, False)), (3, (3, False)), (2, (2, True)), (0, (0, True))]:
        with MetricsLogger(tmp_path, start=start) as logger:
            assert (logger.kept, logger.dropped) == expected


def test_kill_leaves_every_line_that_was_logged(tmp_path):
    script = (
        "import os, sys\n"
        "from mg2l.training.metrics import MetricsLogger\n"
        "logger = MetricsLogger(sys.argv[1])\n"
        "for iteration in range(1, 6): logger.log({'iteration': iteration})\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)])
    assert done.returncode == -9
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 5


METRICS = {"return": -150.25, "mi/global": 1.0, "mi/local": 0.5, "env_steps_per_s": 3210.4}


def test_summary():
    assert summary(METRICS) == "return -150.2  MI 1.00/0.50  steps/s 3,210"
    assert summary({"return": None, "mi/global": 1}) == "MI 1.00"
    assert [clock(seconds) for seconds in (0, 61.4, 3723)] == ["0:00", "1:01", "1:02:03"]


def test_plain_lines_every_log_interval_and_at_the_end():
    out = io.StringIO()
    console = Console(file=out)
    with RunProgress(25, log_interval=10, console=console) as progress:
        for iteration in range(1, 26):
            progress.show(iteration, METRICS)
            if iteration == 10:
                progress.note("[saved] " + "x" * 200)
    lines = out.getvalue().splitlines()
    assert [line.split()[1] for line in lines if line.startswith("iteration")] == [
        "10/25", "20/25", "25/25",
    ]  # fmt: skip
    assert lines[1] == "[saved] " + "x" * 200, "notes are neither wrapped nor read as markup"
    assert "return -150.2  MI 1.00/0.50  steps/s 3,210  ETA " in lines[0]
    assert "\x1b" not in out.getvalue()


def test_eta(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("mg2l.training.progress.time.monotonic", lambda: now[0])
    with RunProgress(50, start=10, console=Console(file=io.StringIO())) as progress:
        now[0] = 20.0
        assert progress.eta(20) == 60.0  # 2 s each, 30 to go
        assert progress.eta(50) == 0.0
        assert progress.eta(10) == 0.0


def terminal():
    return Console(
        file=io.StringIO(), force_terminal=True, width=120, color_system=None,
        _environ={"TERM": "xterm"},
    )  # fmt: skip


def test_a_terminal_is_given_back_after_an_error():
    console = terminal()

    def work():
        with RunProgress(4, console=console) as progress:
            progress.show(2, METRICS)
            progress.note("a note")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        work()
    text = console.file.getvalue()
    hide, show = "\x1b[?25l", "\x1b[?25h"
    assert text.count(hide) == text.count(show) == 1
    assert text.index(hide) < text.index(show)
    assert "2/4" in text
    assert "return -150.2  MI 1.00/0.50  steps/s 3,210  ETA " in text
    assert "a note" in text


def test_a_dumb_terminal_gets_plain_lines():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, _environ={"TERM": "dumb"})
    with RunProgress(4, console=console) as progress:
        progress.show(1, METRICS)
    assert not progress.live
    assert out.getvalue().startswith("iteration 1/4")


@pytest.mark.parametrize("width", [30, 40, 60, 80, 120])
def test_a_live_line_fits_into_a_narrow_terminal(width):
    text = "return -48.9  MI 0.1/0.2  steps/s 184  test -41.4  ETA 0:01"
    line = live_line("iteration", "2/300", 0.5, text, "1:02:05", width)
    assert len(line) <= width
    assert line.startswith("iteration 2/300")
    assert line.endswith("1:02:05")
    assert ("return -48.9" in line) == (width >= 40)
    assert ("test -41.4" in line) == (width >= 60)
    assert ("━" in line and "─" in line) == (width >= 80)
    assert ("MI 0.1/0.2" in line) == (width >= 120)
    exploring = live_line("exploring before iteration 1", "8/96,000 steps", 0.0, "", "0:01", width)
    assert len(exploring) <= width
    assert exploring.startswith("explor")
    assert "8/96,000 steps" in exploring
