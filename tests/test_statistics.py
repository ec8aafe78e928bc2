"""Statistics of few runs, against worked numbers that others have published."""

import math
import re
from collections.abc import Sequence

import numpy as np
import pytest

from mg2l.evaluation import statistics

MICE = [94, 197, 16, 38, 99, 141, 23]
"""Survival [days] of the treated mice of Efron & Tibshirani, *An Introduction to the Bootstrap*."""

CONTROL = [52, 104, 146, 10, 51, 30, 40, 27, 46]


def column(values: Sequence[float]) -> np.ndarray:
    return np.asarray(values, float)[:, None]


def test_interquartile_mean_of_the_worked_example() -> None:
    # Wikipedia, "Interquartile mean": 6.5 of twelve scores.
    scores = [5, 8, 4, 38, 8, 6, 9, 7, 7, 3, 1, 6]
    assert statistics.interquartile_mean(column(scores)) == 6.5
    assert statistics.interquartile_mean(np.reshape(scores, (3, 4)).astype(float)) == 6.5


def test_statistics_keep_leading_axes() -> None:
    scores = np.random.default_rng(0).normal(size=(5, 3, 4))
    for statistic in (
        statistics.mean,
        statistics.interquartile_mean,
        statistics.optimality_gap,
        lambda x: statistics.profile(x, [-1, 0, 1]),
    ):
        one_by_one = np.stack([statistic(part) for part in scores])
        np.testing.assert_allclose(statistic(scores), one_by_one)


def test_bootstrap_spread_is_the_published_one() -> None:
    # Table 2.1 there: the standard error of the mean is 23.36 with infinitely many resamples.
    # A normal distribution has 1.349 of them between its quartiles.
    found = statistics.bootstrap(column(MICE), resamples=20000, confidence=0.5)
    assert found.value == pytest.approx(86.86, abs=0.005)
    assert (found.high - found.low) / 1.349 == pytest.approx(23.36, rel=0.03)


def test_bootstrap_keeps_to_the_strata() -> None:
    # Runs that agree on every task leave no uncertainty, however different the tasks are.
    assert statistics.bootstrap([[1, 100, -5]] * 4) == (32, 32, 32)
    scores = np.random.default_rng(1).normal(size=(10, 3)) + np.array([0, 100, 1000])
    found = statistics.bootstrap(scores)
    assert found.low < found.value < found.high
    assert found.high - found.low < 2


def test_bootstrap_draws_runs_again_within_each_task() -> None:
    # Of scores that are the same on 16 tasks, four times as narrow as if whole runs were drawn.
    one = np.random.default_rng(4).normal(size=(50, 1))
    single, many = (statistics.bootstrap(scores) for scores in (one, one.repeat(16, 1)))
    assert (single.high - single.low) / (many.high - many.low) == pytest.approx(4, rel=0.15)


def test_bootstrap_in_parts_is_one_bootstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(2).normal(size=(6, 2))
    drawn = list(statistics.resampled(scores, 10, 0, scores.size))
    monkeypatch.setattr(statistics, "IN_USE", 3 * scores.size)
    parts = list(statistics.resampled(scores, 10, 0, scores.size))
    assert [len(part) for part in parts] == [3, 3, 3, 1]
    assert np.concatenate(parts).shape == drawn[0].shape


def test_bootstrap_covers() -> None:
    # 95 % intervals of the mean of 20 x 2 normal scores: about 94 of 100 hold it.
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(200):
        found = statistics.bootstrap(rng.normal(size=(20, 2)), resamples=400)
        held += found.low <= 0 <= found.high
    assert 175 <= held <= 200


def test_improvement_of_the_tortoises() -> None:
    # Wikipedia, "Mann-Whitney U test": six tortoises and six hares come in as T H H H H H T
    # T T T T H, of which the hares' U is 25 of 36 pairs (a higher score is an earlier place).
    ranks = {"T": [12.0, 6, 5, 4, 3, 2], "H": [11.0, 10, 9, 8, 7, 1]}
    found = statistics.improvement(column(ranks["H"]), column(ranks["T"]))
    assert found.value == pytest.approx(25 / 36)
    assert 0 <= found.low < found.value < found.high <= 1


