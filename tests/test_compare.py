"""Tables over seeds."""

import json
from pathlib import Path

import numpy as np
import pytest

from mg2l import compare, results


def test_smooth_averages_what_there_is() -> None:
    np.testing.assert_allclose(results.smooth([1, 3, 5, 7], 2), [1, 2, 4, 6])


def test_table_groups_by_algorithm_and_cuts_at_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for algo, seed, level in (("mappo", 0, -10), ("mappo", 1, -12), ("mg2l", 0, -5)):
        run = tmp_path / "mpe-spread" / algo / f"run-sd{seed}"
        run.mkdir(parents=True)
        rows = [
            {"iteration": i + 1, "env_steps": 100 * (i + 1), "return": level - 100 * (i >= 4)}
            for i in range(6)
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    picture = tmp_path / "curves.png"
    words = ["compare", str(tmp_path), "--last=2", "--env-steps=400", f"--plot={picture}"]
    monkeypatch.setattr("sys.argv", words)
    compare.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| mappo | 2 | 6 | 600 | -11.0 | ± 12.7 |")
    assert lines[3].startswith("| mg2l | 1 | 6 | 600 | -5.0 | ± nan |")
    assert picture.stat().st_size > 1000
