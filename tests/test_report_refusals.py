"""What the report refuses: arguments, files that are no videos, links."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest
from run_files import GIF, write_run

from mg2l.report import __main__ as report


def write(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr("sys.argv", ["report", *map(str, words)])
    report.main()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "no run lies below nowhere"),
        (
            ["runs", "--last", "0"],
            "--last: must be a whole number from 1 to 1000000000000, got '0'",
        ),
        (["runs", "--env-steps=-5"], "--env-steps: must be a whole number from 1"),
        (
            ["runs", "--video-mb=nan"],
            "--video-mb/--film-mb: must be a number from 0 to 1000000000000, got 'nan'",
        ),
    ],
)
def test_refusals(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        write(monkeypatch, *words)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_videos_are_regular_files_inside_the_run_that_begin_like_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"a secret of the machine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "in-a-folder.gif").write_bytes(GIF)
    videos = write_run(tmp_path / "runs", seed=0) / "videos"
    videos.mkdir()
    (videos / "good.gif").write_bytes(GIF)
    (videos / "good.mp4").write_bytes(b"\x00\n\x00\x20ftypisom" + bytes(40))
    (videos / "good.webp").write_bytes(b"RIFF\x00\n\x00\x20WEBP" + bytes(40))
    (videos / "inside.gif").symlink_to("good.gif")
    (videos / "copied.gif").write_bytes(secret.read_bytes())
    (videos / "other.mp4").write_bytes(GIF)
    (videos / "other.webp").write_bytes(GIF)
    (videos / "short.mp4").write_bytes(b"ftyp")
    (videos / "link.gif").symlink_to(tmp_path / "elsewhere" / "in-a-folder.gif")
    (videos / "linked-secret.gif").symlink_to(secret)
    (videos / "nothing.gif").symlink_to(tmp_path / "nothing")
    (videos / "itself.gif").symlink_to("itself.gif")
    (videos / "folder.gif").mkdir()
    os.mkfifo(videos / "pipe.gif")
    other = write_run(tmp_path / "runs", seed=1)
    (other / "videos").symlink_to(tmp_path / "elsewhere")
    write(monkeypatch, tmp_path / "runs")
    lines = capsys.readouterr().out.splitlines()
    named = {path.name for line in lines for path in [*videos.iterdir(), *other.glob("videos/*")]
             if line.startswith("skipped: ") and path.name in line}  # fmt: skip
    assert named == {
        "copied.gif", "other.mp4", "other.webp", "short.mp4", "link.gif", "linked-secret.gif",
        "nothing.gif", "itself.gif", "folder.gif", "pipe.gif", "in-a-folder.gif",
    }  # fmt: skip
    text = (tmp_path / "runs" / "report.html").read_text()
    assert text.count("data:image/gif;base64,") == 2
    assert text.count("data:video/mp4;base64,") == 1
    assert text.count("data:image/webp;base64,") == 1
    assert base64.b64encode(secret.read_bytes()).decode() not in text


def test_nothing_is_written_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "runs")
    mine = tmp_path / "mine"
    mine.write_text("mine")
    for name in ("report.html", "report.html.partial", ".report.partial.html"):
        (tmp_path / "runs" / name).symlink_to(mine)
    write(monkeypatch, tmp_path / "runs")
    assert mine.read_text() == "mine"
    assert not (tmp_path / "runs" / "report.html").is_symlink()


def test_missing_packages_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "PACKAGES", ("plotly", "no_such_package"))
    with pytest.raises(SystemExit):
        write(monkeypatch, tmp_path)
    assert "needs the package no_such_package" in capsys.readouterr().err
