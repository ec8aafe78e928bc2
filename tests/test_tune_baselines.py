"""The grid that baselines are tuned over: the same for all, and read from the runs themselves."""

import csv
import json

from benchmarks import tune_baselines as tuning
from mg2l import sweep
from mg2l.cli.grid import grid
from mg2l.config import files as loading


def arguments(folder, **values):
    given = {"folder": folder, "algos": ["mappo", "rl2"], "envs": ["mpe-goals"], "seeds": [0, 1]}
    rest = {"jobs": 1, "env_steps": 4000, "overrides": ["max_ep_len=10"]}
    return type("Arguments", (), given | rest | values)


def test_every_point_is_a_sweep_of_all_algorithms_on_validation_tasks(tmp_path):
    assert {*tuning.ALGORITHMS} <= {*loading.available("algo")}
    assert len({tuning.name_of(point) for point in tuning.points()}) == 12
    for point in tuning.points():
        words = tuning.command(point, arguments(tmp_path))[3:]
        jobs = grid(sweep.parse(words))
        assert {(job.algo, job.seed) for job in jobs} == {
            (algo, seed) for algo in ("mappo", "rl2") for seed in (0, 1)
        }
        for job in jobs:
            assert "n_validation_tasks=8" in job.words
            assert f"critic_lr={point['actor_lr']:g}" in job.words


def test_the_table_is_read_from_the_runs_and_the_best_point_comes_first(tmp_path, capsys):
    first, second = tuning.points()[:2]
    for point, bonus in ((first, 0), (second, 5)):
        for seed in (0, 1):
            run = tmp_path / tuning.name_of(point) / "mpe-goals" / "rl2" / f"time-sd{seed}"
            run.mkdir(parents=True)
            rows = [
                {"iteration": i, "env_steps": 100 * i, "return": 0.0, tuning.VALIDATION: value}
                for i, value in ((1, -99.0), (2, -30.0 + bonus + seed), (3, -20.0 + bonus + seed))
            ]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (run / "metrics.jsonl").write_text(text)
    found = tuning.table(tmp_path)
    assert [row["validation"] for row in found] == [-19.5, -24.5]
    assert [row["seeds"] for row in found] == [2, 2]
    tuning.write(found, tmp_path / "out" / "tuning.csv")
    with (tmp_path / "out" / "tuning.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [row["validation"] for row in written] == ["-19.50", "-24.50"]
    assert written[0]["entropy_coef"] == str(second["entropy_coef"])
    assert "validation -19.5" in capsys.readouterr().out
