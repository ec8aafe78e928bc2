"""Training a critic on samples, and estimating a bound on others."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from rich.progress import track
from torch import Tensor

from mg2l.estimators import bounds, checks
from mg2l.estimators.critics import CRITICS, Critic
from mg2l.estimators.gaussian import Gaussian
from mg2l.estimators.notes import Notes
from mg2l.estimators.preprocess import PREPROCESS, dominated_by_outliers, prepare
from mg2l.ops.results import PairwiseScores

SMILE_CLIP = 5.0
"""``tau`` of SMILE."""

BOOTSTRAP = 200
"""Resamplings behind an interval."""


class Estimator(NamedTuple):
    """How a bound is trained and evaluated."""

    bound: str
    """``lower``, ``upper`` or ``neither``."""

    value: Callable[[PairwiseScores], Tensor]
    """The bound from the scores of held-out samples."""

    train: str
    """Objective of its critic: ``value``, ``mine``, ``jsd`` or ``likelihood``."""

    critic: str = "separable"
    """The default critic."""

    clip: float | None = None
    """Bound of the scores in their log-sum-exp; None for none."""

    shift: float = 0.0
    """Added to the scores before the bound is evaluated."""


ESTIMATORS: dict[str, Estimator] = {
    "info_nce": Estimator("lower", bounds.info_nce, "value"),
    "nwj": Estimator("lower", bounds.nwj, "value"),
    "donsker_varadhan": Estimator("neither", bounds.donsker_varadhan, "value"),
    "mine": Estimator("neither", bounds.donsker_varadhan, "mine"),
    "smile": Estimator("neither", bounds.smile, "jsd", clip=SMILE_CLIP),
    "jsd": Estimator("lower", bounds.nwj, "jsd", shift=1.0),
    "club": Estimator("upper", bounds.club, "likelihood", "gaussian"),
    "l1out": Estimator("upper", bounds.l1out, "likelihood", "gaussian"),
}
"""Every estimator of ``I(x; y)``; `bounds` documents what each bounds and its bias."""


class Estimate(NamedTuple):
    """Result of `fit_mi`."""

    mi: float
    """The estimate [nats]."""

    low: float
    """2.5 % quantile over bootstrap samples of the held-out samples, with the critic as it is."""

    high: float
    """97.5 % quantile."""

    bound: str
    """Which bound it is: ``lower``, ``upper`` or ``neither``. The latter also where these samples
    break the estimator's bound, as ``notes`` say."""

    ceiling: float
    """Ceiling of the estimate: ``log K`` for ``info_nce``, else infinity."""

    notes: tuple[str, ...] = ()
    """Bounds on the same samples that the estimate contradicts, and why it should not be trusted;
    each is a warning as well."""


def _shifted(scores: PairwiseScores, shift: float) -> PairwiseScores:
    if shift == 0:
        return scores
    return scores._replace(
        lse=scores.lse + shift,
        lse_negatives=scores.lse_negatives + shift,
        positive=scores.positive + shift,
        mean=scores.mean + shift,
    )


class _Fit(NamedTuple):
    """A bound on the held-out pairs."""

    value: float
    resampled: Tensor
    """``[BOOTSTRAP]`` values of bootstrap samples."""


