"""Running moments of value targets: ValueNorm and PopArt."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mg2l.algo.networks import StackedLinear


class ValueNorm(nn.Module):
    """Debiased exponential moments of the value targets, one pair per agent.

    ``mean`` and ``std`` are ``[G]``; before a group's first target they are 0 and 1.
    """

    weight: Tensor
    first: Tensor
    second: Tensor

    def __init__(self, groups: int, beta: float = 0.99999, floor: float = 1e-2) -> None:
        super().__init__()
        self.beta, self.floor = beta, floor
        self.register_buffer("weight", torch.zeros(groups))
        self.register_buffer("first", torch.zeros(groups))
        self.register_buffer("second", torch.zeros(groups))

    @property
    def mean(self) -> Tensor:
        """Mean of the targets, ``[G]``."""
        return self.first / self.weight.clamp(min=1e-8)

    @property
    def std(self) -> Tensor:
        """Standard deviation of the targets, ``[G]``."""
        variance = self.second / self.weight.clamp(min=1e-8) - self.mean.square()
        std = variance.clamp(min=self.floor).sqrt()
        return torch.where(self.weight > 0, std, torch.ones_like(std))

    @torch.no_grad()
    def update(self, targets: Tensor, predictions: Tensor, kept: Tensor | None = None) -> Tensor:
        """Fold in targets ``[A, rows]``, of which only those count that ``kept`` is true for.

        Returns:
            The predictions ``[A, rows]`` as the critic would make them now.
        """
        self._fold(targets, kept)
        return predictions

    def _fold(self, targets: Tensor, kept: Tensor | None) -> None:
        rows = targets.reshape(len(self.first), -1)
        counted = torch.ones_like(rows) if kept is None else kept.reshape_as(rows).to(rows.dtype)
        total = counted.sum(1)
        share = counted / total.clamp(min=1).unsqueeze(1)
        rate = (1 - self.beta) * (total > 0).to(rows.dtype)  # no targets, no change
        self.weight.lerp_(torch.ones_like(rate), rate)
        self.first.lerp_((share * rows).sum(1), rate)
        self.second.lerp_((share * rows.square()).sum(1), rate)

    def normalise(self, targets: Tensor) -> Tensor:
        """``(targets - mean) / std`` for targets ``[A, rows]``."""
        rows = targets.reshape(len(self.first), -1)
        return ((rows - self.mean.unsqueeze(1)) / self.std.unsqueeze(1)).view_as(targets)


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
        mean, std = self.mean, self.std
        self._fold(targets, kept)
        output = self._output[0]
        output.weight.mul_((std / self.std)[:, None, None])
        output.bias.mul_(std[:, None]).add_((mean - self.mean)[:, None]).div_(self.std[:, None])
        real = predictions.reshape(len(std), -1) * std[:, None] + mean[:, None]
        return ((real - self.mean[:, None]) / self.std[:, None]).view_as(predictions)
