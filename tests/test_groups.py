"""Which runs are seeds of the same thing, and what they say together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from run_files import linear, write_run

from mg2l.evaluation import groups, results
from mg2l.evaluation.results import Run


def found(root: Path) -> list[Run]:
    runs, skipped = results.find([root])
    assert skipped == []
    return runs


def names(root: Path) -> dict[tuple[str, str], list[int | None]]:
    held, _ = groups.grouped(found(root))
    return {(group.env, group.algo): [run.seed for run in group.runs] for group in held}


# What is a group.


def test_environments_and_algorithms_are_groups(tmp_path: Path) -> None:
    for env in ("mpe-spread", "mujoco-cheetah-dir"):
        for algo in ("mappo", "mg2l"):
            for seed in (0, 1):
                write_run(tmp_path, algo, seed, env=env)
    assert names(tmp_path) == {
        (env, algo): [0, 1]
        for env in ("mpe-spread", "mujoco-cheetah-dir")
        for algo in ("mappo", "mg2l")
    }


def test_what_differs_in_the_configuration_is_named(tmp_path: Path) -> None:
    for k, (width, layers) in enumerate([(32, [64]), (64, [64]), (64, [64, 64])]):
        for seed in (0, 1):
            config = {"encoder": {"context_dim": width, "layers": layers, "lr": 5e-4}}
            write_run(tmp_path, "mg2l", seed, stamp=f"2026010{k}-000000", config=config)
    assert names(tmp_path) == {
        ("mpe-spread", "mg2l (context_dim=32, layers=[64])"): [0, 1],
        ("mpe-spread", "mg2l (context_dim=64, layers=[64])"): [0, 1],
        ("mpe-spread", "mg2l (context_dim=64, layers=[64, 64])"): [0, 1],
    }


def test_a_key_that_only_one_has_distinguishes_it(tmp_path: Path) -> None:
    write_run(tmp_path, seed=0, config={"ppo": {"lr": 1e-3}})
    write_run(tmp_path, seed=1, config={"ppo": {"lr": 1e-3, "clip": True}})
    assert {*names(tmp_path)} == {
        ("mpe-spread", "mappo (no clip)"), ("mpe-spread", "mappo (clip=true)"),
    }  # fmt: skip


def test_environments_are_distinguished_for_all_algorithms(tmp_path: Path) -> None:
    write_run(tmp_path, "mappo", config={"env": {"n_agents": 2}, "ppo": {"gamma": 0.9}})
    write_run(tmp_path, "oracle", config={"env": {"n_agents": 5}, "ppo": {"gamma": 0.8}})
    assert names(tmp_path) == {
        ("mpe-spread (n_agents=2)", "mappo"): [0],
        ("mpe-spread (n_agents=5)", "oracle"): [0],
    }


def test_seeds_places_devices_and_intervals_are_no_differences(tmp_path: Path) -> None:
    for seed in range(3):
        config = {
            "main_save_path": f"/home/{seed}",
            "n_training_threads": seed,
            "gpu_id": seed,
            "save_interval": seed + 1,
            "log_wandb": bool(seed),
            "n_iters": 100 + seed,
            "kernels": ("native", "torch", "torch")[seed],
            "env": {"module": f"/home/{seed}/env.py"},
            "ppo": {"gamma": (1, 1.0, 1.0)[seed]},
        }
        write_run(tmp_path, seed=seed, config=config)
    assert names(tmp_path) == {("mpe-spread", "mappo"): [0, 1, 2]}


def test_iterations_are_a_difference_where_learning_rates_follow_them(tmp_path: Path) -> None:
    for seed, count in enumerate([100, 200]):
        config = {"n_iters": count, "ppo": {"use_linear_lr_decay": True}}
        write_run(tmp_path, seed=seed, config=config)
    assert {algo for _, algo in names(tmp_path)} == {"mappo (n_iters=100)", "mappo (n_iters=200)"}


def test_without_a_configuration_the_folders_count(tmp_path: Path) -> None:
    write_run(tmp_path, seed=0)
    write_run(tmp_path, seed=1)
    assert names(tmp_path) == {("mpe-spread", "mappo"): [0, 1]}
    write_run(tmp_path, seed=2, config={"ppo": {"gamma": 0.9}})
    assert names(tmp_path) == {
        ("mpe-spread", "mappo"): [2],
        ("mpe-spread", "mappo (no config.yaml)"): [0, 1],
    }


def test_no_folder_is_taken_for_what_another_is_shown_as(tmp_path: Path) -> None:
    for seed, width in enumerate([32, 64]):
        write_run(tmp_path, "mg2l", seed, config={"context_dim": width})
    write_run(tmp_path, "mg2l (context_dim=32)", 7)
    assert len(names(tmp_path)) == 3


# What is a seed.


def test_a_seed_counts_once_by_the_run_that_got_furthest(tmp_path: Path) -> None:
    short = write_run(tmp_path, iterations=10, stamp="20260103-000000")
    first = write_run(tmp_path, iterations=30, stamp="20260101-000000")
    furthest = write_run(tmp_path, iterations=30, stamp="20260102-000000")
    write_run(tmp_path, seed=1)
    held, lines = groups.grouped(found(tmp_path))
    assert [run.folder for run in held[0].runs if run.seed == 0] == [furthest]
    assert [run.seed for run in held[0].runs] == [1, 0]
    assert [str(folder) in line for folder, line in zip((first, short), lines, strict=True)]
    assert all("seed 0 of mappo on mpe-spread counts once" in line for line in lines)


def test_of_equal_runs_the_one_begun_last_counts(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    for attempt in (2, 10):
        write_run(tmp_path / "other").rename(folder.with_name(f"{folder.name}-{attempt}"))
    held, _ = groups.grouped(found(tmp_path))
    assert [run.folder.name for run in held[0].runs] == [f"{folder.name}-10"]


def test_the_same_seed_of_two_configurations_is_two_runs(tmp_path: Path) -> None:
    for day, width in enumerate([32, 64]):
        write_run(tmp_path, stamp=f"2026010{day}-000000", config={"context_dim": width})
    assert [*names(tmp_path).values()] == [[0], [0]]


# Where returns are measured.


def test_a_short_run_takes_nothing_from_the_end_of_the_others(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, seed=seed, returns=linear(1 / 3200))
    alone = groups.end(found(tmp_path), 20)
    assert alone is not None
    assert (alone.env_steps, alone.iterations) == (96_000, 30)
    assert alone.returns == [np.mean(range(11, 31))] * 3
    for seed, iterations in ((3, 5), (4, 19)):  # the second has not quite come to the middle
        write_run(tmp_path, seed=seed, returns=-1e6, iterations=iterations)
        more = groups.end(found(tmp_path), 20)
        assert more is not None
        assert more.returns == alone.returns
        assert more.env_steps == alone.env_steps
        assert len(more.lines) == seed - 2
    assert more is not None
    assert "has 60,800 environment steps, the return is taken at 96,000" in more.lines[1]


def test_a_run_that_is_nearly_there_counts_where_it_has_been(tmp_path: Path) -> None:
    for seed, iterations in enumerate([30, 30, 28]):
        returns = linear(1 / 3200, 100 * seed)
        write_run(tmp_path, seed=seed, returns=returns, iterations=iterations)
    end = groups.end(found(tmp_path), 20)
    assert end is not None
    means = [np.mean(range(11, 31)), 100 + np.mean(range(11, 31)), 200 + np.mean(range(11, 29))]
    assert end.returns == pytest.approx(means)
    assert end.lines == []


def test_a_run_that_is_ahead_does_not_stand_for_all(tmp_path: Path) -> None:
    for seed, iterations in enumerate([30, 30, 200]):
        write_run(tmp_path, seed=seed, returns=linear(1 / 3200), iterations=iterations)
    end = groups.end(found(tmp_path), 20)
    assert end is not None
    assert end.returns == [np.mean(range(11, 31))] * 3


def test_another_pace_is_measured_over_the_same_steps(tmp_path: Path) -> None:
    for seed, pace in enumerate([3200, 3200, 6400]):
        write_run(tmp_path, seed=seed, returns=float, iterations=96_000 // pace, pace=pace)
    end = groups.end(found(tmp_path), 20)
    assert end is not None
    assert end.returns == [3200 * np.mean(range(11, 31))] * 2 + [6400 * np.mean(range(6, 16))]
    cut = groups.end(found(tmp_path), 2, 16_000)
    assert cut is not None
    assert (cut.env_steps, cut.iterations) == (16_000, 5)
    assert cut.returns == [14_400.0, 14_400.0, 12_800.0]


def test_returns_that_are_missing_are_no_zeros(tmp_path: Path) -> None:
    write_run(tmp_path, seed=0, returns=lambda steps: None if steps % 6400 else 5.0)
    write_run(tmp_path, seed=1, returns=None)
    end = groups.end(found(tmp_path), 20)
    assert end is not None
    assert end.returns == [5.0]
    assert np.isnan(end.interval.low)


# Curves.


def line(root: Path, window: int = 1) -> groups.Curve:
    curve = groups.curve(found(root), "return", window)
    assert curve is not None
    return curve


def test_seeds_of_one_pace_are_averaged_where_they_were_logged(tmp_path: Path) -> None:
    for seed, level in enumerate([1.0, 3.0]):
        write_run(tmp_path, seed=seed, returns=linear(level))
    curve = line(tmp_path)
    np.testing.assert_array_equal(curve.env_steps, 3200 * np.arange(1, 31))
    np.testing.assert_allclose(curve.intervals[0], 2 * curve.env_steps)
    np.testing.assert_array_equal(curve.counts, 2)


@pytest.mark.parametrize("paces", [(3200, 6400), (6400, 3200), (3200, 1600, 5000)])
def test_another_pace_shifts_nothing(tmp_path: Path, paces: tuple[int, ...]) -> None:
    for seed, pace in enumerate(paces):
        write_run(tmp_path, seed=seed, returns=float, iterations=96_000 // pace, pace=pace)
    curve = line(tmp_path)
    there = curve.counts > 0
    np.testing.assert_allclose(curve.intervals[0][there], curve.env_steps[there])
    assert curve.env_steps[-1] == 96_000


def test_a_running_mean_covers_the_same_steps_at_every_pace() -> None:
    fine, coarse = np.linspace(100, 4000, 40), np.linspace(400, 4000, 10)
    np.testing.assert_allclose(groups.smooth(fine, fine, 400)[3:], fine[3:] - 150)
    np.testing.assert_allclose(groups.smooth(coarse, coarse, 400), coarse)
    np.testing.assert_allclose(groups.smooth(coarse, coarse, 800)[1:], coarse[1:] - 200)
    np.testing.assert_allclose(groups.smooth(coarse, coarse, 1), coarse)


def test_a_short_run_neither_cuts_nor_shifts_the_others(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, seed=seed, returns=linear(1, seed))
    alone = line(tmp_path, 10)
    write_run(tmp_path, seed=2, returns=-1e6, iterations=5)
    curve = line(tmp_path, 10)
    mean, low, high = curve.intervals
    assert curve.env_steps[-1] == 96_000
    after = curve.env_steps > 5 * 3200
    later = curve.counts[after] > 0
    np.testing.assert_allclose(mean[after][later], alone.intervals[0][5:])
    np.testing.assert_allclose(low[after][later], alone.intervals[1][5:])
    assert [*curve.counts] == [3] * 5 + [0] + [2] * 25  # broken where the third ends
    assert np.isnan(mean[5])
    assert np.isfinite(high[later.size - 25 + 5 :]).any()


def test_a_curve_goes_as_far_as_half_of_the_seeds(tmp_path: Path) -> None:
    for seed, iterations in enumerate([30, 40, 100]):
        write_run(tmp_path, seed=seed, iterations=iterations)
    assert line(tmp_path).env_steps[-1] == 40 * 3200


def test_a_long_curve_has_few_points_and_its_end(tmp_path: Path) -> None:
    write_run(tmp_path, iterations=3001)
    curve = line(tmp_path)
    assert len(curve.env_steps) == groups.POINTS
    assert curve.env_steps[-1] == 3001 * 3200


def test_nobody_logs_it(tmp_path: Path) -> None:
    write_run(tmp_path, returns=None)
    assert groups.curve(found(tmp_path), "return", 10) is None
