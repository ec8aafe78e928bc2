"""Estimators of mutual information, useful on their own. All information is in nats.

>>> import torch
>>> from mg2l.estimators import distributions, fit_mi
>>> x, y = distributions.bivariate_normal(0.75).sample(4_000, seed=0)
>>> estimate = fit_mi(x, y, "info_nce", steps=200, progress=False)
>>> 0.2 < estimate.mi < 0.6  # the truth is 0.4133
True

``bounds`` holds the estimators as functions of scores, ``critics`` what gives the scores, ``fit``
the training of a critic, ``distributions`` pairs of variables whose information is known.
"""

from mg2l.estimators.bounds import (
    club,
    conditional_mi_reduction,
    donsker_varadhan,
    info_nce,
    jsd,
    l1out,
    mine,
    nwj,
    smile,
)
from mg2l.estimators.critics import CRITICS, bilinear, concatenated, cosine, gaussian, separable
from mg2l.estimators.fit import ESTIMATORS, Estimate, Estimator, fit_mi

__all__ = [
    "CRITICS",
    "ESTIMATORS",
    "Estimate",
    "Estimator",
    "bilinear",
    "club",
    "concatenated",
    "conditional_mi_reduction",
    "cosine",
    "donsker_varadhan",
    "fit_mi",
    "gaussian",
    "info_nce",
    "jsd",
    "l1out",
    "mine",
    "nwj",
    "separable",
    "smile",
]
