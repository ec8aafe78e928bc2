"""Tables over seeds."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from run_files import write_run

from mg2l import compare


def table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object
) -> list[str]:
    monkeypatch.setattr("sys.argv", ["compare", *map(str, words)])
    compare.main()
    header, _, *lines = capsys.readouterr().out.splitlines()
    assert header == (
        "| environment | algorithm | seeds | iterations | environment steps | return "
        "| 95 % interval |"
    )
    return lines


def test_a_row_for_each_environment_algorithm_and_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(3):
        write_run(tmp_path, "mappo", seed, -160.0 - seed)
        write_run(tmp_path, "mappo", seed, 1000.0 + seed, env="cheetah")
    for width in (32, 64):
        config = {"encoder": {"context_dim": width}}
        stamp = f"202601{width}-000000"
        write_run(tmp_path, "mg2l", 0, float(width), config=config, stamp=stamp)
    assert table(monkeypatch, capsys, tmp_path) == [
        "| cheetah | mappo | 3 | 30 | 96,000 | 1001.0 | ± 2.5 |",
        "| mpe-spread | mappo | 3 | 30 | 96,000 | -161.0 | ± 2.5 |",
        "| mpe-spread | mg2l (context_dim=32) | 1 | 30 | 96,000 | 32.0 | one seed |",
        "| mpe-spread | mg2l (context_dim=64) | 1 | 30 | 96,000 | 64.0 | one seed |",
    ]


def test_cut_at_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for algo, seed, level in (("mappo", 0, -10), ("mappo", 1, -12), ("mg2l", 0, -5)):
        write_run(tmp_path, algo, seed, level, iterations=4, pace=100)
        later = write_run(tmp_path / "later", algo, seed, level - 100, iterations=6, pace=100)
        rows = (later / "metrics.jsonl").read_text().splitlines(keepends=True)
        with (tmp_path / later.relative_to(tmp_path / "later") / "metrics.jsonl").open("a") as file:
            file.writelines(rows[4:])
        shutil.rmtree(tmp_path / "later")
    picture = tmp_path / "curves.png"
    lines = table(monkeypatch, capsys, tmp_path, "--last=2", "--env-steps=400", "--plot", picture)
    assert lines == [
        "| mpe-spread | mappo | 2 | 4 | 400 | -11.0 | ± 12.7 |",
        "| mpe-spread | mg2l | 1 | 4 | 400 | -5.0 | one seed |",
    ]
    assert picture.stat().st_size > 1000
    lines = table(monkeypatch, capsys, tmp_path, "--env-steps=99")
    assert lines[1:] == [f"{a} on mpe-spread: no run has an iteration within 99"
                         for a in ("mappo", "mg2l")]  # fmt: skip


def test_what_does_not_count_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write_run(tmp_path)
    write_run(tmp_path, stamp="20260102-000000")
    short = write_run(tmp_path, seed=1, iterations=3)
    write_run(tmp_path, "oracle", iterations=40)
    lines = table(monkeypatch, capsys, tmp_path)
    assert lines == [
        "| mpe-spread | mappo | 1 | 30 | 96,000 | 0.0 | one seed |",
        "| mpe-spread | oracle | 1 | 40 | 128,000 | 0.0 | one seed |",
        "",
        f"left out: {first}: seed 0 of mappo on mpe-spread counts once, by 20260102-000000-sd0 "
        "with 96,000 environment steps",
        f"not counted: {short} has 9,600 environment steps, the return is taken at 96,000",
        "mpe-spread: returns are at different environment steps; --env-steps=96000 compares them "
        "at the same",
    ]


def test_names_cannot_break_the_table_or_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, "a|b\n\x1b[31m$x$", env="\udcff_")
    picture = tmp_path / "curves.svg"
    (row,) = table(monkeypatch, capsys, tmp_path, "--plot", picture)
    assert row.startswith("| \\udcff_ | a\\|b\\n\\x1b[31m$x$ | 1 |")
    assert picture.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--last=0"], "--last: must be a whole number from 1 to 1000000000000, got '0'"),
        (["--env-steps=x"], "--env-steps: must be a whole number from 1"),
        (["--plot=curves.abc"], "--plot=curves.abc: must end in one of"),
    ],
)
def test_mistakes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    write_run(tmp_path)
    with pytest.raises(SystemExit) as caught:
        table(monkeypatch, capsys, tmp_path, *words)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


WITHOUT = """
import sys
for name in ("scipy", "matplotlib", "sklearn", "plotly", "pandas"):
    sys.modules[name] = None
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if sys.modules.get(name, 0) is None else real(
    name, *more
)
from mg2l import compare
compare.main()
"""


def test_core_dependencies_are_enough(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, seed=seed, returns=float(seed))
    argv = [sys.executable, "-c", WITHOUT, str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[2] == ("| mpe-spread | mappo | 3 | 30 | 96,000 | 1.0 | ± 2.5 |")
    done = subprocess.run([*argv, "--plot=a.png"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        'error: --plot needs the package matplotlib; install with: pip install "mg2l[analysis]"\n'
    )
