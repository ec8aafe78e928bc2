"""Figures of representations whose quality is known, and of a run's."""

import numpy as np
import pytest
from method_helpers import inference_of, tiny_learner

from mg2l.evaluation import probe
from mg2l.evaluation.representation import describe, explained, maps, plane

TASKS = np.arange(4).repeat(50)
SCALES = np.array([[-1.0, 3], [0.3, 3], [0.5, 3], [2.0, 3]])


def halves(signal: float) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    axis = np.concatenate([SCALES[TASKS, :1], np.eye(4)[TASKS]], 1)
    return [signal * axis + rng.normal(size=(200, 5)) for _ in range(2)]


def test_separate_tasks_are_recognised_and_features_read():
    fit, test = halves(50)
    found = describe(fit, TASKS, test, TASKS)
    assert found["linear"] == found["nearest"] == 1
    assert found["silhouette"] > 0.9
    features = SCALES[TASKS]
    assert explained(fit, features, {"test": (test, features)})["r2/test"] > 0.95


def test_noise_identifies_nothing():
    fit, test = halves(0)
    found = describe(fit, TASKS, test, TASKS)
    assert found["linear"] == pytest.approx(0.25, abs=0.12)
    assert found["nearest"] == pytest.approx(0.25, abs=0.12)
    assert abs(found["silhouette"]) < 0.1
    features = SCALES[TASKS]
    assert explained(fit, features, {"test": (test, features)})["r2/test"] < 0.05


def test_features_of_tasks_that_were_never_fitted():
    """A representation that is linear in the task reads other tasks, a memorised one does not."""
    rng = np.random.default_rng(0)
    train, other = rng.uniform(-1, 1, (30, 2)), rng.uniform(-1, 1, (10, 2))
    seen, new = train.repeat(20, 0), other.repeat(20, 0)
    mixing = rng.normal(size=(2, 5))

    def linear(features: np.ndarray) -> np.ndarray:
        return features @ mixing + 0.1 * rng.normal(size=(len(features), 5))

    parts = {"train": (linear(seen), seen), "test": (linear(new), new)}
    found = explained(linear(seen), seen, parts)
    assert 0.9 < found["r2/test"] < 1
    assert 0.9 < found["r2/train"] < 1
    keys = rng.normal(size=(40, 64))
    by_heart = {"train": (keys[:30].repeat(20, 0), seen), "test": (keys[30:].repeat(20, 0), new)}
    found = explained(keys[:30].repeat(20, 0), seen, by_heart)
    assert found["r2/train"] > 0.9
    assert found["r2/test"] < 0.2


def test_features_that_do_not_differ_are_left_out():
    fit, test = halves(50)
    features = np.concatenate([SCALES, np.eye(4)], 1)[TASKS]  # the second is 3 in all tasks
    lone = np.zeros(50, int)
    parts = {"test": (test, features), "lone": (test[:50], features[lone])}
    found = explained(fit, features, parts)
    assert found.keys() == {"r2/test"}
    assert found["r2/test"] > 0.9
    assert explained(fit, np.ones((200, 2)), parts) == {}


def test_plane_keeps_what_varies_most():
    z = np.random.default_rng(0).normal(size=(100, 5)) * [10, 0.1, 5, 0.1, 0.1]
    found = plane(z)
    for column, axis in enumerate((0, 2)):
        assert abs(np.corrcoef(found[:, column], z[:, axis])[0, 1]) > 0.95


def test_umap_separates_tasks():
    assert maps() == ["pca", "umap"]
    fit, _ = halves(50)
    points = plane(fit, "umap").reshape(4, 50, 2)
    centres = points.mean(1)
    spread = np.linalg.norm(points - centres[:, None], axis=-1).max()
    distance = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    assert distance[np.triu_indices(4, 1)].min() > spread


def test_probe_of_a_run(monkeypatch, tmp_path):
    monkeypatch.setattr(probe, "EPISODES", 4)
    monkeypatch.setattr(probe, "CONTEXTS", 12)
    learner = tiny_learner()
    figures, z, episodes, by_task = probe.probe(learner, 1)
    assert set(z) == {"global", "agent_0", "agent_1"} == set(by_task)
    for level, fractions in by_task.items():
        assert fractions.mean() == pytest.approx(figures[level]["nearest"])
    assert {"r2/train", "r2/test"} <= figures["agent_1"].keys()
    assert set(figures) == {*z, "mi/global", "mi/local", "mi/l1out", "mi/gap"}
    assert figures["mi/gap"] == pytest.approx(figures["mi/l1out"] - figures["mi/local"], abs=1e-5)
    weights = probe.priorities(inference_of(learner), episodes)
    assert weights.shape == (learner.tasks, 2, learner.config.env.max_ep_len)
    np.testing.assert_allclose(weights.mean(-1), 1, rtol=1e-5)
    levels = probe.planes(z, learner.tasks, ["pca"])
    assert levels["agent_1"]["pca"].shape == (learner.tasks, 12, 2)
    probe.draw(tmp_path / "map.png", levels, learner.env.tasks.names[: learner.tasks])
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