def test_improvement_counts_a_tie_as_half_and_averages_over_tasks() -> None:
    assert statistics.improvement([[1.0]], [[1.0]]).value == 0.5
    ours, theirs = [[1.0, 0.0], [2.0, 0.0]], [[0.0, 1.0], [0.0, 3.0]]
    assert statistics.improvement(ours, theirs).value == 0.5
    mice = statistics.improvement(column(MICE), column(CONTROL))
    wins = np.mean([[a > b for b in CONTROL] for a in MICE])
    assert mice.value == pytest.approx(wins)


def test_profile_is_the_share_above() -> None:
    scores = np.array([[0.0, 1.0], [0.5, 2.0]])
    np.testing.assert_array_equal(
        statistics.profile(scores, [-1, 0, 0.5, 1.5, 2]), [1, 0.75, 0.5, 0.25, 0]
    )


def test_optimality_gap_caps_at_the_target() -> None:
    assert statistics.optimality_gap(np.array([[0.0, 0.5], [1.0, 7.0]])) == 0.375


def test_students_interval() -> None:
    # Tabulated quantiles of Student's t at 97.5 %: 4.303 with 2 degrees of freedom, 2.776 with 4.
    for count, quantile in ((3, 4.303), (5, 2.776)):
        values = np.arange(1.0, count + 1)
        found = statistics.student(list(values))
        half = quantile * values.std(ddof=1) / count**0.5
        assert found == pytest.approx(
            (values.mean(), values.mean() - half, values.mean() + half), rel=1e-3
        )
    one = statistics.student([1.0])
    assert one.value == 1
    assert math.isnan(one.low)
    assert math.isnan(one.high)


def test_quantiles_of_student_are_scipys() -> None:
    from scipy import stats

    for confidence in (0.05, 0.5, 0.95, 0.999):
        for freedom in (*range(1, 12), 30, 101, 1000):
            assert statistics.student_quantile(confidence, freedom) == pytest.approx(
                stats.t.ppf((1 + confidence) / 2, freedom), rel=1e-11
            )
    assert statistics.student_quantile(0, 3) == 0
    # With one degree of freedom it is Cauchy's distribution, whose quartile is 1.
    assert statistics.student_quantile(0.5, 1) == pytest.approx(1)


def test_interquartile_mean_is_scipys_trimmed_mean() -> None:
    from scipy import stats

    for runs, tasks in ((1, 1), (1, 3), (3, 5), (5, 4)):
        scores = np.random.default_rng(runs).normal(size=(2, runs, tasks))
        np.testing.assert_allclose(
            statistics.interquartile_mean(scores),
            stats.trim_mean(scores.reshape(2, -1), 0.25, axis=-1),
        )


def test_refusals() -> None:
    with pytest.raises(ValueError, match="values must hold one number per seed, got none"):
        statistics.student([])
    for scores, said in (
        ([1.0, 2.0], "got shape [2]"),
        ([[]], "got shape [1, 0]"),
        ([[math.nan]], "got shape [1, 1] with NaN"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            statistics.bootstrap(scores)
    with pytest.raises(ValueError, match="got 1 and 2 columns"):
        statistics.improvement([[1.0]], [[1.0, 2.0]])


def test_nested_bootstrap_draws_tasks_as_well_as_runs() -> None:
    # One run: only its tasks are random, and their mean has a known standard error.
    tasks = np.random.default_rng(2).normal(size=(1, 400))
    found = statistics.nested_bootstrap([tasks], statistics.mean)
    error = 1.96 * tasks.std() / math.sqrt(tasks.size)
    assert found.value == pytest.approx(tasks.mean())
    assert found.high - found.low == pytest.approx(2 * error, rel=0.1)
    # Runs that agree on tasks that are alike leave no uncertainty.
    assert statistics.nested_bootstrap([np.full((3, 4), 2.0)]) == (2, 2, 2)


def test_nested_bootstrap_keeps_to_the_families() -> None:
    families = [np.zeros((3, 8)), np.full((5, 2), 100.0)]
    found = statistics.nested_bootstrap(families, statistics.mean)
    assert found.value == found.low == found.high == pytest.approx(1000 / 34)
    assert statistics.nested_bootstrap(families).value == statistics.interquartile_mean(
        np.repeat([0.0, 100.0], [24, 10])[None]
    )
    with pytest.raises(ValueError, match="one at least, got none"):
        statistics.nested_bootstrap([])