def fit_mi(
    x: Tensor,
    y: Tensor,
    estimator: str = "info_nce",
    *,
    critic: str | Critic | None = None,
    hidden: Sequence[int] = (64, 64),
    features: int = 32,
    steps: int = 1000,
    batch_size: int = 256,
    lr: float = 2e-3,
    held_out: float = 0.2,
    preprocess: str = "rank",
    seed: int = 0,
    progress: bool = True,
    check: bool = True,
) -> Estimate:
    """Estimate ``I(x; y)`` [nats] from samples.

    A critic is trained on one part of the pairs and the bound taken on the other, all of its pairs
    at once: a critic gains nothing by memorising its samples. The units of x
    and y (scale, offset and sign of each coordinate) do not matter.

    Args:
        x: ``[N, size]`` float32 or float64, finite, N >= 8.
        y: ``[N, size]`` likewise, paired with x.
        estimator: a key of `ESTIMATORS`.
        critic: a key of `CRITICS`, or one of your own; None takes the estimator's. ``club`` and
            ``l1out`` need a conditional density, ``gaussian``.
        hidden: hidden layers of its networks, widths in ``[1, 65536]``.
        features: width of the vectors that are multiplied, in ``[1, 65536]``.
        steps: steps of Adam, in ``[1, 1e9]``.
        batch_size: pairs of a step, at least 2, and at most all of them.
        lr: learning rate, positive; it falls to 0 along a cosine.
        held_out: fraction of the pairs that the bound is taken on, in ``(0, 1)``; at least 2
            pairs on either side.
        preprocess: ``rank`` maps each coordinate to a normal by its ranks, under which information
            does not change, and which tames heavy tails; ``standardise`` gives each coordinate
            mean 0 and standard deviation 1; ``none`` scales all coordinates of x by one factor,
            and all of y: their ratios stay.
        seed: random seed of the split, the critic and the batches, in ``[0, 2^63)``.
        progress: show a bar.
        check: with an upper bound, fit ``info_nce`` to the same pairs too, and say where the upper
            bound lies below it. Doubles the time.

    Returns:
        :class:`Estimate`.

    Raises:
        ValueError: an argument is not as above, or the critic diverged.
    """
    tested = _check_arguments(
        x, y, estimator, critic, hidden, features, steps, batch_size, lr, held_out, preprocess, seed
    )
    about = ESTIMATORS[estimator]
    ceiling = math.log(tested) if estimator == "info_nce" else math.inf
    for letter, samples in (("x", x), ("y", y)):
        if not bool(_varied(samples).any()):
            note = f"{letter} is constant: there is nothing to share"
            warnings.warn(note, stacklevel=2)
            return Estimate(0.0, 0.0, 0.0, about.bound, ceiling, (note,))
    if not isinstance(critic, Critic):  # a density of a constant would be noise
        x, y = (v[:, _varied(v)] for v in (x, y))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
    test, train = order[:tested], order[tested:]
    x_train, y_train = (prepare(v[train], v[train], preprocess).detach() for v in (x, y))
    x_test, y_test = (prepare(v[train], v[test], preprocess).detach() for v in (x, y))

    def fit(name: str, chosen: Critic) -> _Fit:
        about = ESTIMATORS[name]
        generator = torch.Generator().manual_seed(seed + 1)
        # Drawn first, so that two estimators are compared on the same bootstrap samples.
        picks = torch.randint(tested, (BOOTSTRAP, tested), generator=generator).to(x.device)
        _train(chosen, about, x_train, y_train, steps, batch_size, lr, generator, name, progress)
        with torch.no_grad():
            scores = _shifted(chosen(x_test, y_test, clip=about.clip), about.shift)
            value = float(about.value(scores))
            resampled = torch.stack(
                [about.value(PairwiseScores(*(row[pick] for row in scores))) for pick in picks]
            )
        if not math.isfinite(value):
            raise ValueError(
                f"the critic of {name} diverges, which is then {value}: lower lr={lr}, or take "
                "preprocess='rank' if there are outliers"
            )
        return _Fit(value, resampled)

    chosen = _make_critic(critic or about.critic, x, y, hidden, features, seed)
    if about.train == "likelihood" and not hasattr(chosen, "conditional"):
        raise ValueError(f"{estimator} needs a conditional density: critic 'gaussian'")
    _try(chosen, x_train, y_train)
    found = fit(estimator, chosen)
    quantiles = torch.tensor([0.025, 0.975]).to(found.resampled)
    low, high = torch.quantile(found.resampled, quantiles).tolist()

    notes = Notes()
    held = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    held[test] = True
    notes.on_samples(estimator, about.train == "likelihood", x, y, held)
    for letter, raw, fitted, valued in (("x", x, x_train, x_test), ("y", y, y_train, y_test)):
        dominated = dominated_by_outliers(raw[train], fitted, valued, preprocess)
        notes.on_outliers(estimator, about.bound, letter, dominated)
    notes.on_value(estimator, about.bound, (found.value, low, high), x, y, tested)
    if check and about.bound == "upper":
        lower = fit("info_nce", _make_critic("separable", x, y, hidden, features, seed))
        notes.on_lower_bound(estimator, found.value, lower.value, found.resampled - lower.resampled)
    for note in notes.texts:
        warnings.warn(note, stacklevel=2)
    bound = "neither" if notes.broken else about.bound
    return Estimate(found.value, low, high, bound, ceiling, tuple(notes.texts))


