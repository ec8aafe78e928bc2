"""The commands that measure and record environments, and videos themselves."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest
from method_helpers import TINY

import mg2l.train as train
from mg2l import cli
from mg2l.core.schema import ConfigError
from mg2l.envs import benchmark, registry, render, video

FRAMES = [np.full((7, 9, 3), shade, np.uint8) for shade in (0, 120, 240)]


def refused(main, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def without(monkeypatch, *packages):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name in packages else find(name)
    )


# Benchmark.


def test_benchmark(capsys):
    words = ["mpe-prey", "mujoco-hopper-param", "--num-envs=3", "--steps=4", "--threads=1"]
    assert benchmark.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == words[:2]
    assert all("steps/s  (fastest round" in line for line in lines)
    assert "3 sub-environments, 3 agents, 1 threads" in lines[0]
    assert benchmark.main([*words, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["env"] for row in rows] == words[:2]
    assert all(0 < row["steps_per_s"] <= row["fastest"] for row in rows)


def test_benchmark_refusals(capsys, monkeypatch):
    assert "did you mean 'mpe-spread'?" in refused(benchmark.main, ["mpe-spred"], capsys)
    line = refused(benchmark.main, ["mpe-spread", "--threads=9999"], capsys)
    assert "--threads must be at most" in line
    with pytest.raises(SystemExit, match="2"):
        benchmark.main(["mpe-spread", "--copies=0"])
    capsys.readouterr()
    without(monkeypatch, "magent2")
    line = refused(benchmark.main, ["magent-battle"], capsys)
    assert "needs the package magent2" in line


# Videos.


@pytest.mark.parametrize("kind", ["gif", "mp4"])
def test_video_shows_its_pictures(kind, tmp_path):
    path = tmp_path / "new" / f"a.{kind}"
    video.write(path, FRAMES, fps=10)
    reader: Any = imageio.get_reader(path)
    shown = [np.asarray(frame)[:7, :9, :3] for frame in reader]
    assert len(shown) == 3
    for frame, picture in zip(shown, FRAMES, strict=True):
        assert frame.shape == picture.shape
        assert abs(frame.astype(int).mean() - picture.mean()) < 8


def test_video_refusals(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"a video must end in \.gif or .*, got a\.avi"):
        video.check(Path("a.avi"))
    with pytest.raises(ValueError, match="at least one picture"):
        video.write(tmp_path / "a.gif", [])
    without(monkeypatch, "imageio", "imageio_ffmpeg")
    video.write(tmp_path / "a.gif", FRAMES)  # pillow is enough
    with pytest.raises(ConfigError, match=r'\.mp4 .*the packages .*install "mg2l\[video\]"$'):
        video.check(tmp_path / "a.mp4")
    without(monkeypatch, "PIL")
    with pytest.raises(ConfigError, match=r"\.gif video needs the package PIL"):
        video.write(tmp_path / "a.gif", FRAMES)


def test_recording_changes_nothing():
    env, twin = registry.make("mpe-spread", 2), registry.make("mpe-spread", 2)
    recorded = video.RecordedEnv(env, 1)
    for _ in range(2):
        np.testing.assert_array_equal(recorded.reset(3, [1, 2])[0], twin.reset(3, [1, 2])[0])
        assert recorded.frames == []
        for _ in range(2):
            picture = twin.render(1)
            actions = np.ones((2, 2, 2))
            np.testing.assert_array_equal(recorded.step(actions)[0], twin.step(actions)[0])
            np.testing.assert_array_equal(recorded.frames[-1], picture)
    assert recorded.task_ids.tolist() == [1, 2]


# Render.


def test_render_random(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert render.main(["mpe-spread", "--task=3"]) == 0
    assert capsys.readouterr().out == "mpe-spread.gif: 100 pictures\n"
    assert [path.name for path in tmp_path.iterdir()] == ["mpe-spread.gif"]


def test_render_refusals(tmp_path, capsys):
    cases = {
        "did you mean 'mpe-hunting'?": ["mpe-huntin"],
        "--task must be in [0, 7), of which the first 3": ["mpe-spread", "--task=7"],
        "give the NAME": [],
        "no run lies there": [f"--run={tmp_path}"],
        "a video must end in": ["mpe-spread", "--out=a.png"],
        "--seed: must be a whole number from 0": ["mpe-spread", "--seed=-1"],
        "no run lies there (it": ["--run=/"],
    }
    for message, words in cases.items():
        assert message in refused(render.main, words, capsys)


@pytest.mark.parametrize("algo", ["mg2l", "mappo", "oracle"])
def test_render_trained(algo, tmp_path, capsys):
    values = {**TINY, "main_save_path": tmp_path, "hidden_sizes_mlp": "[16]", "save_model": "true"}
    words = [f"{key}={value}".replace("=False", "=false") for key, value in values.items()]
    assert train.run(*cli.parse([f"--algo={algo}", "--env=mpe-spread", *words])) == 0
    (run,) = tmp_path.glob("*/*/*")
    for task in (0, 4):  # trained on, and held out
        assert render.main([f"--run={run}", f"--task={task}", f"--out={tmp_path}/{task}.gif"]) == 0
        assert capsys.readouterr().out.endswith(f"{task}.gif: 10 pictures\n")
    line = refused(render.main, ["mpe-hunting", f"--run={run}"], capsys)
    assert "mpe-hunting conflicts with --run=" in line


def test_commands_by_module(tmp_path):
    words = [sys.executable, "-m", "mg2l.envs.benchmark", "mpe-spread", "--steps=2"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("mpe-spread  ")
