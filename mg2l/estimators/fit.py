"""Training a critic on samples, and the estimate of a bound on others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from rich.progress import track
from torch import Tensor

from mg2l.encoder.gaussian import Gaussian
from mg2l.estimators import bounds
from mg2l.estimators.critics import CRITICS, Critic
from mg2l.ops.results import PairwiseScores

SMILE_CLIP = 5.0
"""``tau`` of SMILE."""

BOOTSTRAP = 200
"""Resamplings behind an interval."""


class Estimator(NamedTuple):
    """How a bound is trained and valued."""

    bound: str
    """``lower``, ``upper`` or ``neither``."""

    value: Callable[[PairwiseScores], Tensor]
    """Of the scores of held-out samples."""

    train: str
    """What its critic maximises: ``value``, ``mine``, ``jsd`` or ``likelihood``."""

    critic: str = "separable"
    """The critic it has if none is asked for."""

    clip: float | None = None
    """Of the scores' log-sum-exp."""

    shift: float = 0.0
    """Added to the scores before they are valued."""


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
"""Every estimator of ``I(x; y)``; what each bounds and its bias are said in `bounds`."""


class Estimate(NamedTuple):
    """Result of `fit_mi`."""

    mi: float
    """The estimate [nats]."""

    low: float
    """2.5 % quantile over bootstrap samples of the held-out samples, with the critic as it is."""

    high: float
    """97.5 % quantile."""

    bound: str
    """``lower``, ``upper`` or ``neither``."""

    ceiling: float
    """What the estimate cannot exceed: ``log K`` for ``info_nce``, else infinity."""


def _normal_scores(train: Tensor, x: Tensor) -> Tensor:
    """Every coordinate of ``x`` through the distribution function of ``train``'s, to a normal."""
    columns = []
    for known, wanted in zip(train.unbind(1), x.unbind(1), strict=True):
        ordered = known.double().sort().values.contiguous()
        wanted = wanted.double().contiguous()
        right = torch.searchsorted(ordered, wanted).clamp(1, len(ordered) - 1)
        low, high = ordered[right - 1], ordered[right]
        part = ((wanted - low) / (high - low).clamp(min=1e-300)).clamp(0, 1)
        columns.append((right + part - 0.5) / len(ordered))
    scores: Tensor = torch.special.ndtri(torch.stack(columns, 1))
    return scores.to(x.dtype)


def _prepare(train: Tensor, x: Tensor, how: str) -> Tensor:
    if how == "rank":
        return _normal_scores(train, x)
    if how == "standardise":
        return (x - train.mean(0)) / train.std(0).clamp(min=1e-12)
    return x


def _shifted(scores: PairwiseScores, shift: float) -> PairwiseScores:
    if shift == 0:
        return scores
    return scores._replace(
        lse=scores.lse + shift,
        lse_negatives=scores.lse_negatives + shift,
        positive=scores.positive + shift,
        mean=scores.mean + shift,
    )


def _check(x: Tensor, y: Tensor, estimator: str, preprocess: str, batch_size: int) -> None:
    for name, samples in (("x", x), ("y", y)):
        if samples.dim() != 2 or not samples.is_floating_point():
            raise ValueError(
                f"{name} must be floats [N, size], got {samples.dtype} {list(samples.shape)}"
            )
        if not bool(samples.isfinite().all()):
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    if len(x) != len(y) or len(x) < 8:
        raise ValueError(f"x and y must be N >= 8 pairs, got {len(x)} and {len(y)}")
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {', '.join(ESTIMATORS)}, got {estimator!r}")
    if preprocess not in ("rank", "standardise", "none"):
        raise ValueError(f"preprocess must be 'rank', 'standardise' or 'none', got {preprocess!r}")
    if batch_size < 2:
        raise ValueError(f"batch_size must be at least 2, got {batch_size}")


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
) -> Estimate:
    """Estimate ``I(x; y)`` [nats] from samples.

    A critic is trained on one part of the pairs and the bound taken on the other, all of its pairs
    at once: a critic that has learned its samples by heart gains nothing by that.

    Args:
        x: ``[N, size]`` float, N >= 8.
        y: ``[N, size]`` float, paired with x.
        estimator: a key of `ESTIMATORS`.
        critic: a key of `CRITICS`, or one of your own; None takes the estimator's. ``club`` and
            ``l1out`` need a conditional density, ``gaussian``.
        hidden: hidden layers of its networks.
        features: width of what is multiplied.
        steps: of Adam.
        batch_size: pairs of a step.
        lr: learning rate; it falls to 0 along a cosine.
        held_out: share of the pairs that the estimate is made of.
        preprocess: ``rank`` maps each coordinate to a normal by its ranks, under which information
            does not change, and which tames heavy tails; ``standardise``; ``none``.
        seed: of the split, the critic and the batches.
        progress: show a bar.

    Returns:
        :class:`Estimate`.

    Raises:
        ValueError: an argument is not as above.
    """
    _check(x, y, estimator, preprocess, batch_size)
    about = ESTIMATORS[estimator]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator).to(x.device)
    tested = max(2, round(held_out * len(x)))
    test, train = order[:tested], order[tested:]
    if len(train) < 2:
        raise ValueError(f"held_out must leave 2 pairs to train on, got {held_out}")
    x_train, y_train = (_prepare(v[train], v[train], preprocess).detach() for v in (x, y))
    x_test, y_test = (_prepare(v[train], v[test], preprocess).detach() for v in (x, y))
    chosen = _make_critic(critic or about.critic, x, y, hidden, features, seed)
    if about.train == "likelihood" and not hasattr(chosen, "conditional"):
        raise ValueError(f"{estimator} needs a conditional density: critic 'gaussian'")
    _train(chosen, about, x_train, y_train, steps, batch_size, lr, generator, estimator, progress)
    with torch.no_grad():
        scores = _shifted(chosen(x_test, y_test, clip=about.clip), about.shift)
        value = float(about.value(scores))
        resampled = torch.stack(
            [
                about.value(PairwiseScores(*(row[pick] for row in scores)))
                for pick in torch.randint(tested, (BOOTSTRAP, tested), generator=generator).to(
                    x.device
                )
            ]
        )
    low, high = torch.quantile(resampled, torch.tensor([0.025, 0.975]).to(resampled)).tolist()
    ceiling = float(torch.tensor(float(tested)).log()) if estimator == "info_nce" else float("inf")
    return Estimate(value, low, high, about.bound, ceiling)


def _make_critic(
    critic: str | Critic, x: Tensor, y: Tensor, hidden: Sequence[int], features: int, seed: int
) -> Critic:
    if isinstance(critic, Critic):
        return critic
    if critic not in CRITICS:
        raise ValueError(f"critic must be one of {', '.join(CRITICS)}, got {critic!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = CRITICS[critic](x.shape[1], y.shape[1], hidden, features)
    return made.to(x.device, x.dtype)


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
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1))
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