def _check_arguments(
    x: Tensor,
    y: Tensor,
    estimator: str,
    critic: str | Critic | None,
    hidden: Sequence[int],
    features: int,
    steps: int,
    batch_size: int,
    lr: float,
    held_out: float,
    preprocess: str,
    seed: int,
) -> int:
    """Validate the arguments of `fit_mi`; returns K, the number of held-out pairs."""
    checks.check_samples(x, y)
    checks.check_choice("estimator", estimator, ESTIMATORS)
    if critic is not None and not isinstance(critic, Critic):
        checks.check_choice("critic", critic, CRITICS, " or a Critic")
    checks.check_widths("hidden", hidden)
    checks.check_integer("features", features, 1, checks.MAX_WIDTH)
    checks.check_integer("steps", steps, 1, checks.MAX_STEPS)
    checks.check_integer("batch_size", batch_size, 2, checks.MAX_INTEGER)
    checks.check_learning_rate(lr)
    checks.check_choice("preprocess", preprocess, PREPROCESS)
    checks.check_integer("seed", seed, 0, checks.MAX_INTEGER)
    return checks.held_out_pairs(held_out, len(x))


def _varied(samples: Tensor) -> Tensor:
    """``[size]`` bool, the coordinates that are not constant."""
    varied: Tensor = (samples != samples[0]).any(0)
    return varied


def _make_critic(
    critic: str | Critic, x: Tensor, y: Tensor, hidden: Sequence[int], features: int, seed: int
) -> Critic:
    if isinstance(critic, Critic):
        return critic
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = CRITICS[critic](x.shape[1], y.shape[1], hidden, features)
    return made.to(x.device, x.dtype)


def _try(critic: Critic, x: Tensor, y: Tensor) -> None:
    """Check that a critic takes these samples, and has something to train."""
    try:
        with torch.no_grad():
            critic(x[:2], y[:2])
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        shapes = " and ".join(f"[N, {v.shape[1]}] {v.dtype} on {v.device}" for v in (x, y))
        raise ValueError(f"critic must take x and y, {shapes}: {reason}") from error
    if not any(parameter.requires_grad for parameter in critic.parameters()):
        raise ValueError("critic must have parameters to train, got none")


def _train(
    critic: Critic,
    about: Estimator,
    x: Tensor,
    y: Tensor,
    steps: int,
    batch_size: int,
    lr: float,
    generator: torch.Generator,
    name: str,
    progress: bool,
) -> None:
    optimiser = torch.optim.Adam(critic.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    average = torch.zeros((), dtype=x.dtype, device=x.device)
    size = min(batch_size, len(x))
    for _ in track(range(steps), name, disable=not progress, transient=True):
        pick = torch.randperm(len(x), generator=generator)[:size].to(x.device)
        if about.train == "jsd":
            gain = bounds.jsd(critic.matrix(x[pick], y[pick]))
        elif about.train == "mine":
            gain = bounds.mine(critic(x[pick], y[pick]), average)
        elif about.train == "likelihood":
            gain = Gaussian(*critic.conditional(x[pick])).log_prob(y[pick]).mean()  # type: ignore[operator]
        else:
            gain = about.value(critic(x[pick], y[pick]))
        optimiser.zero_grad()
        (-gain).backward()
        optimiser.step()
        schedule.step()
