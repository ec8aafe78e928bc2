"""How well representations identify their tasks: scores by scikit-learn (extra ``analysis``).

All of the figures are fitted to one half of the contexts and taken on the other, which shares no
episode with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mg2l.core.packages import installed

Map = Literal["pca", "umap"]

NEIGHBOURS = 5


def describe(
    fit: NDArray[Any],
    fit_tasks: NDArray[np.int64],
    test: NDArray[Any],
    test_tasks: NDArray[np.int64],
) -> dict[str, float]:
    """Figures of one representation, of at least two tasks.

    Args:
        fit: ``[M, D]`` representations.
        fit_tasks: ``[M]`` their tasks.
        test: ``[M', D]``.
        test_tasks: ``[M']``.

    Returns:
        ``linear`` and ``nearest``, fractions of ``test`` whose task a logistic regression and the 5
        nearest of ``fit`` predict; and ``silhouette`` of ``test`` by task, in ``[-1, 1]``.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed (``pip install "mg2l[analysis]"``).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import silhouette_score
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    models = {
        "linear": LogisticRegression(max_iter=1000),
        "nearest": KNeighborsClassifier(min(NEIGHBOURS, len(fit))),
    }
    figures = {
        name: float(
            make_pipeline(StandardScaler(), model).fit(fit, fit_tasks).score(test, test_tasks)
        )
        for name, model in models.items()
    }
    figures["silhouette"] = float(silhouette_score(test, test_tasks))
    return figures


def explained(
    fit: NDArray[Any],
    fit_features: NDArray[Any],
    parts: Mapping[str, tuple[NDArray[Any], NDArray[Any]]],
) -> dict[str, float]:
    """How much of the tasks' features a linear regression reads from representations.

    Args:
        fit: ``[M, D]`` representations in training tasks.
        fit_features: ``[M, task_dim]`` features of their tasks.
        parts: other representations ``[M', D]`` and the features ``[M', task_dim]`` of their tasks,
            by part of the tasks.

    Returns:
        ``r2/<part>``: 1 - (squared error) / (squared deviation from the mean of the part), mean
        over the features that differ between training tasks as well as between tasks of the part;
        below 0 where the part's mean would be a better guess. Parts without such a feature are left
        out.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed (``pip install "mg2l[analysis]"``).
    """
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    varied = fit_features.std(0) > 0
    if not varied.any():
        return {}
    model = make_pipeline(StandardScaler(), Ridge()).fit(fit, fit_features[:, varied])
    found = {}
    for part, (z, features) in parts.items():
        wanted = features[:, varied]
        deviation = np.square(wanted - wanted.mean(0)).mean(0)
        error = np.square(wanted - model.predict(z).reshape(wanted.shape)).mean(0)
        held = deviation > 0
        if held.any():
            found[f"r2/{part}"] = float((1 - error[held] / deviation[held]).mean())
    return found


def recognised(
    fit: NDArray[Any],
    fit_tasks: NDArray[np.int64],
    test: NDArray[Any],
    test_tasks: NDArray[np.int64],
) -> NDArray[np.float64]:
    """``nearest`` of `describe` for each task, ``[K]``: fraction of its representations."""
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), KNeighborsClassifier(min(NEIGHBOURS, len(fit))))
    hits = model.fit(fit, fit_tasks).predict(test) == test_tasks
    found: NDArray[np.float64] = np.bincount(test_tasks, hits) / np.bincount(test_tasks)
    return found


def principal_axes(z: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean ``[D]`` of representations ``[M, D]`` and their first two principal axes ``[D, 2]``.

    Each axis points to where its largest component is positive. Of representations with less than
    two numbers the missing axes are zero.
    """
    center = np.asarray(z, np.float64).mean(0)
    axes = np.linalg.svd(z - center, full_matrices=False)[2][:2]
    axes *= np.sign(np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1))
    found = np.zeros((len(center), 2))
    found[:, : len(axes)] = axes.T
    return center, found


def maps() -> list[Map]:
    """Ways to lay representations out in a plane that are installed."""
    found: list[Map] = ["pca"]
    return [*found, "umap"] if installed("umap") else found


def plane(z: NDArray[Any], by: Map = "pca") -> NDArray[np.float64]:
    """Representations ``[M, D]`` in a plane, ``[M, 2]``.

    Args:
        z: the representations.
        by: ``pca``, the first two principal components, or ``umap`` (McInnes et al., 2018,
            arXiv:1802.03426), in which neighbours stay near and distances say little.

    Raises:
        ModuleNotFoundError: umap-learn is not installed.
    """
    found: NDArray[np.float64]
    if by == "pca":
        center, axes = principal_axes(z)
        found = (z - center) @ axes
    else:
        from umap import UMAP

        found = UMAP(n_components=2, random_state=0, n_jobs=1).fit_transform(z)
    return found
