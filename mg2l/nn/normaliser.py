"""Normalisation of observations and value targets."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mg2l.core.schema import ConfigError
from mg2l.nn.moments import RESOLUTION, RunningMoments, batch_moments
from mg2l.nn.stacked import StackedLinear

LAYER_NORM_WIDTH = 3
"""Narrowest observation that LayerNorm can be applied to: it maps one number to 0, and of two keeps
only which is larger."""


class RunningNorm(nn.Module):
    """Standardises observations by the moments of all observations acted on, and clips them.

    The moments are frozen until `update` is called: between iterations, so that a policy is trained
    on the inputs it has acted on.

    Args:
        groups: G, number of agents, each with moments of its own; 1 where all share a network.
        width: O of an observation.
        limit: standard deviations at which standardised observations are clipped.
        image: numbers at the beginning of an observation that are an image's; they are left alone.
    """

    def __init__(self, groups: int, width: int, limit: float, image: int = 0) -> None:
        super().__init__()
        self.limit, self.image = limit, image
        self.moments = RunningMoments(groups, width - image)

    @property
    def known(self) -> bool:
        """Whether there are any moments yet."""
        return self.moments.known

    def update(self, observations: Tensor, active: Tensor | None) -> None:
        """Add observations to the moments.

        Args:
            observations: ``[*, A, O]``.
            active: ``[*, A]`` bool, agents that were alive; None is all agents.
        """
        groups = len(self.moments.mean)
        rows = observations[..., self.image :].reshape(-1, groups, self.moments.mean.shape[1])
        self.moments.update(rows, None if active is None else active.reshape(-1, groups))

    def forward(self, observations: Tensor) -> Tensor:
        """``[A, rows, O]``, of the same shape; unchanged before the first update."""
        if not self.known:
            return observations
        image, numbers = observations.tensor_split([self.image], -1)
        standard = self.moments.standardise(numbers.transpose(0, 1)).transpose(0, 1)
        return torch.cat([image, standard.clamp(-self.limit, self.limit)], -1)


class LayerNorm(nn.Module):
    """LayerNorm over each observation, without an affine part: the next layer's weights hold it.

    Args:
        width: O of an observation.
        own: ``[A, 1, O]`` bool, which numbers an agent observes; the others are 0 before and after,
            and do not count. None is all.

    Raises:
        ConfigError: the observation is too narrow.
    """

    own: Tensor | None

    def __init__(self, width: int, own: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("own", own, persistent=False)
        width = width if own is None else int(own.sum(-1).min())
        if width < LAYER_NORM_WIDTH:
            raise ConfigError(
                f"observation_normalization=layer needs observations of at least "
                f"{LAYER_NORM_WIDTH} numbers, got {width}, of which LayerNorm would leave "
                f"{'nothing' if width == 1 else 'a sign'}; choose running or none"
            )

    def forward(self, observations: Tensor) -> Tensor:
        """``[*, O]``, of the same shape; with ``own`` ``[A, rows, O]``."""
        if self.own is None:
            return F.layer_norm(observations, observations.shape[-1:])
        count = self.own.sum(-1, keepdim=True)
        centred = observations - (observations * self.own).sum(-1, keepdim=True) / count
        centred = centred * self.own
        variance = centred.square().sum(-1, keepdim=True) / count
        return centred * torch.rsqrt(variance + 1e-5)


class ValueNorm(nn.Module):
    """Debiased exponential moments of the value targets, one pair per agent.

    ``mean`` and ``std`` are ``[G]``, in float64; before a group's first target they are 0 and 1.

    Args:
        groups: G.
        beta: factor by which a batch of targets scales the weight of earlier ones.
        floor: lower bound of the standard deviation, as in van Hasselt et al. (2016,
            arXiv:1602.07714).
    """

    weight: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, groups: int, beta: float = 0.99999, floor: float = 1e-4) -> None:
        super().__init__()
        self.beta, self.floor = beta, floor
        for name in ("weight", "mean", "variance"):
            self.register_buffer(name, torch.zeros(groups, dtype=torch.float64))

    @property
    def std(self) -> Tensor:
        """Standard deviation of the targets, ``[G]``; at least the resolution of float32."""
        std = self.variance.sqrt().clamp(min=self.floor)
        std = torch.maximum(std, RESOLUTION * self.mean.abs())
        return torch.where(self.weight > 0, std, torch.ones_like(std))

    @torch.no_grad()
    def update(self, targets: Tensor, predictions: Tensor, kept: Tensor | None = None) -> Tensor:
        """Add those targets ``[A, rows]`` for which ``kept`` is true.

        Returns:
            The predictions ``[A, rows]`` that the critic now makes.
        """
        self.fold(targets, kept)
        return predictions

    @torch.no_grad()
    def fold(self, targets: Tensor, kept: Tensor | None = None) -> None:
        """`update`, where there are no predictions yet.

        With the weight ``w`` of all batches before and ``r = 1 - beta`` of this one, debiased
        moments are those of a mixture, of which this batch is ``s = r / (w (1 - r) + r)``:
        ``variance = (1 - s) variance + s v + s (1 - s) (m - mean)^2``. Nothing cancels in it.
        """
        groups = len(self.weight)
        batch = batch_moments(
            targets.reshape(groups, -1).t(), None if kept is None else kept.reshape(groups, -1).t()
        )
        rate = (1 - self.beta) * (batch.counted > 0).double()  # no targets, no change
        self.weight.lerp_(torch.ones_like(rate), rate)
        share = rate / self.weight.clamp(min=torch.finfo(rate.dtype).tiny)
        distance = batch.mean - self.mean
        self.variance.lerp_(batch.variance + (1 - share) * distance.square(), share)
        self.mean += share * distance

    def normalise(self, targets: Tensor) -> Tensor:
        """``(targets - mean) / std`` for targets ``[A, rows]``."""
        rows = targets.reshape(len(self.weight), -1).double()
        rows = (rows - self.mean.unsqueeze(1)) / self.std.unsqueeze(1)
        return rows.to(targets.dtype).view_as(targets)


class PopArt(ValueNorm):
    """ValueNorm that also rescales the critic's output layer.

    De-normalised predictions stay what they were (van Hasselt et al., 2016, arXiv:1602.07714,
    eq. 9).
    """

    def __init__(self, groups: int, output: StackedLinear, beta: float = 0.99999) -> None:
        super().__init__(groups, beta)
        self._output = [output]  # in a list: the critic owns the parameters

    @torch.no_grad()
    def update(self, targets: Tensor, predictions: Tensor, kept: Tensor | None = None) -> Tensor:
        mean, std = self.mean.clone(), self.std
        self.fold(targets, kept)
        scale, shift = std / self.std, (mean - self.mean) / self.std
        output = self._output[0]
        output.weight.mul_(scale[:, None, None])
        output.bias.copy_(output.bias * scale[:, None] + shift[:, None])
        rows = predictions.reshape(len(std), -1) * scale[:, None] + shift[:, None]
        return rows.to(predictions.dtype).view_as(predictions)
